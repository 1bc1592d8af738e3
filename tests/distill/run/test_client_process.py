"""A client's process: orders in, messages and a model out, all in a folder of its own."""

import io
import json
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill import folders
from tests.distill.federated import scenes
from workers.distill import errors
from workers.distill.data import dataset
from workers.distill.evaluation import evaluate
from workers.distill.federated import protocol
from workers.distill.federated.protocol import Message
from workers.distill.files import tensorfile
from workers.distill.networks import weights
from workers.distill.run import client_process
from workers.distill.run.client_process import ClientProcess
from workers.distill.runtime import events

CLASSES = ["row 0", "row 1", "row 2"]
OPEN_IMAGES = 7


@pytest.fixture
def reporter(tmp_path: Path) -> Iterator[events.Reporter]:
    descriptor = os.open(tmp_path / "lines.jsonl", os.O_WRONLY | os.O_CREAT)
    yield events.Reporter(descriptor)
    os.close(descriptor)


def prepare(folder: Path, **plan: Any) -> Path:
    """Write what `retort client join` writes before it starts the process."""
    folder.mkdir()
    folders.make_dataset(folder / "dataset")
    pixels, _ = folders.images(OPEN_IMAGES, 3, 99)
    tensorfile.write(folder / "open_set.safetensors", {"images": pixels}, {})
    network = {"network": "retort/mlp", "classes": 3, "input": folders.INPUT}
    method = {"name": "dsfl", "federation": {"clients": "remote"}}
    content = {
        "config": {"student": network, "method": method, "training": scenes.PLAIN},
        "classes": CLASSES,
        "input": folders.INPUT,
        "flip": False,
        **plan,
    }
    (folder / "plan.json").write_text(json.dumps(content))
    (folder / "membership.json").write_text(json.dumps({"client": "fcl_a"}))
    return folder


def receive(folder: Path, number: int) -> str:
    """Write what the server has published after a round, and return its path."""
    tensors = {"targets": torch.full((OPEN_IMAGES, 3), 1 / 3)} if number else {}
    message = Message("dsfl", number, "server", 3, tensors)
    path = folder / "received" / f"{number:04d}.safetensors"
    client_process.write(path, protocol.encode(message))
    return str(path.relative_to(folder))


def process(folder: Path, reporter: events.Reporter, **options: Any) -> ClientProcess:
    return ClientProcess(
        folder, reporter, accelerator="cpu", sends_metrics=options.get("sends_metrics", True)
    )


class TestTrain:
    def test_goes_on_after_a_kill_with_the_same_bytes(
        self, tmp_path: Path, reporter: events.Reporter
    ) -> None:
        at_once = prepare(tmp_path / "at-once")
        made = process(at_once, reporter)
        whole = [made.train(n, receive(at_once, n - 1)).read_bytes() for n in (1, 2)]
        finished = made.finish(receive(at_once, 2))

        killed = prepare(tmp_path / "killed")
        first = process(killed, reporter).train(1, receive(killed, 0))
        assert first.read_bytes() == whole[0]
        again = process(killed, reporter)
        modified = first.stat().st_mtime_ns
        assert again.train(1, receive(killed, 0)) == first
        assert first.stat().st_mtime_ns == modified, "an order is carried out once"
        assert again.train(2, receive(killed, 1)).read_bytes() == whole[1]
        assert again.finish(receive(killed, 2)) == finished
        assert (killed / "model.safetensors").read_bytes() == (
            at_once / "model.safetensors"
        ).read_bytes()
        network, told = weights.rebuild(killed / "model.safetensors")
        assert (network.classes, told["classes"]) == (3, CLASSES)

    def test_sends_the_accuracy_only_where_the_owner_agrees(
        self, tmp_path: Path, reporter: events.Reporter
    ) -> None:
        folder = prepare(tmp_path / "client")
        made = process(folder, reporter, sends_metrics=False)
        message = protocol.decode(made.train(1, receive(folder, 0)).read_bytes())
        assert message.metrics == {}
        assert (message.sender, message.samples) == ("fcl_a", folders.COUNTS["train"])
        assert message.tensors.keys() == {"probabilities"}


class TestScoring:
    def test_cuts_the_owners_images_as_the_server_cuts_its_own(
        self, tmp_path: Path, reporter: events.Reporter
    ) -> None:
        found = {}
        for ratio in (None, 0.5):
            folder = prepare(tmp_path / f"ratio-{ratio}")
            plan = json.loads((folder / "plan.json").read_text())
            plan["config"]["training"]["crop_ratio"] = ratio
            (folder / "plan.json").write_text(json.dumps(plan))
            made = process(folder, reporter)
            made.train(1, receive(folder, 0))
            found[ratio] = made.finish(receive(folder, 1))["accuracy"]
            # The model's file says how its images are cut.
            scores = evaluate.evaluate_file(
                folder / "model.safetensors", folder / "dataset", "validation"
            )
            assert found[ratio] == scores["accuracy"]
        assert found[None] != found[0.5]


class TestLabels:
    def test_are_those_of_the_federation_by_name(
        self, tmp_path: Path, reporter: events.Reporter
    ) -> None:
        """The owner lacks a class, and has the others in another order."""
        folder = prepare(tmp_path / "client", classes=["row 2", "row 3", "row 0", "row 1"])
        plan = json.loads((folder / "plan.json").read_text())
        plan["config"]["student"]["classes"] = 4
        (folder / "plan.json").write_text(json.dumps(plan))
        made = process(folder, reporter)
        stored = dataset.load(folder / "dataset")
        own = stored.split("train").labels.bincount(minlength=3).tolist()
        assert made.label_counts == [own[2], 0, own[0], own[1]]

    def test_of_a_class_that_the_federation_has_not_are_refused(
        self, tmp_path: Path, reporter: events.Reporter
    ) -> None:
        folder = prepare(tmp_path / "client", classes=["row 0", "row 1", "cat"])
        with pytest.raises(errors.BadDataset, match="row 2"):
            process(folder, reporter)


class TestForm:
    def test_of_other_images_is_refused(self, tmp_path: Path, reporter: events.Reporter) -> None:
        folder = prepare(tmp_path / "client", input={**folders.INPUT, "height": 9})
        with pytest.raises(errors.BadDataset, match="height 8, those of the federation 9"):
            process(folder, reporter)


class TestNoise:
    def test_follows_from_a_secret_that_is_kept(self, tmp_path: Path) -> None:
        path = tmp_path / "noise_seed"
        drawn = client_process.noise_seed(path)
        assert client_process.noise_seed(path) == drawn
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert client_process.noise_seed(tmp_path / "other") != drawn


class TestServe:
    def test_answers_each_order_until_its_input_ends(
        self, tmp_path: Path, reporter: events.Reporter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = prepare(tmp_path / "client")
        orders = [
            {"do": "train", "round": 1, "start": receive(folder, 0)},
            {"do": "finish", "consensus": receive(folder, 1)},
        ]
        text = "".join(json.dumps(order) + "\n" for order in orders)
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        client_process.serve(process(folder, reporter), folder, reporter)
        lines = [json.loads(line) for line in (tmp_path / "lines.jsonl").read_text().splitlines()]
        assert [line["type"] for line in lines] == ["reply", "finished"]
        assert lines[0]["path"] == "replies/0001.safetensors"
        assert 0 <= lines[1]["accuracy"] <= 1
