"""Make the tables of docs/measurements.md anew, each by the command that stands above it.

    python -m benchmarks.measurements [--only WORD ...] [--list] [--quick]

A table stands between two markers, which are comments and not shown:

    <!-- table: OMP_NUM_THREADS=1 python -m benchmarks.digits --markdown; quick: --seeds 1 -->
    ...
    <!-- end of table -->

What the command prints takes the place of what stands between them, with the commit that it was
made at; `TABLE` in a command is a file that it writes instead. The page is written after each
table, so that nothing is lost where a later one fails; text around the markers stays, and must be
read again by whoever runs this. `--quick` adds each command's `quick` options, leaves the page as
it is, and only compares the columns: that all commands still work, in minutes instead of hours.
"""

import argparse
import itertools
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import rich.console

ROOT = Path(__file__).parents[1]
PAGE = Path("docs/measurements.md")
_MARKED = re.compile(
    r"(?P<start><!-- table: (?P<command>[^;\n]+?)(?:; quick: (?P<quick>[^\n]*?))? -->\n)"
    r"(?P<content>.*?)(?P<end><!-- end of table -->)",
    re.DOTALL,
)
_RULE = re.compile(r"^\|(?: ?:?-+:? ?\|)+$")


class Failed(Exception):
    """A command failed, or printed another table than the page has."""


@dataclass(frozen=True)
class Table:
    """What stands between two markers of the page."""

    command: str
    quick: str
    content: str

    @property
    def columns(self) -> list[str]:
        """Return the header of each of its tables."""
        return columns(self.content)


def main() -> int:
    """Make all tables, or some; print what is done on stderr."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.measurements")
    parser.add_argument("--only", nargs="+", default=[], help="words, all in the table's command")
    parser.add_argument("--list", action="store_true", help="print the commands, and run none")
    parser.add_argument("--quick", action="store_true", help="see that the commands work")
    asked = parser.parse_args()
    say = rich.console.Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print
    page = ROOT / PAGE
    chosen = [table for table in tables(page.read_text()) if has_words(table, asked.only)]
    if not chosen:
        parser.error(f"no command in {PAGE} has all of: {' '.join(asked.only)}; see --list")
    failed = 0
    for table in chosen:
        say(table.command)
        if asked.list:
            continue
        try:
            made = run(table, quick=asked.quick)
        except Failed as error:
            say(f"failed: {error}")
            failed += 1
            continue
        if not asked.quick:
            # Read again: whoever writes text meanwhile keeps it.
            page.write_text(replaced(page.read_text(), table.command, made, commit()))
    return 1 if failed else 0


def tables(text: str) -> Iterator[Table]:
    """Yield what stands between the markers of a page, in order."""
    for match in _MARKED.finditer(text):
        yield Table(match["command"], match["quick"] or "", match["content"])


def has_words(table: Table, words: list[str]) -> bool:
    """Whether the command of a table has all of some words."""
    return set(words) <= set(table.command.split())


def columns(text: str) -> list[str]:
    """Return the header lines of the tables of a text."""
    lines = text.splitlines()
    return [above for above, line in itertools.pairwise(lines) if _RULE.match(line)]


def run(table: Table, *, quick: bool) -> str:
    """Return what a table's command makes; raises `Failed`."""
    with tempfile.TemporaryDirectory(prefix="retort-measurements-") as folder:
        written = Path(folder) / "table.md"
        command = table.command.replace("TABLE", str(written))
        words = shlex.split(f"{command} {table.quick}" if quick else command)
        settings = {}
        while "=" in words[0]:
            name, _, value = words.pop(0).partition("=")
            settings[name] = value
        if words[0] == "python":
            words[0] = sys.executable
        done = subprocess.run(
            words,
            cwd=ROOT,
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise Failed(f"it ended with code {done.returncode}")
        made = written.read_text() if written.exists() else done.stdout
    if columns(made) != table.columns:
        raise Failed(
            f"it prints the columns {columns(made)}, and the page has {table.columns}; change the "
            "table in the page with the benchmark"
        )
    return made


def replaced(text: str, command: str, made: str, made_at: str) -> str:
    """Return the page with another table below one command, and where that was made."""

    def change(match: re.Match[str]) -> str:
        if match["command"] != command:
            return match[0]
        return f"{match['start']}\n{made.strip()}\n\nMade at {made_at}.\n{match['end']}"

    return _MARKED.sub(change, text)


def commit() -> str:
    """Return the commit that is checked out, and whether anything but the page was changed."""
    at = _git("rev-parse", "--short=7", "HEAD").strip()
    others = [line for line in _git("status", "--porcelain").splitlines() if str(PAGE) not in line]
    return f"{at} with changes" if others else at


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    sys.exit(main())
