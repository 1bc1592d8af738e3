"""Kill and freeze every process of a running service at random; nothing may be lost or doubled.

`python -m tests.drills.kills --kills 1000 --seed 1` runs PostgreSQL, Redis, the API, two workers
and maintenance, submits small jobs without end, and sends SIGKILL or SIGSTOP. After each batch it
waits until all jobs have ended, and looks: students byte for byte as those of an undisturbed run,
events whole, nothing doubled, no bytes missing. A failure is a line with the seed; exit code 1.
"""

import argparse
import collections
import contextlib
import hashlib
import os
import random
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import sqlalchemy as sa

from models_registry.access import keys
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, schema, tables
from models_registry.persistence.storage import LocalStorage
from tests import services

ROOT = Path(__file__).parents[2]
SEEDS = 3
"""So many different jobs there are; each is submitted again and again."""
IN_FLIGHT = 3
START_SECONDS = 300.0
DRAIN_SECONDS = 600.0
LEASE_SECONDS = 4.0
_FINAL = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
TARGETS = (
    *("api", "worker", "supervisor", "engine", "engine_server"),
    *("maintenance", "relay", "redis", "postgres"),
)
SPEC: dict[str, Any] = {
    "name": "drill",
    "student": {"network": "retort/resnet8", "arguments": {"widths": [4, 4, 8, 16]}},
    "dataset": "digits@1",
    "method": {"name": "ce"},
    "training": {"epochs": 2, "checkpoint_seconds": 0.5},
    "report": False,
    "max_attempts": 10,
}


@dataclass
class Part:
    """A process of the service, started again when it has died."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    user: str | None = None
    process: psutil.Process | None = None
    child: subprocess.Popen[bytes] | None = None

    def ensure(self) -> None:
        """Start it unless it runs."""
        if self.process is not None and self.child is None and _runs(self.process):
            return  # as its service was first started
        if self.child is None or self.child.poll() is not None:
            with self.log.open("ab") as log:
                self.child = subprocess.Popen(
                    self.command,
                    env=self.environment,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=ROOT,
                    user=self.user,
                    start_new_session=True,
                )
            self.process = psutil.Process(self.child.pid)

    def family(self) -> list[psutil.Process]:
        """Return the process and everything below it, as long as it runs."""
        try:
            return [self.main, *self.main.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    @property
    def main(self) -> psutil.Process:
        if self.process is None:
            raise RuntimeError(f"{self.name} was never started")
        return self.process

    def end(self) -> None:
        """Kill it for good, with everything below it."""
        for process in self.family():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.child is not None:
            self.child.wait()


def _runs(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass
class Drill:
    """A service that is hurt, and what was submitted to it."""

    folder: Path
    database_url: str
    address: str
    api_key: str
    parts: dict[str, Part]
    rng: random.Random
    in_flight: int = IN_FLIGHT
    wanted: dict[int, str] = field(default_factory=dict)
    """Digest of the student of each seed, from the undisturbed run."""
    submitted: list[str] = field(default_factory=list)
    """Keys of submissions that were answered."""
    hits: collections.Counter[str] = field(default_factory=collections.Counter)

    # -- the service -------------------------------------------------------------------------

    def ensure(self) -> None:
        """Start again whatever has died, as a supervisor does."""
        for part in self.parts.values():
            part.ensure()

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Send a request until it is answered, through whatever happens meanwhile."""
        deadline = time.monotonic() + START_SECONDS
        headers = {"authorization": f"Bearer {self.api_key}", **options.pop("headers", {})}
        answer = None
        while time.monotonic() < deadline:
            self.ensure()
            try:
                url = f"{self.address}{path}"
                answer = httpx.request(method, url, headers=headers, timeout=10, **options)
            except httpx.HTTPError:
                time.sleep(0.2)
                continue
            if answer.status_code < 500 and answer.status_code not in (409, 429):
                if answer.is_error:
                    raise RuntimeError(f"{method} {path}: {answer.text}")
                return answer.json()
            time.sleep(0.2)
        raise TimeoutError(f"{method} {path}: {answer.text if answer else 'no answer'}")

    def submit(self) -> None:
        """Submit the next job, with a key, as often as it takes."""
        number = len(self.submitted) % SEEDS
        key = f"drill-{len(self.submitted)}"
        training = {**SPEC["training"], "seed": number}
        body = {**SPEC, "training": training, "labels": {"key": key}}
        self.ask("POST", "/v1/jobs", json=body, headers={"idempotency-key": key})
        self.submitted.append(key)

    def unfinished(self) -> int:
        """Return how many jobs have not ended; asked of the database until it answers."""
        row = tables.JobRow
        query = sa.select(sa.func.count()).where(row.state.not_in(_FINAL))
        return int(self.query(lambda session: session.scalars(query).one()))

    def query(self, work: Callable[[Any], Any]) -> Any:
        """Read from the database, through whatever happens to it."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            self.ensure()
            engine = database.connect(self.database_url, pool_size=1)
            try:
                with database.sessions(engine)() as session:
                    return work(session)
            except sa.exc.SQLAlchemyError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            finally:
                engine.dispose()

    # -- the drill ---------------------------------------------------------------------------

    def learn(self) -> None:
        """Let each job run undisturbed, and remember its student."""
        for _ in range(SEEDS):
            self.submit()
        self.drain()
        for job in self.query(lambda session: session.scalars(sa.select(tables.JobRow)).all()):
            if job.state != State.SUCCEEDED:
                raise RuntimeError(f"the undisturbed run failed: {job.failure}")
            self.wanted[job.spec["training"]["seed"]] = job.result["digest"]

    def drain(self) -> None:
        """Wait until all jobs have ended. Raises: TimeoutError."""
        deadline = time.monotonic() + DRAIN_SECONDS
        while left := self.unfinished():
            if time.monotonic() > deadline:
                raise TimeoutError(f"{left} jobs have not ended after {DRAIN_SECONDS:g} s")
            time.sleep(0.3)

    def hurt(self, target: str) -> None:
        """Kill or freeze one process; a frozen one wakes after its lease has passed, or before."""
        found = self.processes(target)
        if not found:
            self.hits[f"{target} absent"] += 1
            return
        victim = self.rng.choice(found)
        if self.rng.random() < 0.75:
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()
            self.hits[f"{target} killed"] += 1
            return
        with contextlib.suppress(psutil.NoSuchProcess):
            victim.suspend()
            time.sleep(self.rng.uniform(0.2, 1.5 * LEASE_SECONDS))
            victim.resume()
        self.hits[f"{target} frozen"] += 1

    def processes(self, target: str) -> list[psutil.Process]:
        """Return the processes of a kind that run now."""
        workers = [self.parts[name] for name in ("worker_1", "worker_2")]
        if target in ("worker", "supervisor", "engine", "engine_server"):
            found = [one for worker in workers for one in worker.family() if _is(one, target)]
        elif target == "relay":
            found = self.parts["maintenance"].family()[1:]
        elif target == "postgres":
            found = self.parts["postgres"].family()
        else:
            found = self.parts[target].family()[:1]
        return [process for process in found if _runs(process)]

    def batch(self, kills: int, targets: tuple[str, ...] = TARGETS) -> list[str]:
        """Hurt the service so many times, let it end its jobs, and return what is wrong."""
        for number in range(kills):
            while self.unfinished() < self.in_flight:
                self.submit()
            time.sleep(self.rng.uniform(0.0, 1.5))
            self.hurt(self.rng.choice(targets) if targets is TARGETS else targets[number])
            self.ensure()
        try:
            self.drain()
        except TimeoutError as error:
            return [str(error), *self._last_words()]
        return [*self.query(self._faults)]

    def _last_words(self) -> Iterator[str]:
        """Yield where each job stands, and of each part its processes and the end of its log."""
        yield from self.query(self._unfinished_jobs)
        for part in self.parts.values():
            names = [f"{one.pid} {one.status()}" for one in part.family() if _runs(one)]
            yield f"{part.name} has {names}, and said last:"
            lines = part.log.read_text(errors="replace").splitlines()[-8:]
            yield from (f"    {line[:300]}" for line in lines)

    def _unfinished_jobs(self, session: Any) -> list[str]:
        row = tables.JobRow
        told = (
            *("id", "state", "state_reason", "state_message", "attempt", "releases", "fence"),
            *("lease_owner", "lease_expires_at", "not_before", "announced_at"),
        )
        waiting = session.scalars(sa.select(row).where(row.state.not_in(_FINAL))).all()
        return [", ".join(f"{name} {getattr(job, name)}" for name in told) for job in waiting]

    def _faults(self, session: Any) -> list[str]:
        return [*self._faults_of_jobs(session), *self._faults_of_bytes(session)]

    def _faults_of_jobs(self, session: Any) -> Iterator[str]:
        jobs = session.scalars(sa.select(tables.JobRow)).all()
        found = sorted(job.labels["key"] for job in jobs)
        if found != sorted(self.submitted):
            yield f"{len(self.submitted)} jobs were submitted, and there are {len(found)}"
        versions = collections.Counter(
            session.scalars(sa.select(tables.ModelVersionRow.job_id)).all()
        )
        for job in jobs:
            if job.state != State.SUCCEEDED:
                yield f"{job.id} is {job.state}: {(job.failure or {}).get('message')}"
                continue
            if job.result["digest"] != self.wanted[job.spec["training"]["seed"]]:
                yield f"{job.id} made other bytes, in attempt {job.attempt}"
            if versions[job.id] != 1:
                yield f"{job.id} registered {versions[job.id]} students"
            events = session.scalars(
                sa.select(tables.EventRow)
                .where(tables.EventRow.job_id == job.id)
                .order_by(tables.EventRow.sequence)
            ).all()
            if [event.sequence for event in events] != list(range(1, job.last_sequence + 1)):
                yield f"the events of {job.id} have a gap"
            if [event.type for event in events].count("job.succeeded") != 1:
                yield f"{job.id} succeeded not once"

    def _faults_of_bytes(self, session: Any) -> Iterator[str]:
        storage = LocalStorage(self.folder / "storage")
        referenced = sa.union(
            sa.select(tables.ModelFileRow.sha256), sa.select(tables.CheckpointRow.sha256)
        )
        for sha256 in session.scalars(referenced).all():
            blob = session.get(tables.BlobRow, sha256)
            if blob is None:
                yield f"there is no blob {sha256}"
                continue
            digest = hashlib.sha256()
            try:
                with storage.open(blob.storage_key) as chunks:
                    for chunk in chunks:
                        digest.update(chunk)
            except Exception as error:  # whatever it is, it is what the drill looks for
                yield f"the bytes of {sha256} cannot be read: {error}"
                continue
            if digest.hexdigest() != sha256:
                yield f"the bytes of {sha256} are others"


def _is(process: psutil.Process, target: str) -> bool:
    """Return whether a process below a worker is of this kind."""
    try:
        command, name = process.cmdline(), process.name()
        parent = process.parent()
        above = parent.cmdline() if parent is not None else []
    except psutil.NoSuchProcess:
        return False
    is_server = "workers.engine_server" in command
    is_forked = "workers.engine_server" in above
    is_engine = is_forked or "workers.distill" in command
    if target == "engine":
        return is_engine
    if target == "engine_server":
        return is_server and not is_forked
    is_celery = command[1:3] == ["-m", "workers"] and "python" in name
    is_child = above[1:3] == ["-m", "workers"]
    return is_celery and is_child == (target == "supervisor")


# -- starting ------------------------------------------------------------------------------------


@contextlib.contextmanager
def running(seed: int, *, slots: int = 1) -> Iterator[Drill]:
    """Run a whole service for a drill; each worker has so many slots."""
    with (
        tempfile.TemporaryDirectory(prefix="retort-drill-") as name,
        contextlib.ExitStack() as held,
    ):
        folder = Path(name)
        database_url = held.enter_context(services.postgres(folder, keeps_commits=True))
        broker_url = held.enter_context(services.redis_server(folder))
        port = services.free_port()
        environment = {
            **os.environ,
            "RETORT_DATABASE_URL": database_url,
            "RETORT_BROKER_URL": broker_url,
            "RETORT_STORAGE_URL": f"file:{folder / 'storage'}",
            "RETORT_CURSOR_SECRET": secrets.token_hex(32),
            "RETORT_WORKER_DEVICE": "cpu",
            "RETORT_WORKER_SLOTS": str(slots),
            "RETORT_LEASE_SECONDS": str(LEASE_SECONDS),
            "RETORT_HEARTBEAT_SECONDS": str(LEASE_SECONDS / 4),
            "RETORT_POLL_SECONDS": "0.3",
            "RETORT_SWEEP_SECONDS": "1",
            "RETORT_REPUBLISH_AFTER_SECONDS": "3",
            "OMP_NUM_THREADS": "1",
        }
        engine = database.connect(database_url, pool_size=1)
        schema.upgrade(engine)
        with database.sessions(engine).begin() as session:
            project = keys.create_project(session, name="drill")
            _, api_key = keys.create_key(
                session, project_id=project.id, name="drill", role="admin", environment="test"
            )
        engine.dispose()
        parts = _parts(folder, environment, database_url, broker_url, port)
        drill = Drill(
            folder,
            database_url,
            f"http://127.0.0.1:{port}",
            api_key,
            parts,
            random.Random(seed),
            in_flight=IN_FLIGHT * slots,
        )
        try:
            drill.ensure()
            yield drill
        finally:
            for part in reversed(parts.values()):
                part.end()


def _parts(
    folder: Path, environment: dict[str, str], database_url: str, broker_url: str, port: int
) -> dict[str, Part]:
    python = sys.executable
    api = [python, "-m", "api.server", "--port", str(port)]
    commands = {"api": api}
    queues = {"worker_1": "any,cpu", "worker_2": "any,cpu", "maintenance": "maintenance"}
    for name, queue in queues.items():
        commands[name] = [python, "-m", "workers", "--queues", queue, "--hostname", f"{name}@%h"]
    commands["maintenance"].append("--beat")
    stores = {"postgres": _postgres(database_url), "redis": _redis(broker_url)}
    parts = {}
    for name, process in stores.items():
        log, home = folder / f"{name}.log", dict(os.environ)
        # Of its parent in tests/services.py, because Redis writes over its own.
        parent = process.parent()
        if parent is None:
            raise LookupError(f"{name} has no parent")
        user, *command = parent.cmdline()[6:]
        parts[name] = Part(name, command, home, log, user or None, process)
    for name, command in commands.items():
        own = {**environment, "RETORT_DATA_DIR": str(folder / name)}
        parts[name] = Part(name, command, own, folder / f"{name}.log")
    return parts


def _postgres(url: str) -> psutil.Process:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    cluster = Path(row[0] if row else "")
    return psutil.Process(int((cluster / "postmaster.pid").read_text().split()[0]))


def _redis(url: str) -> psutil.Process:
    port = url.rpartition(":")[2].partition("/")[0]
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.name() == "redis-server" and port in " ".join(process.cmdline()):
                return process
    raise LookupError(f"no Redis on port {port}")


def main() -> int:
    """Run the drill, print what fell, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.kills")
    parser.add_argument("--kills", type=int, default=1000, help="in all")
    parser.add_argument("--batch", type=int, default=20, help="between two looks")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="decides the kills")
    parser.add_argument("--slots", type=int, default=1, help="of each worker")
    options = parser.parse_args()
    fell = done = 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with running(options.seed, slots=options.slots) as drill:
        drill.learn()
        began = time.monotonic()
        while done < options.kills:
            count = min(options.batch, options.kills - done)
            for fault in drill.batch(count):
                fell += 1
                print(f"seed {options.seed} kills {done + 1}..{done + count}: {fault}", flush=True)
            done += count
            minutes = (time.monotonic() - began) / 60
            print(
                f"seed {options.seed}: {done} kills, {len(drill.submitted)} jobs, {fell} fell, "
                f"{done / minutes:.1f} kills a minute",
                flush=True,
            )
        told = ", ".join(f"{name} {count}" for name, count in sorted(drill.hits.items()))
        print(f"seed {options.seed}: {told}")
    return 1 if fell else 0


if __name__ == "__main__":
    sys.exit(main())
