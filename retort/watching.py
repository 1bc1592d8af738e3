"""Follow a job in the terminal: a bar on a terminal, plain lines at intervals elsewhere.

Events of the stream are shown as they come. Progress is polled, which works without the stream too.
"""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol, TypeVar

import httpx
import rich.console
import rich.progress

from retort import client, errors, types

POLL_SECONDS = 2.0
LINE_SECONDS = 10.0
PATIENCE_SECONDS = 120.0
LOSS_KEYS = ("loss/total", "baseline/loss/total")
Shown = TypeVar("Shown", types.Job, types.Study)


@dataclass(frozen=True)
class ProgressSnapshot:
    """What there is to show of a job at one moment."""

    state: str
    progress: float
    phase: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    metric: str | None = None
    """The metric that decides, such as `accuracy`."""
    score: float | None = None
    """Its last value on the validation split."""
    images_per_second: float | None = None
    remaining_seconds: float | None = None

    def details(self) -> str:
        """Return all but state and progress in a few words."""
        words = [self.phase or ""]
        if self.epoch is not None:
            words.append(f"epoch {self.epoch}" + (f"/{self.epochs}" if self.epochs else ""))
        if self.score is not None:
            words.append(f"validation {self.metric} {self.score:.3f}")
        if self.images_per_second is not None:
            words.append(f"{self.images_per_second:,.0f} images/s")
        if self.remaining_seconds is not None:
            words.append(f"{clock(self.remaining_seconds)} left")
        return ", ".join(word for word in words if word)


class View(Protocol):
    """Shows snapshots and messages."""

    def show(self, snapshot: ProgressSnapshot) -> None:
        """Show the state and progress of the job."""

    def say(self, text: str) -> None:
        """Show one line that stays."""

    def close(self) -> None:
        """Restore the terminal."""


class Bar:
    """A progress bar, for terminals."""

    def __init__(self, console: rich.console.Console, title: str) -> None:
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(bar_width=30),
            rich.progress.TextColumn("{task.percentage:>3.0f} %", markup=False),
            rich.progress.TextColumn("{task.fields[details]}", markup=False),
            console=console,
        )
        self._task = self._progress.add_task(title, total=1.0, details="")
        self._progress.start()

    def show(self, snapshot: ProgressSnapshot) -> None:
        """Show the state and progress of the job."""
        self._progress.update(
            self._task,
            description=snapshot.state,
            completed=snapshot.progress,
            details=snapshot.details(),
        )

    def say(self, text: str) -> None:
        """Show one line that stays."""
        self._progress.console.print(
            errors.one_line(text), markup=False, highlight=False, soft_wrap=True
        )

    def close(self) -> None:
        """Restore the terminal."""
        self._progress.stop()


class Lines:
    """Plain lines: at each change of state, and else every few seconds; for logs and pipes."""

    def __init__(self, console: rich.console.Console) -> None:
        self._console = console
        self._last: ProgressSnapshot | None = None
        self._at = 0.0

    def show(self, snapshot: ProgressSnapshot) -> None:
        """Show the state and progress of the job."""
        moved = self._last is None or self._last.state != snapshot.state
        due = time.monotonic() - self._at >= LINE_SECONDS and snapshot != self._last
        if moved or due:
            self._last, self._at = snapshot, time.monotonic()
            self.say(f"{snapshot.state} {100 * snapshot.progress:.0f} % {snapshot.details()}")

    def say(self, text: str) -> None:
        """Show one line that stays."""
        self._console.print(errors.one_line(text), markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        """Restore the terminal."""


def view(console: rich.console.Console, title: str) -> View:
    """Return a bar if there is a terminal to draw it on, lines if not."""
    return Bar(console, title) if console.is_terminal else Lines(console)


def follow(retort: client.Client, job_id: str, shown: View) -> types.Job:
    """Show a job until it ends, and return it."""
    job = retort.jobs.get(job_id)
    feed = _Feed(retort, job_id)
    try:
        while not job.is_final:
            shown.show(snapshot_of(retort, job))
            for event in feed.take(POLL_SECONDS):
                if event.type == "job.warning":
                    shown.say(f"warning: {event.data.get('message', event.data)}")
            job = _read_with_retries(lambda: retort.jobs.get(job_id), shown, "job")
        shown.show(snapshot_of(retort, job))
        return job
    finally:
        feed.stop()


def follow_study(retort: client.Client, study_id: str, shown: View) -> types.Study:
    """Show a study until all of its jobs have ended, and return it."""
    study = retort.studies.get(study_id)
    told: set[str] = set()
    while True:
        counts = ", ".join(f"{count} {state}" for state, count in study.jobs.items())
        search = study.search
        if search is not None:
            counts = search_words(search)
            if search.message and search.message not in told:
                told.add(search.message)
                shown.say(search.message)
        shown.show(ProgressSnapshot(state=study.state, progress=study.progress, phase=counts))
        if study.is_final:
            return study
        time.sleep(POLL_SECONDS)
        study = _read_with_retries(lambda: retort.studies.get(study_id), shown, "study")


def search_words(search: types.Search) -> str:
    """Return how far a search is in a few words: trials by state, the best so far, its phase."""
    ended = sum(count for state, count in search.trials.items() if state != "running")
    words = [f"{ended} of {search.planned_trials} trials"]
    words += [
        f"{search.trials[state]} {state}"
        for state in ("running", "pruned", "failed")
        if search.trials.get(state)
    ]
    if search.best is not None:
        words.append(
            f"best: trial {search.best.trial}, validation {search.objective} "
            f"{search.best.value:.4g}"
        )
    if search.phase == "confirming":
        words.append("comparing it with the default settings")
    return ", ".join(words)


def snapshot_of(retort: client.Client, job: types.Job) -> ProgressSnapshot:
    """Gather what there is to show of a job."""
    phase, epoch = None, None
    if job.state == "running":
        phase, epoch = _phase_and_epoch(retort, job.id)
    prefix = "baseline/" if phase == "baseline" else ""
    live = job.state in {"running", "pausing", "cancelling"}
    return ProgressSnapshot(
        state=job.state,
        progress=1.0 if job.state == "succeeded" else job.progress,
        phase=phase if phase == "baseline" else _waiting_for(job),
        epoch=epoch,
        epochs=(job.spec.get("training") or {}).get("epochs"),
        metric=job.primary_metric,
        score=job.metrics.get(f"{prefix}validation/{job.primary_metric}"),
        images_per_second=job.metrics.get(f"{prefix}throughput/images_per_second")
        if live
        else None,
        remaining_seconds=_remaining(job) if job.state == "running" else None,
    )


def clock(seconds: float) -> str:
    """Return a duration as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Feed:
    """The job's events, read by a thread of its own."""

    def __init__(self, retort: client.Client, job_id: str) -> None:
        self._events: queue.SimpleQueue[types.Event] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._thread = threading.Thread(
            target=self._read, args=(retort, job_id), name="job-events", daemon=True
        )
        self._thread.start()

    def take(self, wait_seconds: float) -> list[types.Event]:
        """Return the events received, as soon as there is one or the time is over."""
        taken = []
        try:
            taken.append(self._events.get(timeout=wait_seconds))
            while True:
                taken.append(self._events.get_nowait())
        except queue.Empty:
            return taken

    def stop(self) -> None:
        """Stop the thread; it ends with the next event or with the stream."""
        self._stopped.set()
        self._thread.join(timeout=1.0)

    def _read(self, retort: client.Client, job_id: str) -> None:
        try:
            for event in retort.jobs.stream(job_id):
                if self._stopped.is_set():
                    return
                self._events.put(event)
        except (errors.RetortError, httpx.HTTPError, RuntimeError):
            # Polling goes on and reports what is wrong; httpx raises RuntimeError once closed.
            return


def _read_with_retries(read: Callable[[], Shown], shown: View, what: str) -> Shown:
    """Read a job or study, with retries while the server is unreachable, for two minutes."""
    lost_at: float | None = None
    while True:
        try:
            return read()
        except errors.ConnectionFailed as error:
            if lost_at is None:
                lost_at = time.monotonic()
                shown.say(f"{error}; trying again, the {what} is not affected")
            if time.monotonic() - lost_at > PATIENCE_SECONDS:
                raise
        time.sleep(POLL_SECONDS)


def _phase_and_epoch(retort: client.Client, job_id: str) -> tuple[str | None, int | None]:
    """Return which network is trained now and in which epoch, by the newest loss."""
    try:
        series = retort.jobs.metrics(job_id, keys=LOSS_KEYS, max_points=10)
    except errors.RetortError:
        return None, None  # a view without an epoch is better than none
    newest = [(one.points[-1], one.key) for one in series if one.points]
    if not newest:
        return None, None
    never = datetime.min.replace(tzinfo=UTC)
    point, key = max(newest, key=lambda pair: pair[0].at or never)
    return ("baseline" if key.startswith("baseline/") else "student"), point.epoch


def _waiting_for(job: types.Job) -> str | None:
    if job.state in {"running", "succeeded"}:
        return None
    return job.state_message or job.state_reason


def _remaining(job: types.Job) -> float | None:
    if job.estimated_end_at is None:
        return None
    return max(0.0, (job.estimated_end_at - datetime.now(UTC)).total_seconds())
