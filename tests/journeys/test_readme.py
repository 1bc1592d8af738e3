"""What the README prints first runs from top to bottom as it is printed."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests import isolation, services
from tests.contracts import source
from workers.distill.data.builtin import digits

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

README = source.text(Path("README.md"))
USED = ("Makefile", "pyproject.toml", "constraints.txt", "examples")


def block(text: str, language: str = "") -> str:
    """Return the first block of code of a language."""
    found = re.search(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def checkout(folder: Path) -> None:
    """Lay out what the commands use of a checkout whose environment is made."""
    for name in USED:
        place = source.ROOT / name
        copy = shutil.copytree if place.is_dir() else shutil.copy2
        copy(place, folder / name)
        # A pyproject.toml newer than the environment would have it renewed, for this folder.
        os.utime(folder / name, (0, 0))
    (folder / ".venv").symlink_to(sys.prefix)


class TestReadme:
    def test_first_blocks_run_as_printed(self, tmp_path: Path) -> None:
        """Then the program of the student's card says what the registry states, to the image."""
        folder = tmp_path / "checkout"
        folder.mkdir()
        checkout(folder)
        environment = {
            **os.environ,
            "RETORT_PORT": str(services.free_port()),
            "XDG_CONFIG_HOME": str(tmp_path / "home"),
            "OMP_NUM_THREADS": "1",
        }

        def run(*command: str) -> str:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{done.stdout}{done.stderr}"[-3000:]
            return done.stdout

        try:
            run("bash", "-euo", "pipefail", "-c", block(README))
            (folder / "client.py").write_text(block(README, "python"))
            assert "The student reaches" in run(sys.executable, "client.py")
        finally:
            run(sys.executable, "-m", "retort", "down")
        student = folder / "student"
        card = (student / "card.md").read_text()
        (student / "predict.py").write_text(block(card, "python"))
        packages = re.search(r"`pip install (.*)`", card)
        assert packages is not None
        site = isolation.make_site(tmp_path / "site", *packages[1].split())
        record, splits = digits.prepare()
        pictures, labels = splits["test"]
        files = []
        for number, picture in enumerate(pictures.numpy()):
            files.append(tmp_path / f"{number}.png")
            Image.fromarray(picture[0]).save(files[-1])
        answered = isolation.run(
            student / "predict.py", *map(str, files), site=site, folder=tmp_path
        )
        assert answered.returncode == 0, answered.stderr
        names = [line.split("\t")[1] for line in answered.stdout.splitlines()]
        right = sum(
            name == record.classes[label] for name, label in zip(names, labels, strict=True)
        )
        stated = json.loads((student / "config.json").read_text())["scores"]["student"]
        assert right / len(labels) == stated["accuracy"]
        assert right > len(labels) / 2
