"""Bodies of the probes."""

from pydantic import BaseModel, Field


class HealthRead(BaseModel):
    """The process is alive."""

    status: str = "alive"


class ReadyRead(BaseModel):
    """Whether requests can be served now."""

    status: str = Field(description="`ready`, or `degraded`: no broker, so jobs wait.")
    checks: dict[str, str] = Field(description="`ok` or what is wrong, by dependency.")
