"""The commands of the how-to pages and of the README run as they are printed, on small data.

Files are named as the pages name them. Specs are those of `examples/`, trained for an epoch or a
round: what is tried is that commands, names and files fit together, not what is learned. Those of
the README are those of `docs/start.md` too; `test_readme.py` runs the first of them on the examples
as they are, in processes of their own. Here they run in this process, except for those that go on
while others run.
"""

import contextlib
import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import safetensors.torch
import timm
import torch
import yaml
from onnx import helper
from PIL import Image
from typer.testing import CliRunner

from retort import types
from retort.cli import app
from retort.client import Client
from tests.contracts import source, test_site
from tests.journeys import test_detection
from tests.journeys.stacks import ON_EMBEDDED, PATIENCE_SECONDS, Stack
from workers.distill.data.builtin import digits

pytestmark = [pytest.mark.journey, pytest.mark.slow, pytest.mark.timeout(1800)]

HOW_TO = source.ROOT / "docs/how-to"
README = "README"
# Each may need what those before it have made: `ship` a student of the digits, `your-images` a
# teacher of two classes.
PAGES = (
    README,
    "ship",
    "your-teacher",
    "your-images",
    "few-labels",
    "no-data",
    "backbones",
    "detectors",
    "parties",
)
WITHOUT_COMMANDS = {"deploy", "devices"}
RUN = re.compile(r"^(?:\w+=\S+ )*(?:retort|python -m) [^#\n]*", re.MULTILINE)
PARTIES = ("north", "south")
TINY = {"widths": [4, 4, 8, 16]}
TINY_DETECTORS = {
    "detector-alone": test_detection.TEACHER,
    "detector-mimic": test_detection.STUDENT,
}
# `upload model` of the README names this network, whose weights come from `digits-alone`.
WHOLE = "retort/resnet8x4"
EXPORTED = "digits-dkd"
"""What the README makes of it has a report, and leaves as int8, which must lose little of what it
has learned."""
# The how-to pages ask for pictures of 224 pixels and 30 epochs of a spec that is the reader's own.
TINIEST = {"widths": [2, 2, 2, 2]}


def lines(page: str) -> list[str]:
    """Return the command lines of a page's blocks, continued lines joined."""
    if page == README:
        text = source.text(Path("README.md")).split("<!-- --8<-- [start:start] -->")[1]
    else:
        text = (HOW_TO / f"{page}.md").read_text()
    blocks = test_site.BLOCK.findall(text)
    return [line.strip() for block in blocks for line in RUN.findall(block.replace("\\\n", " "))]


def shrunk(spec: dict[str, Any], *, is_exported: bool) -> dict[str, Any]:
    """Return a spec that trains for an epoch or a round, with a small student."""
    method = spec["method"]
    training = {**spec.get("training", {}), "epochs": 6 if is_exported else 1}
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
    if student["network"].startswith("retort/resnet") and student["network"] != WHOLE:
        student = {**student, "arguments": TINY}
    # A ViT looks at pictures of 224 pixels: a few of them, not all of the digits.
    dataset = {"dataset": "pets@latest"} if spec.get("task") == "embedding" else {}
    return {
        **spec,
        **dataset,
        "student": {**student, **TINY_DETECTORS.get(spec["name"], {})},
        "method": method,
        "training": training,
        "baseline": False,
        "report": is_exported,
    }


def shrunk_study(spec: dict[str, Any]) -> dict[str, Any]:
    """Return a study of few jobs, each of them short."""
    spec = {**spec, "training": {**spec["training"], "epochs": 2}, "baseline": False}
    methods = [
        {**one, **({"warmup_epochs": 1} if "warmup_epochs" in one else {})}
        for one in spec["methods"]
    ]
    if "search" not in spec:
        return {**spec, "methods": methods[-1:], "seeds": [0], "report": False}
    pruning = {**spec["search"]["pruning"], "min_epochs": 1}
    search = {**spec["search"], "trials": 2, "confirm_seeds": 1, "pruning": pruning}
    return {**spec, "methods": methods, "search": search, "report": False}


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


def pictures(path: Path, *, each: int) -> None:
    """Write an archive with a folder of pictures for each class, of several sizes."""
    draw = np.random.default_rng(0)
    picture = path.with_name("picture.png")
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("cat", "dog"):
            for number in range(each):
                pixels = draw.integers(0, 256, (100 + number, 120, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(picture)
                archive.write(picture, f"{name}/{number}.png")


def write(path: Path, spec: dict[str, Any]) -> None:
    """Write a spec."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(spec, sort_keys=False))


def write_examples(folder: Path, *, exported: str | None = None) -> None:
    """Write the examples, small ones."""
    for path in (source.ROOT / "examples").rglob("*.yaml"):
        spec = yaml.safe_load(path.read_text())
        if "methods" in spec:
            spec = shrunk_study(spec)
        else:
            spec = shrunk(spec, is_exported=spec["name"] == exported)
        write(folder / path.relative_to(source.ROOT), spec)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Where the reader works on each page: in a checkout, then beside files of their own."""
    checkout, made = (tmp_path_factory.mktemp(name) for name in ("checkout", "reader"))
    write_examples(checkout, exported=EXPORTED)
    write_examples(made)
    # The reader's own spec, for pictures of the reader's own.
    student = {"network": "retort/resnet8", "arguments": TINIEST}
    own = {"name": "own", "student": student, "dataset": "photos@latest", "method": {"name": "ce"}}
    write(made / "job.yaml", {**own, "report": False})
    teacher = timm.create_model("resnet18", num_classes=2)
    safetensors.torch.save_file(teacher.state_dict(), made / "teacher.safetensors")
    graph(made / "teacher.onnx")
    answers(made / "answers.npz")
    pictures(made / "pets.zip", each=10)
    pictures(made / "photos.zip", each=3)
    backbone = timm.create_model("vit_tiny_patch16_224", num_classes=0)
    torch.save(backbone.state_dict(), made / "vit.pth")
    test_detection.archive(made / "street.zip", train=4, others=2)
    for seed, name in enumerate(PARTIES):
        party(made / f"{name}.npz", seed)
    return {page: checkout if page == README else made for page in PAGES}


class Reader:
    """Somebody who types the commands, and fills in what the pages leave open."""

    def __init__(self, stack: Stack, retort: Client) -> None:
        self.stack, self.retort = stack, retort
        self.others = {job.id for job in retort.jobs.list()}
        """Jobs of other journeys with the same service."""
        self.keys: list[str] = []
        self.failed: list[str] = []
        """What went wrong, by line: all of it is told at once."""
        self.clients: list[subprocess.Popen[str]] = []
        self.environment = {
            "RETORT_URL": stack.url,
            "RETORT_API_KEY": stack.api_key,
            "XDG_CONFIG_HOME": str(stack.folder),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(source.ROOT),
        }

    def read(self, page: str, folder: Path) -> None:
        """Run the lines of a page in a folder, to their end."""
        self.folder = folder
        for line in lines(page):
            self.type(line)
        self.finish()

    def type(self, line: str) -> None:
        """Run a line; each party runs its own."""
        if "client join" in line:
            for name, key in zip(PARTIES, self.keys, strict=True):
                own = line.replace("ck_...", key).replace("DIR", f"{name}.npz")
                self.clients.append(self._start(f"{own} --folder client-{name}"))
            return
        words = shlex.split(self._filled(line))
        with contextlib.chdir(self.folder):
            code, said = self._retort(words) if words[0] == "retort" else self._module(words)
        if code != 0:
            self.failed.append(f"{line}\n{said}"[-3000:])
        self.keys += re.findall(r"ck_\w+", said)

    def finish(self) -> None:
        """Wait for the parties, and for jobs that were submitted without waiting for them."""
        for client in self.clients:
            _, told = client.communicate(timeout=PATIENCE_SECONDS)
            if client.returncode != 0:
                self.failed.append(told[-3000:])
        self.clients.clear()
        for job in self.retort.jobs.list():
            if job.id in self.others:
                continue
            ended = self.retort.jobs.wait(job.id, timeout=PATIENCE_SECONDS)
            # A search ends the trials that it does not keep.
            if ended.state != "succeeded" and ended.state_reason != "pruned":
                self.failed.append(f"{ended.name}: {ended.state}, {ended.failure}")

    def _retort(self, words: list[str]) -> tuple[int, str]:
        done = CliRunner(env=self.environment).invoke(app.app, words[1:], prog_name="retort")
        return done.exit_code, f"{done.output}{done.exception or ''}"

    def _module(self, words: list[str]) -> tuple[int, str]:
        assert words[:2] == ["python", "-m"], words
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = importlib.import_module(words[2]).main(words[3:])
        return code, said.getvalue()

    def _start(self, line: str) -> subprocess.Popen[str]:
        words = shlex.split(self._filled(line))
        own = {**os.environ, **self.environment}
        while re.fullmatch(r"[A-Z_]+=\S+", words[0]):
            name, _, value = words.pop(0).partition("=")
            own[name] = value
        assert words[0] == "retort", words
        return subprocess.Popen(
            [sys.executable, "-m", *words],
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
        for place in ("s3://pictures", "file:///srv/pictures"):
            # What is read is a folder of this machine, whatever the page reads.
            line = line.replace(place, self.stack.sources.as_uri())
        return line.replace("http://HOST:8765", self.stack.url)


@pytest.fixture
def reader(stack: Stack, retort: Client) -> Iterator[Reader]:
    made = Reader(stack, retort)
    yield made
    for client in made.clients:
        client.kill()
        client.wait()


class TestPages:
    def test_with_commands_are_all_here(self) -> None:
        written = {path.stem for path in HOW_TO.glob("*.md")}
        assert {*written, README} == {*PAGES, *WITHOUT_COMMANDS}
        assert not any(lines(page) for page in WITHOUT_COMMANDS)
        assert all(lines(page) for page in PAGES)


@ON_EMBEDDED
class TestCommands:
    def test_run_in_order_as_printed(self, reader: Reader, folders: dict[str, Path]) -> None:
        sources = reader.stack.sources
        (sources / "photos").mkdir(parents=True)
        shutil.copy(folders["your-images"] / "photos.zip", sources)
        shutil.unpack_archive(sources / "photos.zip", sources / "photos")
        for page in PAGES:
            reader.read(page, folders[page])
        assert not reader.failed, "\n\n".join(reader.failed)
        for name in PARTIES:
            assert (reader.folder / f"client-{name}" / "model.safetensors").is_file(), name
