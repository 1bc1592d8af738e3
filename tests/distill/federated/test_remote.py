"""Clients that are other processes: what the engine writes and awaits, and what messages hold."""

import contextlib
import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import waiting
from tests.distill import folders
from tests.distill.federated import scenes
from workers.distill import errors
from workers.distill.config import messages
from workers.distill.config.job import Input, JobConfig
from workers.distill.config.training import expand
from workers.distill.data.loader import BatchLoader
from workers.distill.evaluation.evaluate import LabelledImages
from workers.distill.federated import protocol
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.clients import LocalClients
from workers.distill.federated.protocol import Message
from workers.distill.federated.remote import ImageFacts, RemoteClients
from workers.distill.federated.rounds import Rounds, Scoring
from workers.distill.federated.server import NAME, ServerModel
from workers.distill.methods import catalog
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.runtime.signals import Stop

INPUT = Input.model_validate(folders.INPUT)
NAMES = ("fcl_a", "fcl_b")
TRAINING = expand(scenes.PLAIN)


CASES: dict[str, dict[str, Any]] = {
    "fd": {"name": "fd"},
    "dsfl": {"name": "dsfl"},
    "feddistill": {"name": "feddistill"},
    "feddistill with weights": {"name": "feddistill", "share_weights": True},
    "fedmd": {"name": "fedmd"},
    "fedproto": {"name": "fedproto"},
    "fedavg": {"name": "fedavg"},
    "fedprox": {"name": "fedprox"},
    "fedensemble": {"name": "fedensemble"},
    "feddf": {"name": "feddf"},
    "fedgen": {"name": "fedgen", "generator_steps": 3},
    "fedgen of classifiers": {"name": "fedgen", "generator_steps": 3, "sharing": "classifier"},
}
"""Methods that remote clients may have; the others send nothing."""


def shared_by(name: str) -> ClientContext:
    """Return what all parties of a federation share."""
    given = {**CASES[name], "federation": {"clients": "remote"}}
    torch.manual_seed(0)
    method = catalog.build(given, scenes.network(), None)
    assert isinstance(method, FederatedMethod)
    method.rounds = TRAINING.epochs
    return scenes.context(method, TRAINING)


def party(name: str, shared: ClientContext, number: int) -> LocalClient:
    """Return a client with images of its own."""
    pixels, labels = scenes.images(scenes.SIZES)[number]
    loader = BatchLoader(pixels, labels, training=TRAINING, flip=False, device=scenes.CPU)
    return LocalClient(name, scenes.network(), loader, shared)


def clients_of(
    workdir: Path, shared: ClientContext, stop: Stop | None = None, own: LocalClient | None = None
) -> RemoteClients:
    """Return the remote clients of a job in a folder."""
    network = {"network": "retort/mlp", "classes": scenes.CLASSES, "input": folders.INPUT}
    config = JobConfig.model_validate(
        {
            "student": network,
            "method": {"name": shared.method.name, "federation": {"clients": "remote"}},
            "training": scenes.PLAIN,
        }
    )
    facts = ImageFacts([str(label) for label in range(scenes.CLASSES)], INPUT, flip=False)
    return RemoteClients(workdir, shared, scenes.network(), config, facts, stop or Stop(), own=own)


class Carrier(threading.Thread):
    """The worker's side: clients that answer each round as soon as its task is written.

    As in other processes, its clients share nothing with the server: a method's modules are
    changed while `functional_call` runs, so no two threads may have one.
    """

    def __init__(self, workdir: Path, name: str, rounds: int) -> None:
        super().__init__()
        shared = shared_by(name)
        self.folder = workdir / "federation"
        self.parties = [party(one, shared, number) for number, one in enumerate(NAMES)]
        self.rounds = rounds
        self._left = threading.Event()

    def __enter__(self) -> "Carrier":
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:  # Nothing more is published.
            self._left.set()
        self.join()

    def run(self) -> None:
        """Join, answer all rounds, and take what is published last."""
        with contextlib.suppress(Left):
            self._answer()

    def _answer(self) -> None:
        names = [one.name for one in self.parties]
        written(self.folder / "clients.json", json.dumps(names).encode())
        for number in range(1, self.rounds + 1):
            self.receive(number - 1)
            round_folder = self.folder / "rounds" / f"{number:04d}"
            self._wait_for(round_folder / "task.json")
            for one in self.parties:
                content = protocol.encode(one.train(number))
                written(round_folder / "replies" / f"{one.name}.safetensors", content)
            written(round_folder / "closed.json", json.dumps({"clients": names}).encode())
        self.receive(self.rounds)

    def receive(self, number: int) -> None:
        path = self.folder / "rounds" / f"{number:04d}" / "consensus.safetensors"
        self._wait_for(path)
        for one in self.parties:
            one.receive(protocol.decode(path.read_bytes()))

    def _wait_for(self, path: Path) -> None:
        def is_there() -> bool:
            if self._left.is_set():
                raise Left
            return path.exists()

        waiting.until(is_there, f"{path} comes", pause_seconds=0.005)


class Left(Exception):
    """The test that started a carrier has failed."""


def written(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)


def rounds_of(remote: RemoteClients, shared: ClientContext, own: LocalClient | None) -> Rounds:
    student = scenes.network()
    pixels, labels = folders.images(30, scenes.CLASSES, 55)
    return Rounds(
        remote,
        ServerModel(student, shared),
        shared,
        student,
        Scoring(LabelledImages(pixels, labels), [] if own is None else [own.name]),
        lambda _code, _message: None,
        rows=0,
        label_counts={},
    )


def test_each_method_is_remote_or_refused() -> None:
    remote = {case["name"] for case in CASES.values()}
    for name, method in catalog.METHODS.items():
        if not issubclass(method, FederatedMethod) or name in remote:
            continue
        with pytest.raises(errors.BadRecipe, match=f"{name} exchanges nothing with remote") as told:
            catalog.find({"name": name, "federation": {"clients": "remote"}})
        assert told.value.details["field"] == "method/federation/clients"


class TestRounds:
    @pytest.mark.parametrize("name", CASES)
    def test_with_remote_clients_equal_those_of_one_process(
        self, name: str, tmp_path: Path
    ) -> None:
        shared = shared_by(name)
        own = party(NAME, shared, 2) if shared.method.delivered == "client" else None
        remote = clients_of(tmp_path, shared, own=own)
        with Carrier(tmp_path, name, rounds=2) as carrier:
            rounds = scenes.run(rounds_of(remote, shared, own), 2)

        alike = shared_by(name)
        simulated = [party(one, alike, number) for number, one in enumerate(NAMES)]
        if own is not None:
            simulated.append(party(NAME, alike, 2))
        expected = in_process(simulated, alike, 2)
        told, known = rounds.finish_epoch(2, last=True), expected.finish_epoch(2, last=True)
        if name in ("fedavg", "fedprox", "fedensemble", "feddf", "fedgen"):
            # The server scores what clients have sent as a simulation scores their networks.
            assert told["federation/client_accuracy_min"] > 0
            assert rounds.accuracies == expected.accuracies
        ours = {key: value for key, value in told.items() if "accuracy" not in key}
        assert ours == {key: known[key] for key in ours}
        assert scenes.weights(rounds.server.network).equal(scenes.weights(expected.server.network))
        for one, other in zip(carrier.parties, simulated, strict=False):
            assert scenes.weights(one.network).equal(scenes.weights(other.network))

    @pytest.mark.parametrize("name", ["dsfl", "fd", "fedavg"])
    def test_tell_clients_what_they_need_and_nothing_of_the_servers_files(
        self, name: str, tmp_path: Path
    ) -> None:
        shared = shared_by(name)
        clients_of(tmp_path, shared)
        plan = json.loads((tmp_path / "federation" / "plan.json").read_text())
        assert (plan["method"], plan["rounds"], len(plan["classes"])) == (name, 3, scenes.CLASSES)
        assert plan["sends"] == sorted(shared.method.sent_kinds)
        assert "provenance" not in plan["config"]
        has_open_set = (tmp_path / "federation" / "open_set.safetensors").exists()
        assert has_open_set == shared.method.uses_open_set


def in_process(clients: Sequence[LocalClient], shared: ClientContext, count: int) -> Rounds:
    """Return the rounds of the same clients in this process."""
    student = scenes.network()
    pixels, labels = folders.images(30, scenes.CLASSES, 55)
    rounds = Rounds(
        LocalClients(clients, shared),
        ServerModel(student, shared),
        shared,
        student,
        Scoring(LabelledImages(pixels, labels), [NAME]),
        lambda _code, _message: None,
        rows=1,
        label_counts={},
    )
    return scenes.run(rounds, count)


class TestWait:
    def test_ends_with_the_reason_when_too_few_come(self, tmp_path: Path) -> None:
        shared = shared_by("dsfl")
        remote = clients_of(tmp_path, shared)
        reason = {"message": "1 of at least 2 clients joined"}
        written(tmp_path / "federation" / "failure.json", json.dumps(reason).encode())
        with pytest.raises(errors.TooFewClients, match="1 of at least 2"):
            remote.names()

    def test_ends_when_the_process_is_told_to_stop(self, tmp_path: Path) -> None:
        stop = Stop()
        stop.can_wait = True
        remote = clients_of(tmp_path, shared_by("dsfl"), stop)
        later = threading.Timer(0.1, lambda: stop._request(15, None))
        later.start()
        with pytest.raises(errors.Interrupted):
            remote.names()
        later.join()

    def test_goes_on_after_a_kill_with_the_same_replies(self, tmp_path: Path) -> None:
        shared = shared_by("dsfl")
        remote = clients_of(tmp_path, shared)
        with Carrier(tmp_path, "dsfl", rounds=1):
            rounds = scenes.run(rounds_of(remote, shared, None), 1)
        again = rounds_of(clients_of(tmp_path, shared), shared, None)
        assert scenes.weights(scenes.run(again, 1).server.network).equal(
            scenes.weights(rounds.server.network)
        )

    def test_does_not_train_the_servers_own_client_twice(self, tmp_path: Path) -> None:
        shared = shared_by("fd")
        stop = Stop()
        stop.can_wait = True
        own = party(NAME, shared, 2)
        remote = clients_of(tmp_path, shared, stop, own=own)
        remote.receive(start_of(shared), [])
        stop._request(15, None)
        with pytest.raises(errors.Interrupted):
            remote.train(1, [])
        trained = scenes.weights(own.network)
        other = party(NAME, shared, 2)
        resumed = clients_of(tmp_path, shared, stop, own=other)
        resumed.load_state_dict(remote.state_dict())
        with pytest.raises(errors.Interrupted):
            resumed.train(1, [])
        assert scenes.weights(other.network).equal(trained)


def start_of(shared: ClientContext) -> Message:
    return Message(
        method=shared.method.name, round=0, sender="server", classes=scenes.CLASSES, tensors={}
    )


class TestReplies:
    def test_are_checked_again(self, tmp_path: Path) -> None:
        shared = shared_by("dsfl")
        remote = clients_of(tmp_path, shared)
        folder = tmp_path / "federation" / "rounds" / "0001"
        other = protocol.encode(party("fcl_a", shared, 0).train(2))
        written(folder / "replies" / "fcl_a.safetensors", other)
        written(folder / "closed.json", json.dumps({"clients": ["fcl_a"]}).encode())
        with pytest.raises(errors.BadMessage, match="round must be '1'"):
            remote.train(1, ["fcl_a"])


class TestPrivacy:
    """What real messages of `fd` and `dsfl` hold, as the bytes that would be sent."""

    @pytest.mark.parametrize("name", ["fd", "dsfl"])
    def test_no_image_no_label_list_and_no_weight_leaves_a_client(
        self, name: str, tmp_path: Path
    ) -> None:
        shared = shared_by(name)
        client = party("fcl_a", shared, 1)
        client.receive(start_of(shared))
        content = protocol.encode(client.train(1))
        path = tmp_path / "reply"
        path.write_bytes(content)
        with path.open("rb") as file:
            contents = messages.check(file, len(content), clients_of(tmp_path, shared).expected(1))
        header = contents.header
        open_rows = len(shared.open_set or ())
        allowed = {
            "fd": {
                "label_probabilities": (int((client.label_counts > 0).sum()), scenes.CLASSES),
                "label_counts": (scenes.CLASSES,),
            },
            "dsfl": {"probabilities": (open_rows, scenes.CLASSES)},
        }[name]
        assert {one: entry.shape for one, entry in header.tensors.items()} == allowed
        assert set(header.strings) == {
            *("kinds", "method", "round", "sender", "classes", "open_set", "samples")
        }
        raw = [bytes(image) for image in scenes.images(scenes.SIZES)[1][0].flatten(1).numpy()]
        assert not any(image in content for image in raw)
        for weight in client.network.state_dict().values():
            assert weight.numpy().tobytes() not in content
