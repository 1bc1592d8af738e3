"""The built page is small and self-contained, and its lock file names no place."""

import gzip
import re
from pathlib import Path

import pytest

from api import page
from tests.contracts import source

FIRST_PAINT_BYTES = 250 * 1024
PACKED = {".js", ".css", ".html", ".svg"}


@pytest.fixture(scope="module")
def built() -> Path:
    """The folder of the built page."""
    assert (page.FILES / "index.html").exists(), "the page is not built: run `make web`"
    return page.FILES


def sent_bytes(path: Path) -> int:
    """Return how many bytes of a file travel."""
    content = path.read_bytes()
    return len(gzip.compress(content)) if path.suffix in PACKED else len(content)


class TestBuiltPage:
    def test_is_small_up_to_the_first_paint(self, built: Path) -> None:
        index = (built / "index.html").read_text()
        named = re.findall(r'(?:src|href)="\./(assets/[^"]+)"', index)
        assert any(name.endswith(".js") for name in named)
        assert any(name.endswith(".css") for name in named)
        font = next((built / "assets").glob("inter-latin-wght-*.woff2"))
        files = [built / "index.html", font, *(built / name for name in named)]
        assert sum(map(sent_bytes, files)) < FIRST_PAINT_BYTES

    def test_has_nothing_inline_and_nothing_from_elsewhere(self, built: Path) -> None:
        index = (built / "index.html").read_text()
        assert "://" not in index
        assert not re.search(r"<style|<script(?![^>]*\bsrc=)|\son\w+=|\sstyle=", index)
        for style in (built / "assets").glob("*.css"):
            assert not re.search(r"@import|url\((?!['\"]?\./)", style.read_text()), style.name


class TestLockFile:
    def test_names_packages_and_digests_and_no_place(self) -> None:
        text = source.text(Path("web/package-lock.json"))
        assert "://" not in text
        assert text.count('"integrity": "sha512-') > 10
