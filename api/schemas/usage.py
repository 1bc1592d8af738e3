"""Bodies of quotas and of what a project uses."""

from pydantic import BaseModel, ConfigDict, Field

from api.schemas import rows
from models_registry.access import quotas


class QuotaRead(rows.RowRead):
    """One quota of the project."""

    name: str = Field(
        description="`jobs_queued` (queued, paused and validating), `jobs_running`, "
        "`storage_bytes`, `upload_bytes` (of one upload) or `requests_per_minute`."
    )
    limit: int | None = Field(
        description="The limit that counts: the smaller of the two below. Null: no limit."
    )
    own_limit: int | None = Field(description="Set by an administrator of the project.")
    service_limit: int | None = Field(description="Set by the operator, for every project.")
    used: int | None = Field(description="Null for what is counted by the upload or the minute.")


class UsageRead(BaseModel):
    """What the project may use, and what it uses."""

    project: str = Field(description="Id of the project.")
    name: str
    share_weight: float = Field(
        description="With twice the weight of another project, it gets twice the workers while "
        "both have jobs waiting."
    )
    quotas: list[QuotaRead]


class QuotaChange(BaseModel):
    """Limits to set; those that are left out stay, and null leaves one to the service's limit."""

    model_config = ConfigDict(extra="forbid")

    jobs_queued: int | None = Field(default=None, ge=0, le=2**31 - 1)
    jobs_running: int | None = Field(default=None, ge=1, le=2**31 - 1)
    storage_bytes: int | None = Field(default=None, ge=0, le=2**63 - 1)
    upload_bytes: int | None = Field(default=None, ge=1, le=2**63 - 1)
    requests_per_minute: int | None = Field(default=None, ge=1, le=1_000_000)
    share_weight: float | None = Field(
        default=None,
        ge=quotas.LEAST_WEIGHT,
        le=quotas.MOST_WEIGHT,
        description="Null leaves it as it is.",
    )
