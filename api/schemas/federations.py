"""Bodies of federations: what their owner sees, and what their clients see."""

from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import rows
from models_registry.federations import federations, rounds
from models_registry.federations.clients import Member
from models_registry.federations.replies import Receipt
from models_registry.persistence import tables
from workers.distill.config.messages import Expected

# Written by the engine for its clients.
Json = dict[str, Any]

STATE = "waiting, running, succeeded, failed or cancelled; treat another as not final."


class FederationLinks(BaseModel):
    """Related addresses."""

    federation: str
    clients: str
    rounds: str
    job: str


class FederationRead(rows.RowRead):
    """A federation as it is now; its state follows from that of its job."""

    id: str
    job: str
    name: str = Field(description="That of the job.")
    method: str
    state: str = Field(description=STATE)
    state_message: str | None = Field(description="Why it waits or has ended, from its job.")
    round: int = Field(description="The newest round that was opened; 0 before the first.")
    rounds: int = Field(description="How many there will be.")
    joined: int
    invited: int = Field(description="Clients with a valid key, joined or not.")
    min_clients: int = Field(description="Replies that a round needs.")
    deadline_seconds: float = Field(description="How long a round waits for replies.")
    join_seconds: float = Field(
        description="How long the first round waits until `min_clients` have joined."
    )
    created_at: datetime
    links: FederationLinks

    @classmethod
    def of(cls, overview: federations.Overview) -> Self:
        """Return the body of a federation with its counts."""
        row, job = overview.federation, overview.job
        here = f"/v1/federations/{row.id}"
        return cls.from_row(
            row,
            job=job.id,
            name=job.name,
            state=overview.state,
            state_message=(job.failure or {}).get("message") or job.state_message,
            round=overview.round,
            joined=overview.joined,
            invited=overview.invited,
            links=FederationLinks(
                federation=here,
                clients=f"{here}/clients",
                rounds=f"{here}/rounds",
                job=f"/v1/jobs/{job.id}",
            ),
        )


class ClientInvite(BaseModel):
    """A client to invite."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        min_length=1, max_length=96, description="Of the party, such as `hospital-north`."
    )


class FederationClientRead(rows.RowRead):
    """A client as its federation's owner sees it."""

    id: str
    name: str
    state: str = Field(description="invited, joined, answered (the newest round), left or revoked.")
    samples: int | None = Field(description="Training samples, as the client says.")
    metrics: dict[str, float] = Field(
        description="Numbers of its last reply, as the client measured them, such as `accuracy`."
    )
    last_round: int | None = Field(description="The last round that it has answered.")
    bytes_up: int = Field(description="Of its accepted replies.")
    bytes_down: int = Field(description="Of what it was sent: consensus and open set.")
    late: int = Field(description="Replies that came after their round was over.")
    refused: int = Field(description="Replies that were not acceptable.")
    created_at: datetime
    joined_at: datetime | None
    last_seen_at: datetime | None
    revoked_at: datetime | None

    @classmethod
    def of(cls, row: tables.FederationClientRow, newest: int) -> Self:
        """Return the body of a client; `newest` is the federation's newest round."""
        return cls.from_row(row, state=_state(row, newest))


def _state(row: tables.FederationClientRow, newest: int) -> str:
    if row.revoked_at is not None:
        return "revoked"
    if row.left_at is not None:
        return "left"
    if row.joined_at is None:
        return "invited"
    return "answered" if newest and row.last_round == newest else "joined"


class ClientInvited(FederationClientRead):
    """A new client with the text of its key, which no other response contains."""

    client_key: str = Field(description="Send it as `Authorization: Bearer <client_key>`.")


class RoundRead(rows.RowRead):
    """One round, as its federation's owner sees it."""

    number: int
    state: str = Field(description="open, closed (being aggregated) or published.")
    replies: int
    bytes_up: int = Field(description="Of all replies.")
    bytes_down: int | None = Field(description="Of what was published, for one client.")
    opened_at: datetime
    deadline_at: datetime | None
    closed_at: datetime | None
    published_at: datetime | None

    @classmethod
    def of(cls, count: rounds.RoundCount) -> Self:
        """Return the body of a round."""
        return cls.from_row(
            count.round,
            replies=count.replies,
            bytes_up=count.bytes_up,
            bytes_down=count.round.consensus_bytes,
        )


class Joining(BaseModel):
    """What a client says of itself when it joins."""

    model_config = ConfigDict(extra="forbid")

    samples: int = Field(ge=1, le=2**53, description="Training samples that it has.")
    classes: int = Field(ge=2, le=100_000, description="Classes of its labels.")


class MembershipRead(BaseModel):
    """A client's place in a federation."""

    client: str = Field(description="Its id: the `sender` of its messages.")
    name: str
    federation: str
    method: str
    rounds: int
    classes: list[str] = Field(
        description="In the order of labels and columns; empty while the data set is inspected."
    )

    @classmethod
    def of(cls, member: Member, classes: list[str]) -> Self:
        """Return the body of a client."""
        return cls(
            client=member.client.id,
            name=member.client.name,
            federation=member.federation.id,
            method=member.federation.method,
            rounds=member.federation.rounds,
            classes=classes,
        )


class SituationRead(BaseModel):
    """Where a federation stands, for one of its clients."""

    revision: int = Field(description="Give it as `after` to wait for the next change.")
    state: str = Field(description=STATE)
    message: str | None = Field(description="Why it has ended, if it has failed.")
    is_planned: bool = Field(description="Whether the plan can be fetched.")
    round: int = Field(description="The newest round that was opened; 0 before the first.")
    round_state: str | None = Field(description="open, closed or published.")
    deadline_at: datetime | None = Field(description="When the round ends at the latest.")
    has_answered: bool = Field(description="Whether the round has a reply of this client.")
    published: int | None = Field(
        description="The newest round whose consensus can be fetched; 0 is what clients start from."
    )


class PlanRead(BaseModel):
    """What a client needs to know to take part; written by the engine."""

    plan: Json
    open_set: str | None = Field(description="SHA-256 of the open set's file; null without one.")


class TaskRead(BaseModel):
    """What a round asks of a client."""

    round: int
    state: str
    deadline_at: datetime | None
    expected: Expected = Field(description="What the reply must be; others are refused.")
    open_rows: list[int] | None = Field(
        description="Rows of the open set to predict, in this order; null: all."
    )
    start: int | None = Field(
        description="The round whose consensus this one starts from; 0: before the first."
    )

    @classmethod
    def of(cls, row: tables.FederationRoundRow) -> Self:
        """Return the body of an opened round."""
        return cls(
            round=row.number,
            state=row.state,
            deadline_at=row.deadline_at,
            expected=Expected.model_validate(row.task["expected"]),
            open_rows=row.task.get("open_rows"),
            start=row.number - 1,
        )


class ReceiptRead(BaseModel):
    """What became of a reply."""

    round: int
    sha256: str
    size_bytes: int
    samples: int
    received_at: datetime

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        """Return the body of an accepted reply."""
        reply = receipt.reply
        return cls(
            round=reply.round,
            sha256=reply.sha256,
            size_bytes=reply.size_bytes,
            samples=reply.samples,
            received_at=reply.received_at,
        )
