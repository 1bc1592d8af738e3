"""The engine's command line: `python -m workers.distill RECIPE.json --workdir DIR`."""

import argparse
import pathlib
from collections.abc import Sequence
from typing import NoReturn

from workers.distill.runtime import events, shutdown, signals


def main(arguments: Sequence[str]) -> NoReturn:
    """Distil one recipe in a folder, and end the process with the exit code."""
    parser = argparse.ArgumentParser(prog="python -m workers.distill", description=__doc__)
    parser.add_argument("recipe", type=pathlib.Path, help="what to do")
    parser.add_argument("--workdir", type=pathlib.Path, required=True, help="inputs and outputs")
    options = parser.parse_args(arguments)
    reporter = events.open_stream(narrates=True)
    stop = signals.Stop()
    stop.listen()
    # Imported only now: torch takes seconds to load, and a SIGTERM in them must be answered.
    from workers.distill.run import run

    shutdown.exit_process(run.execute(options.recipe, options.workdir, reporter, stop))
