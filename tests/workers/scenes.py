"""What the tests of the worker do again and again: submit, look, wait, act meanwhile."""

import contextlib
import hashlib
import re
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import psycopg

from models_registry.access import keys
from models_registry.artifacts import models, uploads
from models_registry.jobs import submission
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import tables
from tests import factories, waiting
from workers import engine_server
from workers.context import Context
from workers.distill.config.job import Input
from workers.distill.export import preprocessing

PATIENCE_SECONDS = waiting.PATIENCE_SECONDS
TINY: dict[str, Any] = {"network": "retort/resnet8", "arguments": {"widths": [4, 4, 8, 16]}}
# As an engine reports it of a network.
SCORE = {
    "accuracy": 0.9,
    "accuracy_interval": [0.86, 0.93],
    "agreement": 0.95,
    "ece": 0.0321,
    "loss": 0.4,
    "samples": 360,
}
# As an engine describes a student.
DESCRIPTION: dict[str, Any] = {
    "network": "retort/resnet8",
    "arguments": {},
    "task": "classification",
    "classes": ["zero", "one"],
    "input": factories.DIGITS_INPUT,
    "preprocessing": preprocessing.describe(
        "classification", Input.model_validate(factories.DIGITS_INPUT), (1, 8, 8)
    ),
    "needs": ["torch", "safetensors"],
    "needs_retort": None,
    "library_call": None,
    "training": {"flip": True},
}
ENDLESS = {"epochs": 2000}
wait_until = waiting.until


def project(context: Context, name: str = "laboratory") -> str:
    """Make a project and return its id."""
    with context.sessions.begin() as session:
        return keys.create_project(session, name=name).id


def submit(context: Context, project_id: str, **changes: Any) -> str:
    """Submit a job that trains a tiny student without a teacher, and return its id."""
    spec = {
        "name": "tiny",
        "student": TINY,
        "dataset": "digits@1",
        "method": {"name": "ce"},
        "training": {"epochs": 1},
        "baseline": False,
        "report": False,
        **changes,
    }
    with context.sessions.begin() as session:
        wanted = JobSpec.model_validate(spec)
        return submission.submit(session, project_id=project_id, spec=wanted).id


def job(context: Context, job_id: str) -> tables.JobRow:
    """Return the job as it is now."""
    with context.readers.begin() as session:
        return session.get_one(tables.JobRow, job_id)


def attempts(context: Context, job_id: str) -> list[tables.AttemptRow]:
    """Return the attempts at a job, oldest first."""
    row = tables.AttemptRow
    with context.readers.begin() as session:
        return session.query(row).filter_by(job_id=job_id).order_by(row.number).all()


def events(context: Context, job_id: str) -> list[tables.EventRow]:
    """Return the events of a job in order."""
    row = tables.EventRow
    with context.readers.begin() as session:
        return session.query(row).filter_by(job_id=job_id).order_by(row.sequence).all()


@contextlib.contextmanager
def meanwhile(act: Callable[[], None]) -> Iterator[None]:
    """Run `act` in a thread beside the block, and pass on what goes wrong in it."""
    wrong: list[BaseException] = []

    def run() -> None:
        try:
            act()
        except BaseException as error:
            wrong.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE_SECONDS)
    if wrong:
        raise wrong[0]


def has_state(context: Context, job_id: str, state: str) -> Callable[[], bool]:
    """Return a question for `wait_until`."""
    return lambda: job(context, job_id).state == state


def engines(module: str = "workers.distill") -> list[psutil.Process]:
    """Return the engines that this process, or a child of it, has started, forked or not."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            is_engine = module in process.cmdline() or process.name() == engine_server.process_name(
                module
            )
            if is_engine and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


@contextlib.contextmanager
def suspended(engine: psutil.Process) -> Iterator[None]:
    """Let an engine stand still during the block: it cannot end before the test has acted."""
    engine.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            engine.resume()


def is_told_to_stop(engine: psutil.Process) -> bool:
    """Tell whether SIGTERM waits for an engine that stands still."""
    (pending,) = re.findall(r"^ShdPnd:\s*(\w+)", _status(engine.pid), re.MULTILINE)
    return bool(int(pending, 16) & 1 << (signal.SIGTERM - 1))


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or only waits for its parent to notice."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def upload(context: Context, project_id: str, content: bytes, *, purpose: str, name: str) -> str:
    """Upload a file as a whole, and return the upload's id."""
    with context.sessions.begin() as session:
        opened = uploads.create(
            session,
            project_id=project_id,
            filename=name,
            size_bytes=len(content),
            sha256=hashlib.sha256(content).hexdigest(),
            purpose=purpose,
            settings=context.settings,
        )
    uploads.receive(
        context.sessions,
        context.storage,
        project_id=project_id,
        upload_id=opened.id,
        number=1,
        chunks=[content],
        announced_bytes=len(content),
        sha256=None,
        settings=context.settings,
    )
    uploads.complete(
        context.sessions,
        context.storage,
        project_id=project_id,
        upload_id=opened.id,
        settings=context.settings,
    )
    return opened.id


def uploaded_model(context: Context, project_id: str, content: bytes, **changes: Any) -> str:
    """Upload a file as weights, and return the id of the version that waits for inspection."""
    made = upload(context, project_id, content, purpose="model", name="teacher.pt")
    facts = {**TINY, "upload_id": made, **changes}
    with context.sessions.begin() as session:
        new = factories.new_version(**facts)
        return models.register(session, project_id=project_id, new=new).id


@contextlib.contextmanager
def unreachable(database_url: str) -> Iterator[None]:
    """Let the server throw everybody out of the database, and nobody in."""
    address, name, query = _split(database_url)
    with psycopg.connect(f"{address}postgres?{query}", autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS false'.encode())
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [name]
        )
        try:
            yield
        finally:
            connection.execute(f'ALTER DATABASE "{name}" ALLOW_CONNECTIONS true'.encode())


def _status(pid: int) -> str:
    return Path(f"/proc/{pid}/status").read_text()


def _split(database_url: str) -> tuple[str, str, str]:
    address, _, query = database_url.replace("+psycopg", "").partition("?")
    start, _, name = address.rpartition("/")
    return f"{start}/", name, query
