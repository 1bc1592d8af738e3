"""`make` explains itself, refuses an old Python clearly, and always checks before it tests."""

import re
import subprocess
from pathlib import Path

import pytest

from tests import waiting
from tests.contracts import source

TARGETS = [
    "help",
    "demo",
    "test",
    "test-fast",
    "fuzz",
    "drill",
    "check",
    "flower",
    "gpu",
    "docs",
    "catalog",
    "web",
    "package",
    "measurements",
    "up",
    "clean",
]


def make(*arguments: str, folder: Path = source.ROOT) -> subprocess.CompletedProcess[str]:
    """Run make on the project's Makefile in a folder."""
    return subprocess.run(
        ["make", "-f", str(source.ROOT / "Makefile"), *arguments],
        cwd=folder,
        env=source.environment(),
        capture_output=True,
        text=True,
        timeout=waiting.PATIENCE_SECONDS,
        check=False,
    )


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A folder with what the environment is made from, and no environment."""
    for name in ("pyproject.toml", "constraints.txt"):
        (tmp_path / name).write_text(source.text(Path(name)))
    return tmp_path


class TestMakefile:
    @pytest.mark.parametrize("target", TARGETS)
    def test_knows(self, target: str) -> None:
        assert make("--dry-run", target).returncode == 0

    def test_help_lists_every_target_and_is_the_default(self, bare: Path) -> None:
        (bare / "Makefile").write_text(source.text(Path("Makefile")))
        shown = make(folder=bare).stdout
        assert re.findall(r"^  make (\S+) +\S", shown, re.MULTILINE) == TARGETS

    def test_checks_before_it_tests(self) -> None:
        planned = make("--dry-run", "test").stdout
        for tool in ("ruff check", "ruff format --check", "mypy", "lint-imports"):
            assert planned.index(f".venv/bin/{tool}") < planned.index("-m pytest")

    @pytest.mark.parametrize(
        ("candidate", "program"),
        [
            ("missing", None),
            ("shim", "#!/bin/sh\nexit 127\n"),
            ("old", "#!/bin/sh\nexec python3 -c 'import sys; sys.exit(True)'\n"),
        ],
    )
    def test_says_what_to_do_without_a_python(
        self, bare: Path, candidate: str, program: str | None
    ) -> None:
        script = bare / candidate
        if program:
            script.write_text(program)
            script.chmod(0o755)
        done = make("check", f"PYTHONS={script}", folder=bare)
        assert done.returncode != 0
        assert "no Python 3.11 or newer" in done.stderr
        assert not (bare / ".venv").exists()

    def test_ci_runs_what_a_developer_runs(self) -> None:
        assert source.text(Path(".ci/run")).splitlines()[-1] == "exec make test"
        assert (source.ROOT / ".ci/run").stat().st_mode & 0o111


class TestQuickTests:
    def test_are_all_but_those_of_a_list_that_names_no_other(self) -> None:
        """A name that no test has any more would let its successor into `make test-fast`."""
        names = source.text(Path("tests/medium.txt")).split()
        files = {path: source.ROOT / path for path in {name.partition("::")[0] for name in names}}
        texts = {path: file.read_text() if file.exists() else "" for path, file in files.items()}
        gone = [
            name
            for name in names
            if f"def {name.rpartition('::')[2]}(" not in texts[name.partition("::")[0]]
        ]
        assert not gone, "run pytest with --write-medium, which writes tests/medium.txt anew"
