"""Clients that are other processes: rounds as files, which the worker carries to and fro.

The engine knows no service. In the folder `federation` of its working folder it writes `plan.json`
and `open_set.safetensors` once, `rounds/0003/task.json` when a round begins, and
`rounds/0003/consensus.safetensors` when it ends (`rounds/0000` holds what clients start from). It
waits for `clients.json`, for `rounds/0003/replies/<client>.safetensors` with `closed.json` behind
them, or for `failure.json`. What there is of a round is never changed, so an engine that is killed
and continued asks again and gets the same replies.
"""

import copy
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Float, UInt8
from torch import Tensor

from workers.distill import errors
from workers.distill.config import messages
from workers.distill.config.job import Input, JobConfig
from workers.distill.config.messages import Expected, TensorShape
from workers.distill.federated import client, protocol
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.protocol import Message, Tensors
from workers.distill.files import tensorfile
from workers.distill.networks.interface import Network
from workers.distill.runtime.signals import Stop

FOLDER = "federation"
TEACHING = ("teacher", "teachers", "teacher_weighting")
"""Fields of a config that no client needs."""
PLAN, OPEN_SET = "plan.json", "open_set.safetensors"
CLIENTS, FAILURE = "clients.json", "failure.json"
TASK, CLOSED, CONSENSUS, REPLIES = "task.json", "closed.json", "consensus.safetensors", "replies"
_POLL_SECONDS = 0.05


@dataclass(frozen=True)
class ImageFacts:
    """What all parties' images have in common."""

    classes: Sequence[str]
    """Names, in the order of labels."""
    input: Input
    """Channels, size and normalisation."""
    flip: bool
    """Whether a mirrored image keeps its label."""


class RemoteClients:
    """All clients that have joined; see `clients.Clients`."""

    def __init__(
        self,
        workdir: Path,
        shared: ClientContext,
        student: Network,
        config: JobConfig,
        images: ImageFacts,
        stop: Stop,
        *,
        own: LocalClient | None = None,
    ) -> None:
        """Tell clients what they need to know; `own` is a client here that takes part with them."""
        self.engines: dict[str, int] = {}
        self.not_stacked: dict[str, str] = {}
        self._folder = workdir / FOLDER
        self._shared = shared
        self._student = student
        self._stop = stop
        self._published = -1
        self._answered = 0
        self._own = own
        self._own_reply: Message | None = None
        self._models: dict[str, Tensors] = {}
        """The newest weights of clients elsewhere, of methods by which whole networks travel."""
        self._losses: dict[str, Tensor] = {}
        self._write_plan(config, images)

    def names(self) -> list[str]:
        """Return the ids of all who have joined, sorted; wait until there are enough.

        Raises: errors.TooFewClients; errors.Interrupted.
        """
        joined: list[str] = json.loads(self._awaited(self._folder / CLIENTS))
        self.engines = {"remote": len(joined)}
        own = [] if self._own is None else [self._own.name]
        return sorted([*joined, *own])

    def train(self, number: int, waiting: Sequence[str]) -> list[Message]:
        """Let all train in a round (from 1), and return all replies; none the second time.

        Raises: errors.TooFewClients; errors.Interrupted; errors.BadMessage.
        """
        if self._answered == number:
            return []
        folder = self._round(number)
        expected = self.expected(number)
        task = {"expected": expected.model_dump(mode="json"), "open_rows": self._open_rows(number)}
        _write(folder / TASK, json.dumps(task).encode())
        replies = [] if self._own is None else [self._own_reply_in(number, self._own)]
        closed = json.loads(self._awaited(folder / CLOSED))
        for name in sorted(closed["clients"]):
            replies.append(self._read(folder / REPLIES / f"{name}.safetensors", expected))
            if self._sends_networks:
                self._models[name] = replies[-1].part("weights")
        self._answered = number
        return replies

    def _own_reply_in(self, number: int, own: LocalClient) -> Message:
        """Return the reply of the client here; it trains once, also if the wait is interrupted."""
        if self._own_reply is None or self._own_reply.round != number:
            self._own_reply = self._train_own(own, number)
        return self._own_reply

    def _train_own(self, own: LocalClient, number: int) -> Message:
        own.start_training()
        trained = own.fit(number)
        self._losses = dict(trained.losses)
        return own.reply(number, trained)

    def receive(self, consensus: Message, waiting: Sequence[str]) -> list[str]:
        """Publish what the server has made of a round; clients fetch it when they can."""
        _write(self._round(consensus.round) / CONSENSUS, protocol.encode(consensus))
        if self._own is not None:
            self._own.receive(consensus)
        self._published = consensus.round
        return list(waiting)

    def seen(self, name: str) -> int:
        """Return the newest round that was published: clients fetch it before they train."""
        return self._published

    def losses(self) -> dict[str, Tensor]:
        """Return those of the client here: others do not send theirs."""
        return self._losses

    def logits(self, images: UInt8[Tensor, "N c h w"]) -> dict[str, Float[Tensor, "N C"]]:
        """Return the answers of the clients whose networks are known here.

        These are the client here, and those that have sent theirs after training; the models of
        others are theirs.
        """
        answers = {} if self._own is None else {self._own.name: self._own.predict(images)}
        if not self._models:
            return answers
        network = copy.deepcopy(self._student)
        for name, weights in self._models.items():
            client.load_part(network, weights)
            answers[name] = client.predict(network, self._shared.preprocess, images)
        return dict(sorted(answers.items()))

    @property
    def _sends_networks(self) -> bool:
        """Whether replies hold all weights of a network."""
        method, names = self._shared.method, list(self._student.state_dict())
        return "weights" in method.sent_kinds and method.sent_weights(names) == names

    def model(self, name: str) -> Network | None:
        """Return the model of the client here: those of others are theirs."""
        is_own = self._own is not None and self._own.name == name
        return self._own.model if self._own is not None and is_own else None

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {
            "published": self._published,
            "answered": self._answered,
            "own": None if self._own is None else self._own.state_dict(),
            "own_reply": None if self._own_reply is None else _state_of(self._own_reply),
            "losses": self._losses,
            "models": self._models,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned."""
        self._published, self._answered = state["published"], state["answered"]
        self._losses = state["losses"]
        device = self._shared.device
        self._models = {
            name: {key: value.to(device) for key, value in weights.items()}
            for name, weights in state["models"].items()
        }
        if self._own is not None:
            self._own.load_state_dict(state["own"])
        if state["own_reply"] is not None:
            self._own_reply = Message(**state["own_reply"])

    def expected(self, number: int) -> Expected:
        """Return what a reply of a round must be."""
        return expected_reply(self._shared, self._student, number)

    def _open_rows(self, number: int) -> list[int] | None:
        open_set = self._shared.open_set
        if not self._shared.method.uses_open_set or open_set is None:
            return None
        rows: list[int] = open_set.rows(number).tolist()
        return None if len(rows) == len(open_set) else rows

    def _write_plan(self, config: JobConfig, images: ImageFacts) -> None:
        """Write what clients need to know, and the open set."""
        method, open_set = self._shared.method, self._shared.open_set
        if method.uses_open_set and open_set is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            tensorfile.write(self._folder / OPEN_SET, {"images": open_set.images}, {})
        shown = config.model_dump(mode="json", exclude={*TEACHING, "provenance", "initial"})
        plan = {
            "method": method.name,
            "sends": sorted(method.sent_kinds),
            "receives": sorted(method.received_kinds),
            "takes_weights": method.takes_weights,
            "rounds": self._shared.training.epochs,
            "classes": list(images.classes),
            "input": images.input.model_dump(mode="json"),
            "flip": images.flip,
            "config": shown,
        }
        _write(self._folder / PLAN, json.dumps(plan).encode())

    def _round(self, number: int) -> Path:
        return self._folder / "rounds" / f"{number:04d}"

    def _awaited(self, path: Path) -> bytes:
        """Return the content of a file as soon as it is there."""
        failure = self._folder / FAILURE
        while not path.exists():
            self._stop.check()
            if failure.exists():
                told = json.loads(failure.read_bytes())
                raise errors.TooFewClients(told["message"])
            time.sleep(_POLL_SECONDS)
        return path.read_bytes()

    def _read(self, path: Path, expected: Expected) -> Message:
        """Return a reply, checked again: the folder may have been written by anybody."""
        with path.open("rb") as stream:
            try:
                messages.check(stream, path.stat().st_size, expected)
            except messages.MessageRefused as error:
                raise errors.BadMessage(f"{path.name}: {error.message}") from error
        message = protocol.decode(path.read_bytes())
        device = self._shared.device
        moved = {name: tensor.to(device) for name, tensor in message.tensors.items()}
        return Message(**{**vars(message), "tensors": moved})


def expected_reply(shared: ClientContext, student: Network, number: int) -> Expected:
    """Return what a reply of a round must be, of clients elsewhere."""
    method, open_set = shared.method, shared.open_set
    uses_open_set = method.uses_open_set and open_set is not None
    states = {}
    if "weights" in method.sent_kinds:
        state = student.state_dict()
        states["weights"] = {
            name: TensorShape(
                dtype=tensorfile.DTYPES[state[name].dtype], shape=list(state[name].shape)
            )
            for name in method.sent_weights(list(state))
        }
    return Expected(
        method=method.name,
        round=number,
        classes=shared.classes,
        kinds=sorted(method.sent_kinds),
        rows=len(open_set.rows(number)) if uses_open_set and open_set else None,
        open_set=open_set.digest if uses_open_set and open_set else None,
        width=student.pooled_width or None,
        states=states,
    )


def _state_of(message: Message) -> dict[str, Any]:
    return {**vars(message), "metrics": dict(message.metrics)}


def _write(path: Path, content: bytes) -> None:
    """Write a file all at once, for those who wait for its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(path)
