"""Write the sample sheet of a data set, or report why that is impossible.

`python -m workers.distill.inspection.samples REQUEST.json --workdir DIR` reads the training split
of `DIR/dataset` and writes `DIR/samples.json`. The last line on standard output is a JSON object:
`result` (exit code 0) or `failure` (exit code 1).
"""

import json
import sys
import traceback
from collections.abc import Sequence

from workers.distill import errors
from workers.distill.config import samples as bounds
from workers.distill.data import samples
from workers.distill.runtime import child_options, events, memory, shutdown


def main(arguments: Sequence[str]) -> int:
    """Write the sheet, report result or failure, and return the exit code."""
    options = child_options.read("workers.distill.inspection.samples", arguments, reads="`dataset`")
    reporter = events.open_stream()
    try:
        made = samples.sheet(options.workdir / "dataset")
        path = options.workdir / bounds.SHEET_FILE
        path.write_text(json.dumps(made), encoding="utf-8")
        reporter.result(classes=len(made["classes"]))
    # The last line of defence: whatever a data set provokes must end in a line for its owner.
    except Exception as error:
        traceback.print_exc()
        if isinstance(error, errors.DistillError):
            reporter.failure(error.code, error.message)
        elif memory.is_exhausted(error):
            reporter.failure("out_of_memory", "the data set needs more memory than the worker has")
        else:
            reporter.failure("internal_error", f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    shutdown.exit_process(main(sys.argv[1:]))
