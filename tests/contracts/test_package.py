"""The wheel that `make package` builds serves the page; without a built page it says so."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from api import page
from tests.contracts import source

pytestmark = pytest.mark.slow

PACKED = ("api", "models_registry", "retort", "workers", "migrations")
# What is unpacked is served, and nothing of the tree that it was built from.
SERVE = """
import sys
from fastapi import FastAPI
from fastapi.testclient import TestClient
import api.app
from api import page
assert page.FILES.is_relative_to(sys.argv[1]), page.FILES
app = FastAPI()
page.install(app)
answer = TestClient(app).get(sys.argv[2])
assert answer.status_code == 200, answer.text
sys.stdout.write(answer.text)
"""


def built(tree: Path, folder: Path) -> Path:
    """Build the wheel of a tree, unpack it, and return where it lies."""
    options = ["--wheel", "--no-build-isolation", "--quiet", "--offline"]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "uv", "build", *options),
            *("--python", sys.executable, "--out-dir", str(folder), str(tree)),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "unpacked")
    return folder / "unpacked"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the wheel is made from: building leaves files beside it."""
    folder = tmp_path_factory.mktemp("tree")
    for name in PACKED:
        shutil.copytree(
            source.ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__")
        )
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(source.ROOT / name, folder / name)
    return folder


def served(unpacked: Path, path: str) -> str:
    """Return what an API of the unpacked wheel answers, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", SERVE, str(unpacked), path],
        cwd=unpacked,
        env={"PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


class TestWheel:
    def test_serves_the_page_with_all_that_it_names(self, tree: Path, tmp_path: Path) -> None:
        assert (page.FILES / "index.html").exists(), "the page is not built: run `make web`"
        unpacked = built(tree, tmp_path)
        packed = {path.name for path in (unpacked / "api/page_files/assets").iterdir()}
        assert packed == {path.name for path in (page.FILES / "assets").iterdir()}
        assert served(unpacked, "/") == (page.FILES / "index.html").read_text()
        script = next(name for name in packed if name.startswith("index-") and ".js" in name)
        assert served(unpacked, f"/assets/{script}") == (page.FILES / "assets" / script).read_text()

    def test_without_a_built_page_says_how_to_build_it(self, tree: Path, tmp_path: Path) -> None:
        bare = tmp_path / "bare"
        shutil.copytree(
            tree, bare, ignore=shutil.ignore_patterns("page_files", "build", "*.egg-info")
        )
        unpacked = built(bare, tmp_path)
        assert not (unpacked / "api/page_files").exists()
        assert "make web" in served(unpacked, "/")
