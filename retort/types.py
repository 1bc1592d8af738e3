"""Bodies of the server's responses: one class each.

Fields that this version does not know are ignored, and a state that it does not know counts as not
final: a newer server must not break an older client.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from retort.metrics import PRIMARY_METRICS

FINAL_STATES = frozenset({"succeeded", "failed", "cancelled"})
FINAL_STUDY_STATES = frozenset({"succeeded", "incomplete", "failed", "cancelled"})
SETTLED_STATES = frozenset({"ready", "rejected"})
SETTLED_PREDICTION_STATES = frozenset({"ready", "failed"})
SETTLED_EXPORT_STATES = frozenset({"ready", "refused", "failed"})

# Free-form JSON written by the server (specs, schemas, lineage): its shape is not this client's.
Json = dict[str, Any]
Item = TypeVar("Item")


class Body(BaseModel):
    """What all bodies have in common."""

    # Losses can be NaN or infinite; JSON has neither, so they travel as strings both ways.
    model_config = ConfigDict(extra="ignore", frozen=True, ser_json_inf_nan="strings")


class Page(Body, Generic[Item]):
    """One page of a list."""

    data: list[Item]
    next_cursor: str | None = None
    has_more: bool = False


class Failure(Body):
    """Why a job failed."""

    code: str
    message: str = ""
    retryable: bool = False
    attempt: int | None = None
    log_tail: list[str] = Field(default_factory=list)


class Warned(Body):
    """Something that a user should know of a job, though it did not stop it."""

    code: str
    message: str = ""


class JobResult(Body):
    """What a job that succeeded has made.

    Declared here is only what the command line and the downloads read. All other fields that the
    server's OpenAPI document lists for `JobResult`, such as `flops`, are attributes as well, with
    plain JSON values; `model_extra` has them as a dictionary.
    """

    model_config = ConfigDict(extra="allow")

    student: str | None = None
    digest: str | None = None
    scores: dict[str, Json | None] = Field(default_factory=dict)
    parameters: dict[str, int | None] = Field(default_factory=dict)
    wall_seconds: float | None = None
    training_images_read: int | None = None
    labels: Json | None = None
    class_weights: dict[str, float] | None = None
    parallel: Json | None = None  # how several devices shared the work
    synthesis: Json | None = None
    federation: Json | None = None

    if TYPE_CHECKING:
        # The fields that are not declared, for type checkers.
        def __getattr__(self, name: str) -> Any: ...


class Job(Body):
    """One request to distil, with its state."""

    id: str
    name: str | None = None
    state: str
    state_reason: str | None = None
    state_message: str | None = None
    attempt: int = 0
    progress: float = 0.0
    created_at: datetime | None = None
    queued_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    estimated_end_at: datetime | None = None
    retry_of: str | None = None
    study: str | None = None
    variant: int | None = None
    depends_on: dict[str, str] = Field(default_factory=dict)
    spec: Json = Field(default_factory=dict)
    metrics: dict[str, float | None] = Field(default_factory=dict)
    priority: int = 0
    max_attempts: int | None = None
    warnings: list[Warned] | None = None
    failure: Failure | None = None
    result: JobResult | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether the state of the job can no longer change."""
        return self.state in FINAL_STATES

    @property
    def primary_metric(self) -> str | None:
        """The metric that decides, such as `accuracy`; None of a task unknown to this version."""
        return _primary_metric(self.spec.get("task"))


class Event(Body):
    """One entry of a job's log of events."""

    sequence: int
    type: str
    at: datetime | None = None
    data: Json = Field(default_factory=dict)


class Attempt(Body):
    """One attempt at a job: a worker's lease on it."""

    number: int
    worker_id: str | None = None
    device: str | None = None
    resumed_from_step: int | None = None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    outcome: str | None = None
    message: str | None = None


class AttemptLog(Body):
    """The last lines that an attempt's engine has written so far."""

    attempt: int
    lines: list[str] = Field(default_factory=list)
    ended_at: datetime | None = None
    is_cut: bool = False
    position: str | None = None


class LogSlice(Body):
    """Lines of an attempt's log, as they were written."""

    attempt: int
    lines: list[str] = Field(default_factory=list)


class Checkpoint(Body):
    """A checkpoint from which a job can resume."""

    id: str
    attempt: int
    step: int
    epoch: int
    phase: str
    sha256: str | None = None
    size_bytes: int = 0
    created_at: datetime | None = None


class ApiKey(Body):
    """An API key, without its text."""

    id: str
    name: str
    role: str
    scopes: list[str] | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    last_used_at: datetime | None = None
    rotated_at: datetime | None = None
    former_expires_at: datetime | None = None
    former_last_used_at: datetime | None = None


class AuditEntry(Body):
    """Who did what, when, and with which key."""

    id: str
    at: datetime
    action: str
    subject: str
    actor: str
    key_id: str | None = None
    request_id: str | None = None
    facts: Json = Field(default_factory=dict)


class RetentionPolicy(Body):
    """For how long a project keeps what jobs leave; days of null are for good."""

    checkpoints_last: int
    failed_attempts_days: int | None = None
    logs_days: int | None = None
    metrics_days: int | None = None
    events_days: int | None = None
    grace_seconds: float = 0.0


class RetentionKind(Body):
    """What could be deleted of one kind, and what of it the next sweep deletes."""

    kind: str
    jobs: int
    entries: int
    size_bytes: int
    ready_jobs: int = 0
    ready_entries: int = 0
    ready_bytes: int = 0


class RetentionPreview(Body):
    """What a sweep could delete, and under which policy."""

    policy: RetentionPolicy
    kinds: list[RetentionKind]
    notes: list[str] = Field(default_factory=list)


class Remainder(Body):
    """Something that an erasure leaves, and why."""

    kind: str
    name: str
    reason: str


class Erasure(Body):
    """What was erased of a data set, and what remains."""

    reference: str
    versions: list[str] = Field(default_factory=list)
    blobs: int = 0
    size_bytes: int = 0
    pictures: list[str] = Field(default_factory=list)
    cancelled_jobs: list[str] = Field(default_factory=list)
    remains: list[Remainder] = Field(default_factory=list)
    waiting_blobs: int = 0
    notes: list[str] = Field(default_factory=list)


class NewApiKey(ApiKey):
    """A new key with its text, which no other answer contains."""

    api_key: str


class Recipe(Body):
    """A training recipe in full."""

    name: str
    training: Json = Field(default_factory=dict)


class Recipes(Body):
    """All training recipes, and the schema of `training`."""

    data: list[Recipe] = Field(default_factory=list)
    training_schema: Json = Field(default_factory=dict)


class MetricPoint(Body):
    """One measured value."""

    step: int
    epoch: int | None = None
    value: float | None
    at: datetime | None = None


class MetricSeries(Body):
    """The measured values of one key, in order of step."""

    key: str
    points: list[MetricPoint] = Field(default_factory=list)


class TrialSummary(Body):
    """The best trial of a search so far, by the validation split."""

    trial: int
    method: str = ""
    settings: Json = Field(default_factory=dict)
    value: float


class Confirmation(Body):
    """The last comparison of a search: its fresh seeds, and the variants that are compared."""

    seeds: list[int] = Field(default_factory=list)
    best: int | None = None
    default: int | None = None
    baseline: int | None = None


class Search(Body):
    """How far the search of a study is."""

    phase: str
    message: str | None = None
    objective: str = ""
    lower_is_better: bool = False
    planned_trials: int = 0
    trials: dict[str, int] = Field(default_factory=dict)
    best: TrialSummary | None = None
    confirmation: Confirmation | None = None
    warnings: list[Warned] | None = None


class Rung(Body):
    """A comparison of a trial with all that had come as far."""

    epoch: int
    value: float
    kept: bool = True
    needed: float | None = None
    best_of: int | None = None
    among: int | None = None


class Trial(Body):
    """One choice of values in a search."""

    number: int
    state: str
    method: str = ""
    settings: Json = Field(default_factory=dict)
    value: float | None = None
    message: str | None = None
    rungs: list[Rung] = Field(default_factory=list)
    jobs: list[str] = Field(default_factory=list)
    created_at: datetime | None = None
    ended_at: datetime | None = None


class Study(Body):
    """Jobs that differ in method, hyper-parameters and seed."""

    id: str
    name: str | None = None
    state: str
    progress: float = 0.0
    job_count: int = 0
    jobs: dict[str, int] = Field(default_factory=dict)
    pruned: int = 0
    search: Search | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    spec: Json = Field(default_factory=dict)
    labels: dict[str, str] = Field(default_factory=dict)

    @property
    def is_final(self) -> bool:
        """Whether every job has ended, and a search too; to retry a job continues the study."""
        return self.state in FINAL_STUDY_STATES


class Variant(Body):
    """What the jobs of one method with one choice of hyper-parameters have in common."""

    variant: int
    name: str
    method: Json = Field(default_factory=dict)
    settings: Json = Field(default_factory=dict)
    is_baseline: bool = False
    compared_with: int | None = None
    role: str | None = None


class SearchSpace(Body):
    """A value that a search chooses."""

    pointer: str
    name: str
    method: str | None = None
    space: Json = Field(default_factory=dict)
    default: Any = None


class StudyPlan(Body):
    """The jobs that a study would consist of; of a search, the most that there can be."""

    spec: Json = Field(default_factory=dict)
    job_count: int
    variants: list[Variant] = Field(default_factory=list)
    spaces: list[SearchSpace] = Field(default_factory=list)
    warnings: list[Warned] = Field(default_factory=list)


class Spread(Body):
    """Values over seeds."""

    mean: float
    standard_deviation: float | None = None
    smallest: float
    largest: float
    interval: tuple[float, float] | None = None


class Difference(Body):
    """Differences between a variant and its baseline, seed by seed."""

    pairs: int
    mean: float
    standard_deviation: float | None = None
    interval: tuple[float, float] | None = None
    p_value: float | None = None
    seeds_above: int = 0
    verdict: str | None = None


class SeedRun(Body):
    """One job of a variant."""

    seed: int
    job: str
    state: str
    accuracy: float | None = None
    miou: float | None = None
    ap: float | None = None
    knn: float | None = None
    student: str | None = None


class LeaderboardRow(Variant):
    """A variant and its scores."""

    rank: int | None = None
    finished: int = 0
    failed: int = 0
    unfinished: int = 0
    accuracy: Spread | None = None
    miou: Spread | None = None
    ap: Spread | None = None
    knn: Spread | None = None
    difference: Difference | None = None
    agreement: float | None = None
    ece: float | None = None
    wall_seconds: float | None = None
    images_per_second: float | None = None
    side_by_side: int = 0
    parameters: int | None = None
    runs: list[SeedRun] = Field(default_factory=list)


class Leaderboard(Body):
    """All variants of a study, best first."""

    study: str
    name: str | None = None
    state: str
    teacher: str | None = None
    metric: str = "accuracy"
    search: Search | None = None
    conclusion: str | None = None
    teacher_accuracy: float | None = None
    teacher_miou: float | None = None
    teacher_ap: float | None = None
    teacher_knn: float | None = None
    seeds: list[int] = Field(default_factory=list)
    rows: list[LeaderboardRow] = Field(default_factory=list)

    @property
    def teacher_score(self) -> float | None:
        """The teacher's value of `metric`; None if it was not measured."""
        return getattr(self, f"teacher_{self.metric}", None)

    def score_of(self, row: LeaderboardRow) -> Spread | None:
        """Return a row's values of `metric`, or None if none was measured."""
        return getattr(row, self.metric, None)


class Part(Body):
    """One part of an upload."""

    number: int
    url: str
    received: bool = False
    sha256: str | None = None  # of the bytes received


class Upload(Body):
    """A file that is being sent to the server, part by part."""

    id: str
    state: str
    filename: str | None = None
    size_bytes: int | None = None
    sha256: str | None = None
    part_size_bytes: int | None = None
    expires_at: datetime | None = None
    blob: str | None = None
    parts: list[Part] = Field(default_factory=list)


class Rejection(Body):
    """Why a worker rejected an upload."""

    code: str
    message: str = ""
    missing_keys: list[str] = Field(default_factory=list)
    unexpected_keys: list[str] = Field(default_factory=list)
    shape_mismatches: list[Any] = Field(default_factory=list)  # shape depends on the code


class StoredFile(Body):
    """One file of a model version."""

    path: str
    size_bytes: int
    sha256: str
    media_type: str | None = None


class ReportFile(StoredFile):
    """One file of a job's report; `path` is relative to the report."""

    url: str


class Report(Body):
    """The files that explain a finished job."""

    data: list[ReportFile] = Field(default_factory=list)
    archive: str | None = None


class ModelVersion(Body):
    """One immutable set of weights."""

    name: str
    version: int
    state: str
    reference: str
    network: str | None = None
    kind: str | None = None
    gives: list[str] | None = None
    arguments: Json = Field(default_factory=dict)
    task: str | None = None
    classes: int | list[str] | None = None
    classes_count: int | None = None  # of them all: a list shows the first ones
    input: Json | None = None
    digest: str | None = None
    parameters: int | None = None
    scores: Json = Field(default_factory=dict)
    lineage: Json | None = None
    rejection: Rejection | None = None
    notes: list[str] | None = None
    files: list[StoredFile] = Field(default_factory=list)
    card: str | None = None
    tags: Json = Field(default_factory=dict)
    deprecated: bool = False
    upload: str | None = None
    job: str | None = None
    created_at: datetime | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the upload has been inspected."""
        return self.state in SETTLED_STATES

    @property
    def primary_metric(self) -> str | None:
        """The metric that decides, such as `accuracy`; None of a task unknown to this version."""
        return _primary_metric(self.task)


class ExportFile(StoredFile):
    """One file of an export, and where it is downloaded."""

    url: str


class Export(Body):
    """A model version in another form, and how it compares with the original."""

    id: str
    model: str
    format: str
    precision: str
    include_preprocessing: bool = False
    max_drop: float | None = None
    state: str
    failure: Failure | None = None
    files: list[ExportFile] = Field(default_factory=list)
    opset: int | None = None
    library_versions: dict[str, str] = Field(default_factory=dict)
    checks: Json | None = None
    latency: Json | None = None
    notes: list[str] = Field(default_factory=list)
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None

    @property
    def is_settled(self) -> bool:
        """Whether it is `ready`, `refused` or `failed`."""
        return self.state in SETTLED_EXPORT_STATES


class Prediction(Body):
    """Pictures, and what a version says of them."""

    id: str
    state: str
    export: str | None = None
    answers: list[Json] | None = None
    milliseconds: float | None = None
    failure: Failure | None = None

    @property
    def is_settled(self) -> bool:
        """Whether there is an answer, or none will come."""
        return self.state in SETTLED_PREDICTION_STATES


class NewestVersion(Body):
    """The newest version of a model, in whatever state."""

    version: int
    state: str
    rejection: Rejection | None = None


class Model(Body):
    """A model: a name for its versions."""

    name: str
    latest_version: int | None = None
    newest_version: NewestVersion | None = None
    card: str | None = None
    tags: Json = Field(default_factory=dict)
    aliases: dict[str, int] = Field(default_factory=dict)
    created_at: datetime | None = None


class Alias(Body):
    """A movable pointer to a model version."""

    alias: str
    version: int


class Archive(Body):
    """The file that a version of a data set was uploaded as."""

    filename: str
    size_bytes: int
    sha256: str


class Source(Body):
    """Files elsewhere that a version of a data set refers to."""

    url: str
    kind: str | None = None  # file or folder; null until it was inspected
    digest: str | None = None  # of what was listed there
    files: int | None = None
    size_bytes: int | None = None


class DatasetVersion(Body):
    """One immutable data set."""

    name: str
    version: int
    reference: str
    state: str
    task: str | None = None
    classes: list[str] = Field(default_factory=list)
    classes_count: int | None = None  # of them all: a list shows the first ones
    splits: dict[str, int] = Field(default_factory=dict)
    boxes: dict[str, list[int]] | None = None
    labelled: dict[str, int] | None = None
    encoded: Json | None = None  # how pictures are stored that are decoded when used
    notes: list[str] | None = None
    format: str | None = None
    input: Json | None = None
    digest: str | None = None
    size_bytes: int | None = None
    archive: Archive | None = None
    source: Source | None = None
    job: str | None = None
    lineage: Json = Field(default_factory=dict)
    rejection: Rejection | None = None
    card: str | None = None
    tags: Json = Field(default_factory=dict)
    created_at: datetime | None = None

    @property
    def is_settled(self) -> bool:
        """Whether the upload has been inspected."""
        return self.state in SETTLED_STATES


class Dataset(Body):
    """A data set: a name for its versions."""

    name: str
    latest_version: int | None = None
    size_bytes: int | None = None
    created_at: datetime | None = None


class Method(Body):
    """One published method of distillation."""

    name: str
    family: str
    title: str = ""
    description: str = ""
    source: Json = Field(default_factory=dict)
    tasks: list[str] = Field(default_factory=list)
    needs: list[str] = Field(default_factory=list)
    across_devices: str | None = None  # gathers, slices, or one
    params_schema: Json = Field(default_factory=dict)
    differs: str | None = None


class Measured(Body):
    """How far a method ended from the student alone, in points of the deciding metric."""

    difference: float
    lowest: float
    seeds: int
    pairs: int


class RankedMethod(Body):
    """A method, and whether it fits a job."""

    name: str
    family: str
    title: str = ""
    balance: str | None = None
    measured: Measured | None = None
    refusals: list[str] = Field(default_factory=list)


class MethodRanking(Body):
    """Methods for a job: those that fit first."""

    data: list[RankedMethod]
    metric: str = "accuracy"
    measured_on: str | None = None


class Network(Body):
    """One architecture that a student or teacher can have."""

    name: str
    family: str | None = None
    task: str | None = None
    parameters_100: int | None = None
    description: str = ""
    arguments_schema: Json = Field(default_factory=dict)


class Worker(Body):
    """One process that runs jobs."""

    id: str
    name: str | None = None
    state: str | None = None
    fault: Json | None = None  # code, message, since and retry_at, where it takes no jobs
    device: str | None = None
    devices: list[Any] = Field(default_factory=list)  # as the worker announced them
    offered_devices: int = 1  # to one job, at most
    slots: int = 1  # engines side by side, at most
    total_devices: int = 1  # that the slots share
    queues: list[str] = Field(default_factory=list)
    memory_bytes: int | None = None
    versions: Json = Field(default_factory=dict)
    job_id: str | None = None  # the first of job_ids
    job_ids: list[str] = Field(default_factory=list)  # of the caller
    started_at: datetime | None = None
    last_seen_at: datetime | None = None


def _primary_metric(task: str | None) -> str | None:
    return PRIMARY_METRICS.get(task or "classification")  # the default of a request


class Federation(Body):
    """The remote clients' side of a federated job."""

    id: str
    job: str
    name: str | None = None
    method: str | None = None
    state: str
    state_message: str | None = None
    round: int = 0
    rounds: int = 0
    joined: int = 0
    invited: int = 0
    min_clients: int = 0
    deadline_seconds: float | None = None
    created_at: datetime | None = None

    @property
    def is_final(self) -> bool:
        """Whether the state can no longer change."""
        return self.state in FINAL_STATES


class FederationClient(Body):
    """A client of a federation, as its owner sees it."""

    id: str
    name: str
    state: str
    samples: int | None = None
    metrics: dict[str, float] = Field(default_factory=dict)
    last_round: int | None = None
    bytes_up: int = 0
    bytes_down: int = 0
    late: int = 0
    refused: int = 0
    joined_at: datetime | None = None
    last_seen_at: datetime | None = None


class InvitedClient(FederationClient):
    """A new client with its key, which is shown once."""

    client_key: str


class FederationRound(Body):
    """One round, as its federation's owner sees it."""

    number: int
    state: str
    replies: int = 0
    bytes_up: int = 0
    bytes_down: int | None = None
    opened_at: datetime | None = None
    deadline_at: datetime | None = None
    closed_at: datetime | None = None
    published_at: datetime | None = None


class Membership(Body):
    """A client's place in a federation."""

    client: str
    name: str
    federation: str
    method: str
    rounds: int
    classes: list[str] = Field(default_factory=list)


class Situation(Body):
    """Where a federation stands, for one of its clients."""

    revision: int
    state: str
    message: str | None = None
    is_planned: bool = False
    round: int = 0
    round_state: str | None = None
    deadline_at: datetime | None = None
    has_answered: bool = False
    published: int | None = None

    @property
    def is_final(self) -> bool:
        """Whether the state can no longer change."""
        return self.state in FINAL_STATES


class Plan(Body):
    """What a client needs to know to take part."""

    plan: Json
    open_set: str | None = None


class RoundTask(Body):
    """What a round asks of a client."""

    round: int
    state: str
    deadline_at: datetime | None = None
    expected: Json = Field(default_factory=dict)
    open_rows: list[int] | None = None
    start: int | None = None


class WebhookEndpoint(Body):
    """An address that is told of the project's events."""

    id: str
    url: str
    description: str = ""
    events: list[str] | None = None
    enabled: bool = True
    disabled_reason: str | None = None
    disabled_message: str | None = None
    disabled_at: datetime | None = None
    failing_since: datetime | None = None
    last_delivered_at: datetime | None = None
    former_secret_expires_at: datetime | None = None
    created_at: datetime | None = None


class NewWebhookEndpoint(WebhookEndpoint):
    """An endpoint with its new secret, which is shown once."""

    secret: str


class WebhookAttempt(Body):
    """One request of a delivery."""

    number: int
    started_at: datetime | None = None
    ended_at: datetime | None = None
    status: int | None = None
    error: str | None = None
    excerpt: str | None = None


class WebhookDelivery(Body):
    """One event on its way to one endpoint."""

    id: str
    message_id: str
    type: str
    state: str
    payload: Json = Field(default_factory=dict)
    next_attempt_at: datetime | None = None
    created_at: datetime | None = None
    ended_at: datetime | None = None
    attempts: list[WebhookAttempt] = Field(default_factory=list)


class Quota(Body):
    """One quota: the limit that counts, where it comes from, and what is used."""

    name: str
    limit: int | None = None
    own_limit: int | None = None
    service_limit: int | None = None
    used: int | None = None


class Usage(Body):
    """What a project may use, and what it uses."""

    project: str
    name: str
    share_weight: float = 1.0
    quotas: list[Quota] = Field(default_factory=list)
