"""Two training loops, each in a process of its own, that take turns on one machine.

Whatever else the machine does then disturbs both alike: what counts is the median of the ratios of
turns beside each other, and the spread is told. A benchmark is started as
`python -m benchmarks.<name> --serve ...` for each loop, and there calls `answer`.
"""

import contextlib
import json
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from workers.distill.config.job import JobConfig
from workers.distill.methods.base import Moment
from workers.distill.run import build, group, prepare, supervised, teacher_factory
from workers.distill.run.context import JobRequest
from workers.distill.run.group import GroupStudent, RandomState
from workers.distill.runtime import events, signals
from workers.distill.runtime.device import keep_memory, wait_for
from workers.distill.training import compilation, loop
from workers.distill.training.loop import StudentTrainer
from workers.distill.training.progress import ProgressReporter
from workers.distill.training.state import TrainState
from workers.distill.training.throughput import ThroughputMeter

KINDS = ("plain", "retort")

# -- in the process of a loop ----------------------------------------------------------------------


def answer(make: Callable[[], Iterator[None]], device: torch.device) -> None:
    """Make as many steps as each line of standard input asks for, and answer with the seconds.

    `make` returns an iterator that makes a step each time it is advanced.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    steps = make()
    for _ in range(2):
        next(steps)
    wait_for(device)
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            next(steps)
        wait_for(device)
        answers.write(json.dumps(time.perf_counter() - start) + "\n")
        answers.flush()


def in_turns(work: Callable[[Callable[[], None]], None]) -> Iterator[None]:
    """Run `work` in a thread of its own, and stop it each time it calls what it is given."""
    go: queue.Queue[None] = queue.Queue()
    done: queue.Queue[BaseException | None] = queue.Queue()

    def after() -> None:
        done.put(None)
        go.get()

    def run() -> None:
        try:
            go.get()
            work(after)
        except BaseException as error:
            done.put(error)

    threading.Thread(target=run, daemon=True).start()
    while True:
        go.put(None)
        failure = done.get()
        if failure is not None:
            raise failure
        yield


class Turns(ProgressReporter):
    """A progress reporter that calls `after` after every step of all students."""

    def __init__(self, *arguments: Any, after: Callable[[], None], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._after = after

    def after_step(self, course: TrainState, moment: Moment, images: int) -> None:
        """Report, then wait for the next turn."""
        super().after_step(course, moment, images)
        self._after()


def train(recipes: Sequence[JobConfig], folder: Path, after: Callable[[], None]) -> None:
    """Train side by side, as the engine does, and call `after` after every step of all students.

    What a step costs besides its arithmetic includes that of the reports, written to nowhere.
    """
    keep_memory()
    stop = signals.Stop()
    nowhere = events.Reporter(os.open(os.devnull, os.O_WRONLY))
    shared = supervised.LOOP.prepare(recipes[0], folder, stop, strong=False)
    compiles = compilation.choose_compile(recipes[0].training, shared.device, 10**6)
    students: list[GroupStudent] = []
    contexts = [
        prepare.job_context(shared, JobRequest(config, folder / str(place), nowhere))
        for place, config in enumerate(recipes)
    ]
    built = [build.build(context, "student", compiles=compiles) for context in contexts]
    preprocessor = shared.teacher_preprocessor or contexts[0].student_preprocessor
    teachers = teacher_factory.TeacherFactory(
        shared,
        [state.method for state, _ in built],
        (lambda network: build.try_compile(contexts[0], network, preprocessor))
        if compiles
        else None,
    )
    for context, (state, step) in zip(contexts, built, strict=True):
        reports = Turns(
            nowhere,
            folder=context.workdir / "checkpoints",
            digest="",
            steps_before=0,
            steps_overall=state.steps,
            finished={},
            after=after if state is built[-1][0] else lambda: None,
        )
        step.teacher = teachers.make(context, state.method)
        trainer = StudentTrainer(state, step, reports)
        students.append(GroupStudent(trainer, RandomState(apart=len(built) > 1)))
    teachers.fill_caches([nowhere], step=0, share=0.0)
    throughput = ThroughputMeter(shared.device, shared.precision, teachers.arithmetic())
    if len(students) == 1:
        loop.train(students[0].trainer, stop=stop, throughput=throughput)
        return
    group.train(
        students,
        stop=stop,
        throughput=throughput,
        # No failure may pass for a fast step.
        isolate_failure=lambda _student: contextlib.nullcontext(),
        on_finished=lambda _students: None,
    )


# -- in the benchmark ------------------------------------------------------------------------------


class Server:
    """One of the two loops in its process."""

    def __init__(self, served: Sequence[str], threads: int) -> None:
        """Start a module with `--serve` and these arguments; it is ready when this returns."""
        # Libraries read the number of threads when they are loaded.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        module, *arguments = served
        self._process = subprocess.Popen(
            [sys.executable, "-m", module, "--serve", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        began = time.perf_counter()
        self._answer()
        self.ready_seconds = time.perf_counter() - began

    def seconds(self, steps: int) -> float:
        """Make steps, and return how long they took."""
        if self._process.stdin is None:
            raise RuntimeError("the loop was started without a way to ask it")
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        # Closes the pipes as well.
        self._process.communicate()

    def _answer(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            code = self._process.wait()
            self.end()
            raise RuntimeError(f"a loop ended with code {code}; see above")
        return line


def take(
    served: Mapping[str, Sequence[str]],
    *,
    threads: int,
    pairs: int,
    seconds: float,
    images: Mapping[str, int],
) -> dict[str, Any]:
    """Let the plain loop and Retort's take turns, each first as often as the other.

    `served` is what starts each of them, `images` how many images a step of each learns from.
    """
    servers: dict[str, Server] = {}
    try:
        for kind in KINDS:
            servers[kind] = Server(served[kind], threads)
        # A turn lasts equally long for both: what disturbs the machine then disturbs both alike.
        steps = {
            kind: max(2, round(seconds / max(server.seconds(2) / 2, 1e-9)))
            for kind, server in servers.items()
        }
        rates: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for turn in range(pairs):
            for kind in KINDS if turn % 2 == 0 else reversed(KINDS):
                rates[kind].append(steps[kind] * images[kind] / servers[kind].seconds(steps[kind]))
    finally:
        for server in servers.values():
            server.end()
    ratios = [ours / theirs for ours, theirs in zip(rates["retort"], rates["plain"], strict=True)]
    return {
        "plain_images_per_second": spread(rates["plain"]),
        "retort_images_per_second": spread(rates["retort"]),
        "ratio": spread(ratios),
        "steps_a_turn": steps,
        "retort_ready_seconds": round(servers["retort"].ready_seconds, 1),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, smallest and largest."""
    found = {"median": statistics.median(values), "least": min(values), "most": max(values)}
    return {name: round(value, 3) for name, value in found.items()}
