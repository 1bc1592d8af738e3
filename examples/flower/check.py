"""Run the app under a real SuperLink and two SuperNodes, and compare it with the engine.

    make flower [METHODS="dsfl fd fedavg"]

The consensus of the last round, and the server's network, must equal those of the same clients in
one process within 1e-6. Flower gives each process of an app 30 s from its claim to its first
heartbeat, which no option changes; on a busy machine that may be too short, so a run that has
failed is made again, and that is said.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

from retort_flower import federation, server_app

from workers.distill.federated.server import ServerModel
from workers.distill.files import tensorfile

HERE = Path(__file__).parent.resolve()
BIN = Path(sys.executable).parent
SETTINGS = {
    "method": "dsfl",
    "rounds": 2,
    "clients": 2,
    "local-epochs": 1,
    "learning-rate": 0.1,
    "seed": 0,
}
LARGEST = 1e-6
PATIENCE_SECONDS = 300.0
RUNS = 3
"""So often a method is run before it counts as failed."""


def main() -> int:
    """Compare the methods that are asked for, and return the exit code."""
    # What was started must end with this process, whatever ends it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    methods = sys.argv[1:] or ["dsfl"]
    worst = 0.0
    with tempfile.TemporaryDirectory(prefix="retort-flower-") as name:
        folder = Path(name)
        with superlink(folder) as environment:
            for method in methods:
                apart = compared(method, folder, environment)
                sys.stdout.write(f"{method}: largest difference from the engine {apart:.1e}\n")
                sys.stdout.flush()
                worst = max(worst, apart)
    return int(worst > LARGEST)


def compared(method: str, folder: Path, environment: dict[str, str]) -> float:
    """Return the largest difference of a number between Flower's run and the engine's."""
    output = folder / f"{method}.safetensors"
    config = f"method='{method}' output='{output}'"
    command = [str(BIN / "flwr"), "run", str(HERE), "check", "--stream", "--run-config", config]
    for number in range(1, RUNS + 1):
        ended = subprocess.run(command, env=environment, timeout=6 * PATIENCE_SECONDS, check=False)
        if output.exists():
            break
        said = f"{method}: run {number} of {RUNS} has ended with {ended.returncode} and no result"
        if number == RUNS:
            raise RuntimeError(f"{said}; see the lines above")
        sys.stderr.write(f"{said}; running it again\n")
    found, expected = tensorfile.read(output), in_process({**SETTINGS, "method": method})
    if found.keys() != expected.keys():
        raise RuntimeError(f"Flower's run has {sorted(found)}, the engine {sorted(expected)}")
    return max(
        float((found[key].double() - value.double()).abs().max()) for key, value in expected.items()
    )


def in_process(settings: federation.Settings) -> dict[str, torch.Tensor]:
    """Return what the server publishes last, and its network, with all clients in this process."""
    made = federation.federation(settings)
    clients = [made.client(number) for number in range(int(settings["clients"]))]
    method, server = made.shared.method, ServerModel(made.student, made.shared)
    published = server_app.publish(made, method.start(server), 0)
    for number in range(1, int(settings["rounds"]) + 1):
        for one in clients:
            one.receive(published)
        server.round = number
        replies = [one.train(number) for one in clients]
        published = server_app.publish(made, method.aggregate(replies, server), number)
    state = {f"model/{name}": value for name, value in made.student.state_dict().items()}
    return {**published.tensors, **state}


@contextlib.contextmanager
def superlink(folder: Path) -> Iterator[dict[str, str]]:
    """Run a SuperLink and the SuperNodes, and yield the environment for `flwr run`."""
    # The last: each SuperNode serves its own processes.
    port, *own = free_ports(1 + SETTINGS["clients"])
    address = f"127.0.0.1:{port}"
    home = folder / "home"
    home.mkdir()
    profile = f'[superlink.check]\naddress = "{address}"\ninsecure = true\n'
    (home / "config.toml").write_text(f'[superlink]\ndefault = "check"\n{profile}')
    environment = {
        # Each message starts processes, which must not compile all that they import anew.
        **{key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"},
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }
    offline = "--disable-runtime-dependency-installation"
    local = ("--insecure", "--host", "127.0.0.1", "--port")
    commands = [["flower-superlink", *local, str(port), offline]]
    for number, place in enumerate(own):
        node = f"partition-id={number} num-partitions={len(own)}"
        commands.append(
            ["flower-supernode", *local, str(place), "--superlink", address, "--node-config", node]
        )
    processes = []
    try:
        for place, command in enumerate(commands):
            log = (folder / f"{place}.log").open("wb")
            started = subprocess.Popen(
                [str(BIN / command[0]), *command[1:]],
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            log.close()
            processes.append(started)
            if place == 0:
                wait_for(lambda: is_open(port), "the SuperLink listens")
        yield environment
    except BaseException:
        for place in range(len(processes)):
            said = (folder / f"{place}.log").read_text()[-3000:]
            sys.stderr.write(f"--- {commands[place][0]}\n{said}\n")
        raise
    finally:
        # Each has a session of its own, with the processes that it has started.
        for process in reversed(processes):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def free_ports(count: int) -> list[int]:
    """Return ports that are free now."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def is_open(port: int) -> bool:
    """Return whether somebody listens."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def wait_for(is_so, what: str) -> None:
    """Wait until something is so."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {PATIENCE_SECONDS:g} s in vain until {what}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
