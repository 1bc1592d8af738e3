"""Take part in a federation with a training loop of your own: send predictions, never data.

with federation.join(url, "fed_...", "ck_...", samples=len(mine), classes=10) as member:
    images = numpy.asarray(member.open_set()["images"])     # uint8 [N, C, H, W], the same for all
    for round in member:
        if "targets" in round.start:                        # none before the first round
            fit(images[round.rows], numpy.asarray(round.start["targets"]))
        fit(mine)
        round.submit(probabilities=predict(images[round.rows]), metrics={"accuracy": 0.9})
    fit(images[round.rows], numpy.asarray(member.consensus()["targets"]))

A client only calls out. It may stop at any time and come back with the same key: it goes on with
the newest round. While the server cannot be reached, calls are repeated.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar

from retort import downloads, errors, tensors, transport, types

T = TypeVar("T")

WAIT_SECONDS = 20.0
PATIENCE_SECONDS = 3600.0
LONGEST_PAUSE_SECONDS = 15.0
_TOO_LATE = ("wrong_round",)


@dataclass(frozen=True)
class Round:
    """One round in which this client is asked."""

    member: "Member"
    task: types.RoundTask
    start: dict[str, tensors.Tensor] = field(repr=False)
    """What the server has made of the round before, by kind; empty where there was nothing."""

    @property
    def number(self) -> int:
        """Return the round's number, from 1."""
        return self.task.round

    @property
    def rows(self) -> "list[int] | slice":
        """Return which rows of the open set to predict, in this order; a slice of all of them."""
        return slice(None) if self.task.open_rows is None else self.task.open_rows

    def submit(
        self,
        probabilities: Any = None,  # Any: an array of NumPy or torch, or nested lists
        *,
        metrics: Mapping[str, float] | None = None,
        **others: Any,
    ) -> bool:
        """Send what the method asks for, by kind, such as `probabilities` [rows, classes].

        `others` are further kinds (`label_probabilities`, `label_counts`, `scores`); of a state
        such as `weights`, a mapping of names to arrays. `metrics` are shown to the owner. Returns
        False if the round was over: the reply came too late, and is dropped.

        Raises: errors.ProblemError when the reply is refused, with the reason.
        """
        given = {**others, **({} if probabilities is None else {"probabilities": probabilities})}
        content = self.member.message(self.task, given, metrics or {})
        return self.member.send(self.number, content)


class Member:
    """This client in its federation; iterate over it for the rounds."""

    def __init__(
        self,
        http: transport.Transport,
        federation_id: str,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
        say: Callable[[str], object] = lambda _text: None,
    ) -> None:
        self.federation_id = federation_id
        self.membership: types.Membership | None = None
        self._http = http
        self._path = f"/v1/federations/{federation_id}"
        self._patience_seconds = patience_seconds
        self._say = say
        self._samples = 0
        self._answered = 0

    def close(self) -> None:
        """Close every connection. The client stays joined: it may come back."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- joining -----------------------------------------------------------------------------------

    def look(self) -> types.Membership:
        """Return what this key's client would join, without joining."""
        return self._http.fetch(types.Membership, "GET", f"{self._path}/membership")

    def join(self, *, samples: int, classes: int) -> types.Membership:
        """Join, or join again after a break.

        Raises: errors.ProblemError for another number of classes, or when the job has ended.
        """
        self._samples = samples
        body = {"samples": samples, "classes": classes}
        self.membership = self._http.fetch(
            types.Membership, "POST", f"{self._path}/join", body=body
        )
        return self.membership

    def leave(self) -> None:
        """Take no further part: rounds do not wait for this client. It may join again."""
        self._http.request("POST", f"{self._path}/leave", body={})

    # -- rounds ------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Round]:
        """Yield each round in which this client has not answered, until the last is over.

        Raises: errors.JobFailed when the job fails or is cancelled.
        """
        while (number := self.next_round()) is not None:
            task = self.task(number)
            yield Round(self, task, self.consensus(number - 1))

    def next_round(self) -> int | None:
        """Wait for the next round to answer and return its number; None after the last.

        Raises: errors.JobFailed when the job fails or is cancelled.
        """
        situation = self.situation()
        while True:
            is_open = situation.round_state == "open"
            if is_open and situation.round > self._answered and not situation.has_answered:
                self._answered = situation.round
                return situation.round
            if situation.published is not None and situation.published >= self.rounds:
                return None
            if situation.is_final:
                if situation.state == "succeeded":
                    return None
                raise errors.JobFailed(
                    f"{self.federation_id} {situation.state}: {situation.message or 'no reason'}"
                )
            situation = self.situation(after=situation.revision)

    @property
    def rounds(self) -> int:
        """Return how many rounds there are."""
        if self.membership is None:
            raise errors.BadOption("join first: member.join(samples=..., classes=...)")
        return self.membership.rounds

    def situation(self, *, after: int | None = None) -> types.Situation:
        """Return where the federation stands; with `after`, wait for a later revision."""
        query = {"after": after, "wait_seconds": WAIT_SECONDS if after is not None else None}
        return self.patiently(
            lambda: self._http.fetch(types.Situation, "GET", f"{self._path}/situation", query=query)
        )

    def task(self, number: int) -> types.RoundTask:
        """Return what a round asks of this client."""
        path = f"{self._path}/rounds/{number}/task"
        return self.patiently(lambda: self._http.fetch(types.RoundTask, "GET", path))

    def plan(self) -> types.Plan:
        """Wait until the job has started, and return what clients need to know."""
        situation = self.situation()
        while not situation.is_planned and not situation.is_final:
            situation = self.situation(after=situation.revision)
        return self.patiently(lambda: self._http.fetch(types.Plan, "GET", f"{self._path}/plan"))

    def consensus_bytes(self, number: int) -> bytes:
        """Wait for what the server makes of a round (0: the start), and return its file."""
        path, query = f"{self._path}/rounds/{number}/consensus", {"wait_seconds": WAIT_SECONDS}
        while True:
            response = self.patiently(lambda: self._http.request("GET", path, query=query))
            if response.status_code != 202:
                return response.content

    def consensus(self, number: int | None = None) -> dict[str, tensors.Tensor]:
        """Wait for what the server makes of a round, by default the last, and return it by kind."""
        return tensors.decode(self.consensus_bytes(self.rounds if number is None else number))

    def save_open_set(self, destination: Path, *, sha256: str | None) -> Path:
        """Save the file of the open set, checked against its digest."""
        return self.patiently(
            lambda: downloads.save(self._http, f"{self._path}/open-set", destination, sha256=sha256)
        )

    def open_set(self) -> dict[str, tensors.Tensor]:
        """Wait until the job has started, and return the open set: `images` uint8 [N, C, H, W]."""
        self.plan()
        path = f"{self._path}/open-set"
        return tensors.decode(self.patiently(lambda: self._http.request("GET", path)).content)

    # -- replies -----------------------------------------------------------------------------------

    def message(
        self,
        task: types.RoundTask,
        given: Mapping[str, Any],  # Any: arrays, lists, mappings of them
        metrics: Mapping[str, float],
    ) -> bytes:
        """Return a reply as it is sent.

        Raises: errors.BadOption for other kinds than the round asks for.
        """
        expected = task.expected
        missing, excess = set(expected["kinds"]) - set(given), set(given) - set(expected["kinds"])
        if missing or excess:
            asked, got = (", ".join(sorted(kinds)) for kinds in (expected["kinds"], given))
            raise errors.BadOption(
                f"round {task.round} of {expected['method']} asks for {asked}; got "
                f"{got or 'nothing'}"
            )
        if self.membership is None:
            raise errors.BadOption("join first: member.join(samples=..., classes=...)")
        strings = {
            "kinds": ",".join(sorted(expected["kinds"])),
            "method": expected["method"],
            "round": str(task.round),
            "sender": self.membership.client,
            "classes": str(expected["classes"]),
            "open_set": expected.get("open_set") or "",
            "samples": str(self._samples),
            **{f"metric.{name}": repr(float(value)) for name, value in metrics.items()},
        }
        return tensors.encode(dict(_named(expected, given)), strings)

    def send(self, number: int, content: bytes) -> bool:
        """Send a reply's bytes; return False if the round was over.

        Raises: errors.ProblemError when the reply is refused, with the reason.
        """
        path = f"{self._path}/rounds/{number}/reply"
        headers = {"content-type": "application/octet-stream"}
        try:
            self.patiently(
                lambda: self._http.request(
                    "PUT", path, headers=headers, content=lambda: iter([content])
                )
            )
        except errors.ProblemError as error:
            if error.status == 409 and error.code in _TOO_LATE:
                self._say(f"round {number}: {error.detail}")
                return False
            raise
        return True

    def patiently(self, call: Callable[[], T]) -> T:
        """Return what `call` returns, repeated while the server cannot be reached."""
        lost_at, attempt = None, 0
        while True:
            try:
                return call()
            except (errors.ConnectionFailed, errors.ProblemError) as error:
                if isinstance(error, errors.ProblemError) and not error.retryable:
                    raise
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at > self._patience_seconds:
                    raise
                if attempt == 0:
                    self._say(f"{error}; trying again")
                attempt += 1
                pause = transport.backoff_seconds(attempt, 0.5, LONGEST_PAUSE_SECONDS)
                if isinstance(error, errors.ProblemError):
                    pause = max(pause, error.retry_after_seconds or 0.0)
                self._http.sleep(pause)


def join(
    url: str,
    federation_id: str,
    client_key: str,
    *,
    samples: int,
    classes: int,
    patience_seconds: float = PATIENCE_SECONDS,
) -> Member:
    """Join a federation with a client key, and return this client's place in it.

    `samples` is the number of training samples, `classes` that of the federation's classes.
    Raises: errors.ProblemError, errors.ConnectionFailed.
    """
    http = transport.Transport(url, client_key)
    member = Member(http, federation_id, patience_seconds=patience_seconds)
    try:
        member.join(samples=samples, classes=classes)
    except BaseException:
        http.close()
        raise
    return member


def _named(
    expected: Mapping[str, Any], given: Mapping[str, Any]
) -> Iterator[tuple[str, tensors.Tensor]]:
    states = expected.get("states") or {}
    for kind, values in given.items():
        if kind in states:
            for name, shape in states[kind].items():
                if name not in values:
                    raise errors.BadOption(f"{kind} lacks {name!r}")
                yield f"{kind}/{name}", tensors.of(values[name], shape["dtype"])
            continue
        is_whole = kind in ("label_counts", "open_rows")
        yield kind, tensors.of(values, "I32" if is_whole else "F32")
