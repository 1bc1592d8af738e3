"""The documentation's site builds with every link good, and its commands exist."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from retort.cli import app
from tests.contracts import source

COMMAND = re.compile(r"^(?P<variables>(?:\w+=\S+ )*)retort (?P<rest>[^#\n]*)", re.MULTILINE)
BLOCK = re.compile(r"^```(?:bash|console)?\n(.*?)^```", re.MULTILINE | re.DOTALL)
FETCHED = re.compile(r'<(?:script|img|link)\b[^>]*\b(?:src|href)="(https?://[^"]+)"')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=source.ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


@pytest.mark.slow
class TestSite:
    def test_has_the_generated_pages(self, site: Path) -> None:
        http = (site / "reference" / "http" / "index.html").read_text()
        assert "POST /v1/jobs" in http
        assert "retort submit" in (site / "reference" / "cli" / "index.html").read_text()
        assert "retort.connect" in (site / "reference" / "python" / "index.html").read_text()
        records = list((source.ROOT / "docs" / "decisions").glob("0*.md"))
        listed = (site / "decisions" / "index.html").read_text()
        assert all(record.stem in listed for record in records)

    def test_starts_as_the_readme_does(self, site: Path) -> None:
        assert "make up OPTIONS=--detach" in re.sub(
            "<[^>]*>", "", (site / "start" / "index.html").read_text()
        )

    def test_asks_no_other_host(self, site: Path) -> None:
        fetched = {
            address
            for page in site.rglob("*.html")
            for tag in FETCHED.finditer(page.read_text())
            if 'rel="canonical"' not in tag[0]
            for address in [tag[1]]
        }
        assert fetched == set()


def commands() -> Iterator[tuple[str, str]]:
    """Yield each page with each command line of its blocks, continued lines joined."""
    for path in source.files():
        if path.suffix == ".md" and path.parts[0] in ("docs", "README.md", "CONTRIBUTING.md"):
            for block in BLOCK.findall(source.text(path)):
                for line in COMMAND.finditer(block.replace("\\\n", " ")):
                    yield str(path), f"{line['variables']}{line['rest']}".strip()


def check(words: list[str]) -> None:
    """Parse a command line as the program would, without running it; raise what is wrong."""
    command, name = typer.main.get_command(app.app), "retort"
    context = command.make_context(name, list(words))
    while hasattr(command, "resolve_command"):
        rest = [*vars(context)["_protected_args"], *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)


class TestCommands:
    @pytest.mark.parametrize(("page", "line"), sorted(set(commands())))
    def test_can_be_given_as_printed(
        self, page: str, line: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        words = shlex.split(line)
        while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
            monkeypatch.setenv(*words.pop(0).split("=", 1))
        check(words)

    @pytest.mark.parametrize("line", ["submit --no-such-option x", "distil x", "alias one"])
    def test_would_be_caught(self, line: str) -> None:
        with pytest.raises(Exception, match=r"No such|Missing"):
            check(shlex.split(line))
