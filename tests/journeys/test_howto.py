"""The commands of how-to pages run as they are printed, in order, on small data.

Files are named as the pages name them. Specs are those of `examples/`, trained for an epoch or a
round: what is tried is that commands, names and files fit together, not what is learned. The
commands of `docs/start.md` are those of the README, which `test_readme.py` runs.
"""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import yaml
from onnx import helper

from retort import types
from retort.client import Client
from tests.contracts import source, test_site
from tests.journeys.stacks import ON_EMBEDDED, PATIENCE_SECONDS, Stack
from workers.distill.data.builtin import digits

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(900)]

HOW_TO = source.ROOT / "docs/how-to"
# Each may need what those before it have made.
PAGES = ("your-teacher", "few-labels", "no-data", "parties")
WITHOUT_COMMANDS = {"deploy", "devices"}
# They train on pictures of hundreds of pixels, or export several times, which takes minutes:
# `test_site.py` parses their commands, and other journeys do the same with smaller files.
LONG = {"your-images", "backbones", "detectors", "ship"}
RUN = re.compile(r"^(?:\w+=\S+ )*(?:retort|python -m) [^#\n]*", re.MULTILINE)
PARTIES = ("north", "south")
TINY = {"widths": [4, 4, 8, 16]}


def lines(page: str) -> list[str]:
    """Return the command lines of a page's blocks, continued lines joined."""
    text = (HOW_TO / f"{page}.md").read_text()
    blocks = test_site.BLOCK.findall(text)
    return [line.strip() for block in blocks for line in RUN.findall(block.replace("\\\n", " "))]


def shrunk(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a spec that trains for an epoch or a round, with a small student."""
    method = spec["method"]
    training = {**spec.get("training", {}), "epochs": 1}
    if "federation" in method:
        federation = method["federation"]
        rounds = {} if federation["clients"] == "remote" else {"clients": 2, "rounds": 1}
        method = {**method, "federation": {**federation, **rounds, "local_epochs": 1}}
        if "rounds" in method["federation"]:
            training.pop("epochs")
    if "warmup_epochs" in method:
        method = {**method, "warmup_epochs": 1}
    if "synthesis" in method:
        least = {"steps": 1, "student_steps": 1, "warmup_calls": 1}
        method = {**method, "synthesis": {**method["synthesis"], **least}}
    student = spec["student"]
    if student["network"].startswith("retort/resnet"):
        student = {**student, "arguments": TINY}
    return {
        **spec,
        "student": student,
        "method": method,
        "training": training,
        "baseline": False,
        "report": False,
    }


def graph(path: Path) -> None:
    """Write a linear classifier of the digits as ONNX."""
    images = helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])
    logits = helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 10])
    draw = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(draw.normal(size=(64, 10)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["logits"]),
    ]
    made = helper.make_model(
        helper.make_graph(nodes, "linear", [images], [logits], [weight]),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    onnx.save(made, path)


def answers(path: Path) -> None:
    """Write predictions of all digits."""
    record, _ = digits.prepare()
    draw = np.random.default_rng(0)
    np.savez(
        path,
        **{  # type: ignore[arg-type]  # NumPy's stub takes keywords for its own options
            split: draw.normal(size=(count, 10)).astype(np.float32)
            for split, count in record.sizes().items()
        },
    )


def party(path: Path, seed: int) -> None:
    """Write the images of a party."""
    _, splits = digits.prepare()
    images, labels = splits["train"]
    chosen = np.random.default_rng(seed).permutation(len(images))[:60]
    np.savez(path, x_train=images[chosen].numpy(), y_train=labels[chosen].numpy())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the reader works: with the files that the pages speak of, and small examples."""
    made = tmp_path_factory.mktemp("reader")
    (made / "examples").mkdir()
    for path in (source.ROOT / "examples").glob("*.yaml"):
        spec = shrunk(yaml.safe_load(path.read_text()))
        (made / "examples" / path.name).write_text(yaml.safe_dump(spec, sort_keys=False))
    teacher = timm.create_model("resnet18", num_classes=2)
    safetensors.torch.save_file(teacher.state_dict(), made / "teacher.safetensors")
    graph(made / "teacher.onnx")
    answers(made / "answers.npz")
    for seed, name in enumerate(PARTIES):
        party(made / f"{name}.npz", seed)
    return made


class Reader:
    """Somebody who types the commands, and fills in what the pages leave open."""

    def __init__(self, stack: Stack, retort: Client, folder: Path) -> None:
        self.stack, self.retort, self.folder = stack, retort, folder
        self.keys: list[str] = []
        self.failed: list[str] = []
        """What went wrong, by line: all of it is told at once."""
        self.clients: list[subprocess.Popen[str]] = []
        self.environment = {
            **os.environ,
            "RETORT_URL": stack.url,
            "RETORT_API_KEY": stack.api_key,
            "XDG_CONFIG_HOME": str(stack.folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(source.ROOT),
        }

    def type(self, line: str) -> None:
        """Run a line; each party runs its own."""
        if "client join" in line:
            for name, key in zip(PARTIES, self.keys, strict=True):
                own = line.replace("ck_...", key).replace("DIR", f"{name}.npz")
                self.clients.append(self._start(f"{own} --folder client-{name}"))
            return
        process = self._start(line)
        said, told = process.communicate(timeout=PATIENCE_SECONDS)
        if process.returncode != 0:
            self.failed.append(f"{line}\n{said}{told}"[-3000:])
        self.keys += re.findall(r"ck_\w+", said)

    def finish(self) -> None:
        """Wait for the parties."""
        for client in self.clients:
            _, told = client.communicate(timeout=PATIENCE_SECONDS)
            if client.returncode != 0:
                self.failed.append(told[-3000:])
        self.clients.clear()

    def _start(self, line: str) -> subprocess.Popen[str]:
        words = shlex.split(self._filled(line))
        own = dict(self.environment)
        while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
            name, _, value = words.pop(0).partition("=")
            own[name] = value
        words = [*("-m", "retort"), *words[1:]] if words[0] == "retort" else words[1:]
        return subprocess.Popen(
            [sys.executable, *words],
            cwd=self.folder,
            env=own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _filled(self, line: str) -> str:
        if re.search(r"\bJOB\b", line):
            line = re.sub(r"\bJOB\b", next(self.retort.jobs.list()).id, line)
        if "FEDERATION" in line:
            found: types.Federation = next(self.retort.federations.list())
            line = line.replace("FEDERATION", found.id)
        return line.replace("http://HOST:8765", self.stack.url)


@pytest.fixture
def reader(stack: Stack, retort: Client, folder: Path) -> Iterator[Reader]:
    made = Reader(stack, retort, folder)
    yield made
    for client in made.clients:
        client.kill()
        client.wait()


class TestPages:
    def test_with_commands_are_all_here(self) -> None:
        written = {path.stem for path in HOW_TO.glob("*.md")}
        assert written == {*PAGES, *WITHOUT_COMMANDS, *LONG}
        assert not any(lines(page) for page in WITHOUT_COMMANDS)
        assert all(lines(page) for page in (*PAGES, *LONG))


@ON_EMBEDDED
class TestCommands:
    def test_run_in_order_as_printed(self, reader: Reader) -> None:
        for page in PAGES:
            for line in lines(page):
                reader.type(line)
            reader.finish()
        assert not reader.failed, "\n\n".join(reader.failed)
        for name in PARTIES:
            assert (reader.folder / f"client-{name}" / "model.safetensors").is_file(), name
