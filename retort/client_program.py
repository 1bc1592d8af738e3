"""`retort client join`: a client of a federation that trains on this machine.

The owner's data stays where it is; a converted copy, the model and everything else of the client
lie in a folder of its own. The engine (`workers.distill`) trains in a child process and writes what
the method sends into that folder; this process alone talks to the server, and only calls out. It
may be killed at any time: started again with the same folder and key, it goes on.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retort import errors, federation, types

CLIENT_MODULE, CONVERSION_MODULE = (
    "workers.distill.run.client_process",
    "workers.distill.inspection.uploads",
)
SPLITS = ("train", "training")
_STOP_SECONDS = 10.0

Say = Callable[[str], object]
Json = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the owner has chosen."""

    # Where the owner's images are: class folders with pictures, an NPZ file, or a prepared set.
    data: Path
    folder: Path
    accelerator: str = "any"
    sends_metrics: bool = True


def run(member: federation.Member, options: Options, say: Say) -> Json:
    """Take part until the last round is over; return accuracy and path of the client's model.

    Raises: errors.TrainingFailed, errors.JobFailed, errors.ProblemError, errors.LocalFileProblem.
    """
    with locked(options.folder):
        return _run(member, options, say)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a client's folder; the kernel releases that of a killed process.

    Raises: errors.LocalFileProblem when another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("w")
    except OSError as error:
        raise errors.LocalFileProblem(folder, error.strerror or str(error)) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise errors.LocalFileProblem(
                folder, "another client works in this folder: give each its own --folder"
            ) from error
        yield


def _run(member: federation.Member, options: Options, say: Say) -> Json:
    place = member.look()
    say(f"client {place.name!r} of {place.federation}: {place.method}, {place.rounds} rounds")
    plan = _plan(member, options.folder, place, say)
    Conversion(options, plan, say).run()
    with Engine(options) as engine:
        ready = engine.ready()
        try:
            member.join(samples=ready["samples"], classes=len(plan["classes"]))
        except errors.ProblemError as error:
            if error.code != "federation_ended":
                raise
            say(f"{error.detail}; fetching its last consensus")
            member.membership = place
        say(f"joined with {ready['samples']:,} images to train on")
        _rounds(member, engine, options.folder, say)
        last = fetch(member, options.folder, place.rounds)
        finished = engine.order("finished", do="finish", consensus=last)
    say(f"done: accuracy {finished['accuracy']:.3f} on the own validation images")
    return {"accuracy": finished["accuracy"], "model": str(options.folder / finished["path"])}


def _plan(member: federation.Member, folder: Path, place: types.Membership, say: Say) -> Json:
    """Wait for the plan, and put it into the folder with the open set."""
    if not member.situation().is_planned:
        say("waiting for the job to start")
    planned = member.plan()
    _write(folder / "plan.json", json.dumps(planned.plan).encode())
    _write(folder / "membership.json", json.dumps({"client": place.client}).encode())
    if planned.open_set is not None:
        member.save_open_set(folder / "open_set.safetensors", sha256=planned.open_set)
    return planned.plan


def _rounds(member: federation.Member, engine: "Engine", folder: Path, say: Say) -> None:
    while (number := member.next_round()) is not None:
        start = fetch(member, folder, number - 1)
        reply = engine.order("reply", do="train", round=number, start=start)
        content = (folder / reply["path"]).read_bytes()
        if member.send(number, content):
            say(f"round {number} of {member.rounds}: sent {len(content):,} bytes")


def fetch(member: federation.Member, folder: Path, number: int) -> str:
    """Put what the server has made of a round into the folder, and return its path there."""
    path = folder / "received" / f"{number:04d}.safetensors"
    if not path.exists():
        _write(path, member.consensus_bytes(number))
    return str(path.relative_to(folder))


class Conversion:
    """The owner's images in the form that the engine reads, converted once."""

    def __init__(self, options: Options, plan: Json, say: Say) -> None:
        self._data = options.data
        self._folder = options.folder
        self._plan = plan
        self._say = say

    def run(self) -> None:
        """Convert the images, unless that was done before and they have not changed."""
        target, mark = self._folder / "dataset", self._folder / "source.json"
        source = self._source()
        if mark.exists() and json.loads(mark.read_text()) == source and target.exists():
            return
        if (self._data / "dataset.json").exists():
            if target.is_symlink():
                target.unlink()
            target.symlink_to(self._data.resolve(), target_is_directory=True)
        else:
            self._convert()
        _write(mark, json.dumps(source).encode())

    def _convert(self) -> None:
        self._say(f"converting the images of {self._data}")
        scratch = self._folder / "conversion"
        scratch.mkdir(exist_ok=True)
        upload = scratch / "upload"
        upload.unlink(missing_ok=True)
        arrays = _npz(self._data)
        if arrays is not None:
            upload.symlink_to(arrays.resolve())
        else:
            pack(self._data, upload, self._plan["classes"])
        size = self._plan["input"]
        request = {
            "kind": "dataset",
            "format": "npz" if arrays is not None else "imagefolder",
            "filename": self._data.name,
            "input": {name: size[name] for name in ("channels", "height", "width")},
        }
        _write(scratch / "request.json", json.dumps(request).encode())
        report = _last_line(
            _run_engine(
                CONVERSION_MODULE,
                [str(scratch / "request.json"), "--workdir", str(scratch)],
                log=self._folder / "engine.log",
            )
        )
        upload.unlink()
        if report["type"] == "failure":
            raise errors.TrainingFailed(report["code"], report["message"])
        for note in report["dataset"].get("notes", ()):
            self._say(note)
        target = self._folder / "dataset"
        if target.is_symlink():
            target.unlink()
        elif target.exists():
            shutil.rmtree(target)
        (scratch / "dataset").rename(target)

    def _source(self) -> Json:
        """Return what tells whether the owner's files have changed."""
        digest = hashlib.sha256()
        for path in _files(self._data):
            stat = path.stat()
            digest.update(f"{path}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
        return {"files": digest.hexdigest(), "classes": self._plan["classes"]}


class Engine:
    """The engine's client in a child process, which ends with this one."""

    def __init__(self, options: Options) -> None:
        arguments = [str(options.folder), "--accelerator", options.accelerator]
        if not options.sends_metrics:
            arguments.append("--no-metrics")
        self._log_path = options.folder / "engine.log"
        self._log = self._log_path.open("ab")
        self._child = subprocess.Popen(
            # A killed program must not leave an engine that writes into the folder of the next.
            [
                sys.executable,
                "-m",
                "workers.parent_death",
                str(os.getpid()),
                CLIENT_MODULE,
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        for stream in (self._child.stdin, self._child.stdout):
            if stream is not None:
                stream.close()  # the child ends when its input does
        try:
            self._child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._log.close()

    def ready(self) -> Json:
        """Wait until the client has read its images, and return what it says of them."""
        return self._answer("ready")

    def order(self, answer: str, **order: object) -> Json:
        """Give an order, and return the answer of this type.

        Raises: errors.TrainingFailed.
        """
        if self._child.stdin is None:
            raise errors.TrainingFailed("engine_crashed", "the engine was not started")
        try:
            self._child.stdin.write(json.dumps(order).encode() + b"\n")
            self._child.stdin.flush()
        except BrokenPipeError as error:
            raise self._crashed() from error
        return self._answer(answer)

    def _answer(self, wanted: str) -> Json:
        for line in self._child.stdout or ():
            report: Json = json.loads(line)
            if report["type"] == wanted:
                return report
            if report["type"] == "failure":
                raise errors.TrainingFailed(report["code"], report["message"])
        raise self._crashed()

    def _crashed(self) -> errors.TrainingFailed:
        code = self._child.wait()
        return errors.TrainingFailed(
            "engine_crashed",
            f"the engine ended with exit code {code}; {self._log_path} says more (is Retort "
            "installed with its worker's extra?)",
        )


def pack(folder: Path, target: Path, classes: Sequence[str]) -> None:
    """Pack a folder of class folders, with an empty one for each class that it lacks.

    Raises: errors.LocalFileProblem where there is no folder.
    """
    if not folder.is_dir():
        raise errors.LocalFileProblem(
            folder,
            "there is no such folder: give one with a folder of pictures for each class, an NPZ "
            "file, or a prepared data set",
        )
    below = next((name for name in SPLITS if (folder / name).is_dir()), "")
    with zipfile.ZipFile(target, "w") as archive:
        for path in _files(folder):
            archive.write(path, path.relative_to(folder))
        for name in classes:
            if not (folder / below / name).is_dir():
                archive.mkdir(str(Path(below) / name))


def _npz(path: Path) -> Path | None:
    """Return the NPZ file that `path` is, or alone holds."""
    if path.is_file():
        return path
    found = [file for file in _files(path) if file.suffix == ".npz"]
    return found[0] if len(found) == 1 == len(list(_files(path))) else None


def _files(folder: Path) -> Iterator[Path]:
    if folder.is_file():
        yield folder
        return
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _run_engine(module: str, arguments: Sequence[str], *, log: Path) -> bytes:
    with log.open("ab") as errors_of_engine:
        done = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors_of_engine,
            check=False,
        )
    if not done.stdout:
        raise errors.TrainingFailed(
            "engine_crashed",
            f"the engine ended with exit code {done.returncode}; {log} says more (is Retort "
            "installed with its worker's extra?)",
        )
    return done.stdout


def _last_line(output: bytes) -> Json:
    report: Json = json.loads(output.splitlines()[-1])
    return report


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        raise errors.LocalFileProblem(path, error.strerror or str(error)) from error
