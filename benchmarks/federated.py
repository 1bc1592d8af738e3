"""How long a round of a federation takes: clients at once, one after the other, and a plain loop.

    OMP_NUM_THREADS=1 python -m benchmarks.federated [--clients 10,100] [--pairs 5] [--part speed]
    OMP_NUM_THREADS=1 python -m benchmarks.federated --part scores [--seeds 3] [--first-seed 0]
        [--alphas 0.1,1.0] [--methods "fedavg,dsfl era"]

speed: federated averaging of the perceptron on random images of 8x8, about `--images` a client, in
turns in one process, so that whatever else the machine does disturbs all alike. The plain loop is
written as public repositories do it: a copy of the model, a data loader and an optimizer for each
client, state dicts averaged in a loop. scores: the small experiment of the field on digits, 10
clients, Dirichlet 0.1 and 1.0, as jobs of the engine.
"""

import argparse
import copy
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from workers.distill.config.job import Input, JobConfig
from workers.distill.config.training import expand
from workers.distill.data.builtin import digits
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.federated import client
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.clients import LocalClients, name_of
from workers.distill.federated.rounds import Rounds, Scoring
from workers.distill.federated.server import ServerModel
from workers.distill.methods import catalog
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network
from workers.distill.run import run as engine
from workers.distill.runtime import events, signals
from workers.distill.runtime.precision import Precision

CPU = torch.device("cpu")
INPUT = Input(channels=1, height=8, width=8, mean=[0.3], std=[0.35])
BATCH, EPOCHS, RATE = 32, 2, 0.05
SGD: dict[str, Any] = {"name": "sgd", "learning_rate": RATE, "momentum": 0, "weight_decay": 0}
Turn = Callable[[], None]
"""Makes a round."""


def main() -> None:
    """Run a part, and print what was measured as JSON, or as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.federated")
    parser.add_argument("--part", choices=["speed", "scores"], default="speed")
    parser.add_argument("--clients", default="10,100")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--alphas", default=",".join(map(str, SETTINGS)))
    parser.add_argument("--methods", default=",".join(SCORED))
    parser.add_argument("--markdown", action="store_true", help="a table instead of JSON")
    asked = parser.parse_args()
    if asked.part == "scores":
        alphas = [float(alpha) for alpha in asked.alphas.split(",")]
        seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
        rows = [row for seed in seeds for row in scores(seed, alphas, asked.methods.split(","))]
    else:
        counts = [int(count) for count in asked.clients.split(",")]
        rows = [speed(count, asked.images, asked.pairs) for count in counts]
    if asked.markdown:
        lines = score_lines(rows) if asked.part == "scores" else speed_lines(rows)
        sys.stdout.write("\n".join(lines) + "\n")
    else:
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")


# -- speed -----------------------------------------------------------------------------------------


def speed(clients: int, images: int, pairs: int) -> dict[str, Any]:
    """Return the seconds of a round in each way, and their ratios, medians over turns."""
    parts = made(clients, images)
    steps = EPOCHS * sum(-(-len(labels) // BATCH) for _, labels in parts)
    turns: dict[str, Turn] = {
        "vmap": retort(parts, "vmap"),
        "loop": retort(parts, "loop"),
        "plain": plain(parts),
    }
    for turn in turns.values():
        turn()
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(pairs):
        for name, turn in turns.items():
            start = time.process_time()
            turn()
            seconds[name].append(time.process_time() - start)
    ratios = {
        f"vmap_against_{name}": [
            round(one / other, 2) for one, other in zip(seconds[name], seconds["vmap"], strict=True)
        ]
        for name in ("loop", "plain")
    }
    return {
        "clients": clients,
        "steps": steps,
        "milliseconds_per_client_step": {
            name: round(1000 * statistics.median(found) / steps, 3)
            for name, found in seconds.items()
        },
        "ratios": {
            name: {"median": statistics.median(found), "lowest": min(found), "highest": max(found)}
            for name, found in ratios.items()
        },
    }


def speed_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a table of milliseconds of each step of a client, and of the ratios."""
    yield (
        "| clients | at once (`vmap`) | one after the other (`loop`) | plain loop | against `loop` "
        "| against plain |"
    )
    yield "|---|---|---|---|---|---|"
    for row in rows:
        times, ratios = row["milliseconds_per_client_step"], row["ratios"]
        cells = [f"{row['clients']:,}"]
        cells += [f"{times[name]:.2f}" for name in ("vmap", "loop", "plain")]
        for name in ("loop", "plain"):
            ratio = ratios[f"vmap_against_{name}"]
            cells.append(f"{ratio['median']:.1f} ({ratio['lowest']:.1f} to {ratio['highest']:.1f})")
        yield f"| {' | '.join(cells)} |"


def made(clients: int, images: int) -> list[tuple[Tensor, Tensor]]:
    """Return random images and labels of clients; their numbers differ by up to a half."""
    draw = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(clients):
        count = int(images * (0.75 + 0.5 * float(torch.rand((), generator=draw))))
        pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=draw, dtype=torch.uint8)
        parts.append((pixels, torch.randint(0, 10, (count,), generator=draw)))
    return parts


def a_network() -> Network:
    """Return the perceptron of the field's small experiment: 6,570 parameters."""
    torch.manual_seed(0)
    return networks.build("retort/mlp", classes=10, channels=1, height=8, width=8, arguments={})


def retort(parts: Sequence[tuple[Tensor, Tensor]], choice: str) -> Turn:
    """Return what makes rounds of this engine."""
    training = expand(
        {
            "epochs": 1000,
            "batch_size": BATCH,
            "optimizer": SGD,
            "schedule": {"name": "constant"},
            "augmentation": "none",
        }
    )
    student = a_network()
    settings = {"clients": len(parts), "local_epochs": EPOCHS, "engine": choice}
    method = catalog.build({"name": "fedavg", "federation": settings}, student, None)
    if not isinstance(method, FederatedMethod):
        raise TypeError("fedavg is a federated method")
    shared = ClientContext(
        method=method,
        training=training,
        preprocess=Preprocessor("student", INPUT, INPUT, CPU),
        precision=Precision("float32", CPU),
        classes=10,
        open_set=None,
    )
    held = []
    for number, (pixels, labels) in enumerate(parts):
        own = training.model_copy(update={"seed": client.seed_of(0, str(number))})
        loader = BatchLoader(pixels, labels, training=own, flip=False, device=CPU)
        held.append(LocalClient(name_of(number), copy.deepcopy(student), loader, shared))
    rounds = Rounds(
        LocalClients(held, shared),
        ServerModel(student, shared),
        shared,
        student,
        Scoring(None, []),
        lambda _code, _message: None,
        rows=sum(len(labels) for _, labels in parts),
        label_counts={},
    )

    def turn() -> None:
        while not rounds.work():
            pass

    return turn


def plain(parts: Sequence[tuple[Tensor, Tensor]]) -> Turn:
    """Return what makes rounds of a loop as it is usually published."""
    server: nn.Module = a_network()
    mean, std = INPUT.mean[0], INPUT.std[0]
    sets = [TensorDataset((pixels.float() / 255 - mean) / std, labels) for pixels, labels in parts]

    def turn() -> None:
        states, sizes = [], []
        for own in sets:
            model = copy.deepcopy(server)
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            for _ in range(EPOCHS):
                for images, labels in DataLoader(own, batch_size=BATCH, shuffle=True):
                    optimizer.zero_grad()
                    functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]  # torch's stub
                    optimizer.step()
            states.append(model.state_dict())
            sizes.append(len(own))
        mixed = {
            name: sum(
                state[name] * (size / sum(sizes)) for state, size in zip(states, sizes, strict=True)
            )
            for name in states[0]
        }
        server.load_state_dict(mixed)

    return turn


# -- scores ----------------------------------------------------------------------------------------

SCORED: dict[str, dict[str, Any]] = {
    "centralised": {"name": "centralised"},
    "local": {"name": "local"},
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox", "mu": 0.1},
    "fedensemble": {"name": "fedensemble"},
    "fd": {"name": "fd"},
    "feddistill+": {"name": "feddistill", "share_weights": True},
    "dsfl sa": {"name": "dsfl", "aggregation": "sa", "distill_epochs": 5},
    "dsfl era": {"name": "dsfl", "distill_epochs": 5},
    "fedgen": {"name": "fedgen"},
    "fedgen released": {
        "name": "fedgen",
        "generator_loss": "weighted",
        "noise": "uniform",
        "labels": "uniform",
        "least_count": 1,
        "teacher_weight": 1.0,
        "decay": 0.98,
        "hidden_size": 64,
        "generator_rate": 1e-3,
        "weighting": "samples",
    },
}
SETTINGS = {0.1: 30, 1.0: 15}
"""Rounds by alpha."""


def scores(seed: int, alphas: Sequence[float], labels: Sequence[str]) -> list[dict[str, Any]]:
    """Return what these methods score on the digits' test split."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="retort-federated-") as name:
        folder = Path(name)
        record = digits.write(folder / "dataset")
        for alpha in alphas:
            for label in labels:
                rounds, method = SETTINGS[alpha], SCORED[label]
                settings = {
                    "clients": 10,
                    "rounds": rounds,
                    "local_epochs": 5,
                    "open_images": 300,
                    "partition": {"alpha": alpha},
                }
                job = {
                    "student": {
                        "network": "retort/mlp",
                        "classes": 10,
                        "input": record.input.model_dump(),
                    },
                    "method": {**method, "federation": settings},
                    "training": {
                        "batch_size": BATCH,
                        "optimizer": {**SGD, "learning_rate": 0.1},
                        "schedule": {"name": "constant"},
                        "augmentation": "none",
                        "seed": seed,
                    },
                    "report": False,
                    "accelerator": "cpu",
                }
                rows.append({"method": label, "alpha": alpha, "seed": seed, **_scored(folder, job)})
    return rows


def score_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Yield a table of accuracies in percent, mean and deviation over seeds, and bytes."""
    alphas = sorted({row["alpha"] for row in rows})
    heads = [f"alpha {alpha}, {SETTINGS[alpha]} rounds: delivered | clients" for alpha in alphas]
    yield f"| method | {' | '.join(heads)} | bytes up | bytes down |"
    yield "|---" * (2 * len(alphas) + 3) + "|"
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        cells = [f"`{method}`"]
        for alpha in alphas:
            found = [row for row in own if row["alpha"] == alpha]
            failed = next((row["failed"] for row in found if "failed" in row), None)
            if failed is not None:
                cells += [f"failed: {failed}", ""]
                continue
            delivered = _percent(found, "delivered")
            if any(row["from_client"] for row in found):
                delivered += " (best client)"
            if found[0]["ensemble"] is not None:
                delivered += f" (ensemble {_percent(found, 'ensemble')})"
            clients = _percent(found, "client_mean")
            if found[0]["before_adapting"] is not None:
                clients += f" ({_percent(found, 'before_adapting')} before they adapt)"
            cells += [delivered, clients]
        for way in ("payload_up", "payload_down"):
            sent = [row[way] for row in own if "failed" not in row]
            low, high = min(sent, default=0), max(sent, default=0)
            cells.append(f"{low:,}" if low == high else f"{low:,} to {high:,}")
        yield f"| {' | '.join(cells)} |"


def _percent(rows: Sequence[dict[str, Any]], name: str) -> str:
    values = [100 * row[name] for row in rows]
    mean = f"{statistics.fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"


def _scored(folder: Path, job: dict[str, Any]) -> dict[str, Any]:
    """Carry a job out, and return its figures."""
    recipe = folder / "recipe.json"
    config = JobConfig.model_validate(job)
    recipe.write_text(config.model_dump_json())
    for old in (folder / "checkpoints").glob("*"):
        old.unlink()
    lines = folder / "lines.jsonl"
    descriptor = os.open(lines, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    start = time.perf_counter()
    try:
        code = engine.execute(recipe, folder, events.Reporter(descriptor), signals.Stop())
    finally:
        os.close(descriptor)
    last = json.loads(lines.read_text().splitlines()[-1])
    if code:
        return {"failed": last["message"]}
    history = json.loads((folder / "metrics.json").read_text())["history"]["student"]
    found, rounds = last["federation"], config.training.epochs
    clients = len(found["by_client"])
    return {
        "from_client": found.get("delivered") not in (None, "server"),
        "delivered": round(last["scores"]["student"]["accuracy"], 4),
        "client_mean": round(found["client_accuracy"]["mean"], 4),
        "ensemble": found["ensemble_accuracy"] and round(found["ensemble_accuracy"], 4),
        "before_adapting": history[-1].get("federation/client_accuracy_before"),
        "target_entropy": history[-1].get("federation/target_entropy"),
        "payload_up": found["payload_bytes_up"] // (clients * rounds),
        "payload_down": found["payload_bytes_down"] // (clients * rounds),
        "encoded_up": found["bytes_up"] // (clients * rounds),
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    main()
