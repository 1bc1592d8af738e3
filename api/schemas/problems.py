"""The body of every error response (RFC 9457)."""

from pydantic import BaseModel, Field


class ProblemFault(BaseModel):
    """One fault of one field."""

    pointer: str = Field(
        description="JSON Pointer into the body, or `/query/...`, `/path/...`, `/header/...`."
    )
    code: str = Field(description="Stable code for programs.")
    detail: str = Field(description="A sentence for people.")


class ProblemUses(BaseModel):
    """What of one kind stands in the way of a deletion."""

    kind: str = Field(description="`job`, `study`, `alias` or `model version`.")
    count: int = Field(description="How many there are.")
    names: list[str] = Field(description="The newest of them: ids, or references of versions.")


class ProblemQuota(BaseModel):
    """The quota that a request would exceed."""

    name: str = Field(description="As in `GET /v1/usage`.")
    limit: int
    used: int
    requested: int = Field(description="What this request needs beside what is used.")


class Problem(BaseModel):
    """What went wrong, which field, and whether trying again can help."""

    type: str = Field(description="Stable URI of the kind of problem, `urn:retort:problem:<code>`.")
    title: str = Field(description="Short name of the kind of problem.")
    status: int = Field(description="The HTTP status.")
    detail: str = Field(description="What happened, with which value, and what to do.")
    instance: str = Field(description="The request's id, as in the `x-request-id` header.")
    code: str = Field(description="Stable code for programs; the last part of `type`.")
    errors: list[ProblemFault] = Field(default=[], description="Faults by field.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    allowed: list[str] | None = Field(
        default=None, description="For an illegal transition: the events that are allowed."
    )
    uses: list[ProblemUses] | None = Field(
        default=None, description="For what cannot be deleted: what refers to it."
    )
    quota: ProblemQuota | None = Field(
        default=None, description="For an exceeded quota: which one, and by how much."
    )
