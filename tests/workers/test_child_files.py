"""What a child process leaves is read and replaced without following links."""

import os
from pathlib import Path

import pytest

from workers import child_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a working folder beside a secret and a folder that are not its own."""
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "elsewhere").mkdir()
    made = tmp_path / "work"
    (made / "report").mkdir(parents=True)
    (made / "report" / "a.png").write_bytes(b"a")
    return made


def test_reads_files_and_says_what_is_missing(folder: Path) -> None:
    assert child_files.read_below(folder, "report/a.png") == b"a"
    with child_files.open_below(folder, "report/a.png") as file:
        assert Path(file.name) == folder / "report" / "a.png"
    with pytest.raises(FileNotFoundError, match=r"b\.png") as missing:
        child_files.read_below(folder, "report/b.png")
    assert not isinstance(missing.value, child_files.OddFile)


@pytest.mark.parametrize(
    "name", ["link", "links/secret", "../secret", "pipe", "report", "/etc/passwd", "", "loop/x"]
)
def test_opens_nothing_else(folder: Path, name: str) -> None:
    (folder / "link").symlink_to("../secret")
    (folder / "links").symlink_to("..")
    (folder / "loop").symlink_to("loop")
    os.mkfifo(folder / "pipe")
    with pytest.raises(child_files.OddFile):
        child_files.read_below(folder, name)


def test_reads_json_as_a_database_takes_it(folder: Path) -> None:
    """A damaged or taken-over child may leave texts that PostgreSQL refuses."""
    (folder / "plan.json").write_text('{"na\\u0000me": ["a\\u0000b", "\\ud800", 1, null]}')
    assert child_files.json_below(folder, "plan.json") == {
        "na\ufffdme": ["a\ufffdb", "\ufffd", 1, None]
    }
    (folder / "plan.json").write_text("{")
    with pytest.raises(ValueError, match="Expecting"):
        child_files.json_below(folder, "plan.json")


def test_replaces_a_link_and_not_what_it_leads_to(folder: Path) -> None:
    (folder / "card.md").symlink_to("../secret")
    child_files.write_below(folder, "card.md", b"card")
    assert (folder / "card.md").read_bytes() == b"card"
    assert not (folder / "card.md").is_symlink()
    assert (folder.parent / "secret").read_text() == "secret"
    (folder / "out").symlink_to("../elsewhere")
    with pytest.raises(child_files.OddFile):
        child_files.write_below(folder, "out/card.md", b"card")
    with (
        pytest.raises(child_files.OddFile),
        child_files.resolved(folder, folder / "out") as path,
    ):
        (path / "x").touch()
    assert not list((folder.parent / "elsewhere").iterdir())
    with child_files.resolved(folder, folder / "report") as path:
        (path / "x").touch()
    assert (folder / "report" / "x").exists()
