"""Every environment variable of the service, typed, with its unit in its name.

Read once (`Settings()`) where a process starts, then handed on. `.env.example` is what
`python -m models_registry.settings` prints.
"""

import re
import sys
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from models_registry.persistence import source_places
from workers.distill.config.devices import MOST_DEVICES


class Settings(BaseSettings):
    """Settings of api, worker and maintenance; each is `RETORT_` plus the field's name."""

    model_config = SettingsConfigDict(
        env_prefix="RETORT_", env_ignore_empty=True, frozen=True, extra="ignore"
    )

    environment: str = Field(
        "dev",
        pattern="^[a-z0-9]{1,12}$",
        description="Part of API keys; in prod, RETORT_METRICS_TOKEN must be set.",
    )
    data_dir: Path = Field(Path("retort-data"), description="Data folder of `retort up`.")
    database_url: str = Field(
        "sqlite:///retort-data/retort.sqlite3", description="SQLAlchemy URL: PostgreSQL or SQLite."
    )
    broker_url: str = Field(
        "redis://127.0.0.1:6379/0", description="Redis of the message broker (never a result)."
    )
    storage_url: str = Field(
        "file:retort-data/storage", description="Bytes: file:///folder or s3://bucket/prefix."
    )
    s3_endpoint: str | None = Field(None, description="Endpoint of an S3-compatible store.")
    s3_region: str = Field("us-east-1", description="Region of the S3 bucket.")
    s3_access_key_id: str | None = Field(None, description="Access key of the S3 bucket.")
    s3_secret_access_key: SecretStr | None = Field(None, description="Secret of that key.")
    s3_public_endpoint: str | None = Field(
        None,
        pattern="^https?://[^/]",
        description="Where clients reach the bucket: the client then sends parts of uploads there "
        "by presigned URLs; empty: through the API.",
    )
    cursor_secret: SecretStr | None = Field(
        None, description="Signs page cursors; the same in every api process (32 bytes or more)."
    )
    docs: bool = Field(True, description="Serve /docs, /redoc and /v1/openapi.json.")
    metrics_token: SecretStr | None = Field(
        None,
        description="Bearer token that /metrics asks for; empty: everybody may read it "
        "(not in RETORT_ENVIRONMENT prod).",
    )
    otlp_endpoint: str | None = Field(
        None,
        pattern="^https?://[^/]",
        description="OpenTelemetry collector (OTLP over HTTP), as http://collector:4318; "
        "empty: no traces.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe level that is logged."
    )
    log_json: bool = Field(True, description="JSON lines; false gives coloured text.")

    lease_seconds: float = Field(
        60, gt=0, description="A worker without heartbeat loses its job after this."
    )
    key_cache_seconds: float = Field(
        2,
        ge=0,
        le=30,
        description="How long an API process knows a key without asking again: a key that another "
        "process revokes opens for so long; 0 asks at every request.",
    )
    heartbeat_seconds: float = Field(15, gt=0, description="How often a worker renews its lease.")
    poll_seconds: float = Field(1, gt=0, description="How often a worker polls for cancel, pause.")
    kill_grace_seconds: float = Field(
        10, gt=0, description="Between SIGTERM (write a checkpoint) and SIGKILL of an engine."
    )
    sweep_seconds: float = Field(
        5, gt=0, description="How often maintenance publishes messages and ends expired leases."
    )
    republish_after_seconds: float = Field(
        30, gt=0, description="A queued job unclaimed for this long is published again."
    )

    retention_grace_seconds: float = Field(
        86_400,
        ge=0,
        description="Between the moment that something is found deletable and its deletion.",
    )

    upload_part_bytes: int = Field(
        16 * 2**20, ge=5 * 2**20, description="Size of an upload's part."
    )
    upload_max_bytes: int = Field(64 * 2**30, gt=0, description="Largest upload that is accepted.")
    upload_expiry_seconds: float = Field(
        86_400,
        gt=0,
        description="Idle uploads expire after this; those whose parts go straight to a bucket, "
        "after this from their beginning.",
    )
    upload_stall_seconds: float = Field(60, gt=0, description="A stalled sender is disconnected.")

    quota_jobs_queued: int | None = Field(
        10_000, ge=1, description="Most jobs of one project that wait (queued, paused, validating)."
    )
    quota_jobs_running: int | None = Field(
        None, ge=1, description="Most jobs of one project that run at a time; empty: no limit."
    )
    quota_storage_bytes: int | None = Field(
        None, ge=1, description="Most bytes that one project keeps; empty: no limit."
    )
    quota_requests_per_minute: int | None = Field(
        6000, ge=1, description="Most requests of one project, refilled evenly over a minute."
    )
    quota_client_requests_per_minute: int | None = Field(
        600, ge=1, description="The same for one client of a federation, with a bucket of its own."
    )

    webhook_delays_seconds: str = Field(
        "0,5,300,1800,7200,18000,36000,36000",
        description="Waits before each attempt of a webhook's delivery; each is up to a fifth "
        "longer, so that they do not come together.",
    )
    webhook_timeout_seconds: float = Field(
        15, gt=0, le=300, description="A webhook's receiver must have answered by then."
    )
    webhook_disable_after_seconds: float = Field(
        5 * 86_400, gt=0, description="An endpoint that has failed for this long is disabled."
    )
    webhook_allow_http: bool = Field(
        False, description="Let webhooks go to http:// as well, where others can read them."
    )
    webhook_allow_private: bool = Field(
        False, description="Let webhooks go to private and loopback addresses: for development."
    )

    worker_name: str | None = Field(
        None,
        max_length=100,
        description="Name that projects see of this worker; empty: made from its id.",
    )
    worker_device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Accelerator that this worker offers."
    )
    worker_devices: int | None = Field(
        None,
        ge=1,
        le=MOST_DEVICES,
        description="Devices that one job may use on this worker; empty: its graphics cards, or 1. "
        "On processors, so many processes share the cores.",
    )
    worker_slots: int = Field(
        1,
        ge=1,
        le=MOST_DEVICES,
        description="Jobs that a worker runs side by side, each on devices of its own; one engine "
        "each, and on processors a share of the cores.",
    )
    engine_warm: bool = Field(
        True,
        description="Fork engines from a process that has loaded torch (on Linux).",
    )
    engine_user: str | None = Field(
        None,
        max_length=64,
        description="User (name or number) that engines and inspections run as, if the worker is "
        "root; empty: nobody.",
    )
    engine_sockets: bool = Field(
        False,
        description="Where an engine can have no network namespace, let those of jobs on several "
        "devices open sockets of the internet protocols, by which their processes talk.",
    )
    engine_memory_bytes: int | None = Field(
        None,
        ge=2**30,
        description="An engine may not take more memory (on Linux); empty: the machine's.",
    )
    study_students: int = Field(
        6, ge=1, description="Jobs of one study that an engine may train side by side; 1: none."
    )
    inspection_memory_bytes: int = Field(
        8 * 2**30,
        ge=256 * 2**20,
        description="An upload that takes more memory to inspect is rejected (on Linux).",
    )
    decoded_dataset_bytes: int = Field(
        2 * 2**30,
        ge=0,
        description="Uploaded pictures with one class each that take more than this when they are "
        "decoded are stored as their files, and decoded while training.",
    )
    sources: str = Field(
        "",
        description="Places whose files data sets may refer to without an upload, separated by "
        "spaces: file:///folder (of the workers) and s3://bucket/prefix; {project} in one is the "
        "name of the project that asks. Every project may read all others. Empty: none.",
    )
    worker_cache_bytes: int = Field(
        50 * 2**30, ge=0, description="Least recently used inputs above this are dropped."
    )
    worker_min_free_bytes: int = Field(
        512 * 2**20,
        ge=0,
        description="With less free disk a worker takes no job; checkpoints and results need it.",
    )
    allow_pickle: bool = Field(
        True, description="Convert weights-only PyTorch files; false: safetensors only."
    )

    oidc_issuer: str | None = Field(
        None,
        description="Issuer whose OIDC bearer tokens are accepted beside API keys; empty: none.",
    )
    oidc_audience: str | None = Field(None, description="Audience that such a token must name.")
    oidc_project_claim: str = Field(
        "retort_project", description="Claim that names the project; a.b is b inside of a."
    )
    oidc_projects: dict[str, str] = Field(
        {}, description="JSON: project for each value of that claim; {}: it is the project's name."
    )
    oidc_role_claim: str = Field(
        "retort_role", description="Claim with the role or roles; the highest counts."
    )
    oidc_roles: dict[str, Literal["viewer", "editor", "admin"]] = Field(
        {}, description="JSON: viewer, editor or admin for each value; {}: it is the role's name."
    )
    oidc_skew_seconds: int = Field(
        30, ge=0, le=300, description="By how much the issuer's clock may differ from ours."
    )

    @field_validator("webhook_delays_seconds")
    @classmethod
    def _delays_are_numbers(cls, text: str) -> str:
        if not re.fullmatch(r"\d+(\.\d+)?(,\d+(\.\d+)?)*", text):
            raise ValueError(f"seconds separated by commas, such as 0,5,300; got {text!r}")
        return text

    @model_validator(mode="after")
    def _sources_are_apart_from_the_store(self) -> Self:
        own = (self.storage_url, self.data_dir)
        source_places.check_apart(source_places.parse_allowed(self.sources), own)
        return self

    @model_validator(mode="after")
    def _heartbeats_fit_into_a_lease(self) -> Self:
        if self.heartbeat_seconds > self.lease_seconds / 2:
            raise ValueError(
                f"RETORT_HEARTBEAT_SECONDS is {self.heartbeat_seconds:g}: at most half of "
                f"RETORT_LEASE_SECONDS ({self.lease_seconds:g}), or every lease is lost"
            )
        return self

    @model_validator(mode="after")
    def _each_slot_has_a_device(self) -> Self:
        if self.worker_devices is not None and self.worker_devices < self.worker_slots:
            raise ValueError(
                f"RETORT_WORKER_SLOTS is {self.worker_slots}: at most RETORT_WORKER_DEVICES "
                f"({self.worker_devices}), because each job needs a device; raise that, or leave "
                "it empty"
            )
        return self

    @model_validator(mode="after")
    def _tokens_name_an_audience(self) -> Self:
        if (self.oidc_issuer is None) != (self.oidc_audience is None):
            raise ValueError(
                "RETORT_OIDC_ISSUER and RETORT_OIDC_AUDIENCE are set both or neither: without the "
                "audience, tokens that were made for other services would be accepted"
            )
        return self

    @property
    def webhook_delays(self) -> tuple[float, ...]:
        """Return how long to wait before each attempt of a delivery, in seconds."""
        return tuple(float(part) for part in self.webhook_delays_seconds.split(","))

    @property
    def allowed_sources(self) -> list[str]:
        """Return the places that data sets may refer to, as they are written."""
        return source_places.parse_allowed(self.sources)

    @property
    def cache_dir(self) -> Path:
        """Return where a worker keeps inputs by digest."""
        return self.data_dir / "cache"

    @property
    def compile_cache_dir(self) -> Path:
        """Return where engines keep what torch, Triton and CUDA have compiled for them."""
        return self.data_dir / "compiled"

    @property
    def scratch_dir(self) -> Path:
        """Return where attempts have their private working folders."""
        return self.data_dir / "scratch"


_COMPOSE_ONLY = (
    "# Only docker-compose.yml reads these. Letters and digits only, since they stand in URLs:",
    "# openssl rand -hex 24",
    "POSTGRES_PASSWORD=",
    "REDIS_PASSWORD=",
)


def env_example() -> str:
    """Return the text of `.env.example`: every variable, its default and its meaning."""
    lines = ["# Generated by `python -m models_registry.settings > .env.example`.", ""]
    for name, field in Settings.model_fields.items():
        default = "" if field.default is None else field.default
        shown = str(default).lower() if isinstance(default, bool) else str(default)
        lines += [f"# {field.description}", f"RETORT_{name.upper()}={shown}", ""]
    lines += [*_COMPOSE_ONLY, ""]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    sys.stdout.write(env_example())
