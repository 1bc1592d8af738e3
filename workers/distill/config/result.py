"""What a finished run reports: the one list of its fields.

The engine fills it in `run/finish.py`, the worker stores it with the job, and the API documents it
as part of `JobResult`. Every field has a default, since results of earlier versions are still read.
Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity" within `scores`.
"""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from workers.distill.config.teachers import Kind

EPOCHS = "epochs/"
"""Folder of the epochs that `training.keep_best_epochs` keeps beside the student."""
Role: TypeAlias = Literal["teacher", "student", "baseline"]


class _ResultPart(BaseModel):
    """An object within the result; fields that are not declared pass through."""

    model_config = ConfigDict(frozen=True, extra="allow")


class RunWarning(_ResultPart):
    """Something that a user should know, though it did not stop the run."""

    code: str = Field(default="", description="Such as `teacher_weak`.")
    message: str = ""


class BufferSummary(_ResultPart):
    """What the replay buffer holds at the end."""

    images: int = Field(default=0, description="Images in the buffer.")
    classes: list[int] = Field(
        default=[], description="Images by the class that the teacher predicts for them."
    )


class SynthesisSummary(_ResultPart):
    """What a data-free method did to make its images."""

    calls: int = Field(default=0, description="Calls of the synthesizer.")
    steps: int = Field(default=0, description="Optimizer steps of all calls together.")
    images: int = Field(default=0, description="Images made.")
    synthesis_seconds: float = Field(default=0.0, description="Time spent on making images, in s.")
    distillation_seconds: float = Field(default=0.0, description="Time spent on training, in s.")
    buffer: BufferSummary | None = None


class ValidationSummary(_ResultPart):
    """The metric that decides on the validation split of a data-free job; nothing was chosen by it.

    It is accuracy in classification, and miou in segmentation.
    """

    last: float | None = Field(default=None, description="After the last epoch, in 0..1.")
    best: float | None = Field(default=None, description="The highest of all epochs, in 0..1.")
    best_epoch: int | None = Field(default=None, description="The epoch of `best`, from 1.")


class KeptEpoch(_ResultPart):
    """An epoch whose weights are kept (`training.keep_best_epochs`)."""

    epoch: int = Field(default=0, description="From 1.")
    score: float = Field(
        default=0.0, description="The validation metric that decides, as in the history."
    )
    path: str | None = Field(
        default=None,
        description="The file of the student's version with its weights; null for the student.",
    )


class ParallelSummary(_ResultPart):
    """How several devices trained one student (`resources.devices`)."""

    devices: int = Field(default=1, description="Devices, each with a process of its own.")
    batch_size: int = Field(default=1, description="Images of a step, of all devices together.")
    loss: Literal["whole_batch", "slices"] = Field(
        default="whole_batch",
        description="`whole_batch`: outputs of all devices were gathered, and the loss is that of "
        "the whole batch; `slices`: the loss is a mean over images, and each device computed it "
        "for its own.",
    )
    batch_norm: Literal["synchronised", "per_device"] = Field(
        default="per_device",
        description="Whether batch norms of the student had the statistics of the whole batch, or "
        "those of the slice of each device.",
    )


class BalanceSummary(_ResultPart):
    """How strong the distillation terms were beside the labels (`method.balance`)."""

    limit: float | None = Field(
        default=None,
        description="How many times the task's their gradient could be; null for published "
        "weights, which were measured only.",
    )
    ratio: float | None = Field(
        default=None,
        description="How many times it was at published weights: the median of the epochs' ends; "
        "null where the task had no gradient.",
    )
    factor: float = Field(
        default=1.0, description="What they were multiplied by: the median of the epochs' ends."
    )
    dominated_share: float = Field(
        default=0.0, description="Share of the measurements with a ratio above 10, 0..1."
    )


class LabelSummary(_ResultPart):
    """Which images had labels, where some had none."""

    labelled: int = Field(default=0, description="Training images that were given one.")
    pseudo: int = Field(
        default=0, description="Training images that got the teacher's (`training.pseudo_labels`)."
    )
    unlabelled: int = Field(
        default=0,
        description="Training images without one, which count in the distillation terms alone.",
    )
    left_out: dict[str, int] = Field(
        default={},
        description="Images of validation and test without one, which do not count in the scores.",
    )
    scored_by: dict[str, Literal["labels", "teacher"]] = Field(
        default={},
        description="What the scores of validation and test compare with; by `teacher`, accuracy "
        "is agreement with the teacher.",
    )


class ScoreRange(_ResultPart):
    """A score over all clients, 0..1."""

    mean: float = Field(default=0.0, description="Mean over the clients, each counted once.")
    min: float = Field(default=0.0, description="Of the worst client.")
    max: float = Field(default=0.0, description="Of the best client.")


class ClientAugmentation(_ResultPart):
    """What one client asked for and got in the augmentation, and what that revealed."""

    target_labels: list[str] = Field(default=[], description="Labels that it wanted images of.")
    redundant_labels: list[str] = Field(
        default=[], description="Labels that it sent images of as camouflage."
    )
    seed_images: int = Field(default=0, description="Images of its own that it sent.")
    generated_images: int = Field(default=0, description="Images that were made for it.")
    device_server_leakage: float = Field(
        default=0.0, description="Its target labels over all labels that it asked for, 0..1."
    )
    inter_device_leakage: float = Field(
        default=0.0, description="Its target labels over all that any client asked for, 0..1."
    )


class ClientSummary(_ResultPart):
    """What one client of a federation had and did."""

    name: str = Field(default="", description="`client-000` and so on, or the name it joined by.")
    network: str | None = Field(default=None, description="Null of a remote client.")
    images: int | None = Field(default=None, description="Its training images.")
    classes: int | None = Field(default=None, description="Classes of which it has images.")
    replies: int = Field(default=0, description="Rounds that it answered, late ones included.")
    dropped: int = Field(default=0, description="Rounds in which it was drawn and vanished.")
    late: int = Field(default=0, description="Replies that came too late and were left out.")
    bytes_up: int = Field(default=0, description="Bytes that it sent, as encoded.")
    bytes_down: int = Field(default=0, description="Bytes that it received, as encoded.")
    accuracy: float | None = Field(
        default=None, description="Of its own model on the test split after the last round, 0..1."
    )
    augmentation: ClientAugmentation | None = Field(
        default=None, description="Null without augmentation."
    )


class FederationSummary(_ResultPart):
    """How a federated job went: clients, rounds, traffic."""

    clients: int = Field(default=0, description="Clients in all.")
    rounds: int = Field(default=0, description="Rounds that were made.")
    skipped_rounds: int = Field(
        default=0, description="Rounds with too few replies, which changed nothing."
    )
    delivered: str | None = Field(
        default=None,
        description="Whose model the student is: `server`, or the client with the best answers on "
        "the validation split after the delivered round.",
    )
    engines: dict[str, int] = Field(
        default={},
        description="Clients by how they were trained: `vmap` at once, `loop` one after the other, "
        "`remote` elsewhere.",
    )
    not_vectorised: list[str] = Field(
        default=[], description="Why clients could not be trained at once, where that was wanted."
    )
    partition_sha256: str | None = Field(
        default=None, description="Digest of `partition.json`: which images each client had."
    )
    open_images: int = Field(default=0, description="Open images, which no client trained on.")
    labels_without_holder: list[str] = Field(
        default=[], description="Classes of which no client had an image."
    )
    labels_without_seed: list[str] = Field(
        default=[], description="Classes that the augmentation could not generate."
    )
    client_accuracy: ScoreRange | None = Field(
        default=None, description="Of the clients' own models on the test split, after the end."
    )
    ensemble_accuracy: float | None = Field(
        default=None, description="Of all clients' mean answer on the test split, 0..1."
    )
    bytes_up: int = Field(default=0, description="Bytes sent by all clients, as encoded.")
    bytes_down: int = Field(default=0, description="Bytes received by all clients, as encoded.")
    payload_bytes_up: int = Field(default=0, description="The same without headers: tensors alone.")
    payload_bytes_down: int = Field(default=0, description="The same of what was received.")
    epsilon: float | None = Field(
        default=None,
        description="Of (epsilon, delta) privacy of the tables of the client that replied most "
        "often; null without noise. Label counts are sent as they are.",
    )
    by_client: list[ClientSummary] = Field(default=[], description="Each client, by name.")


class Timing(_ResultPart):
    """How long a network takes from one image to its answer, after a warm-up."""

    p50_ms: float = Field(default=0.0, description="Half of the calls took no longer, in ms.")
    p99_ms: float = Field(
        default=0.0,
        description="99 % of the calls took no longer, in ms; of fewer than 100 calls, none did.",
    )
    threads: int = Field(default=0, description="Threads that one operation may use.")
    calls: int = Field(default=0, description="Calls that were measured.")


class Latency(_ResultPart):
    """How long a network takes from one image to its answer, by the threads that it may use."""

    one_thread: Timing | None = Field(
        default=None, description="Null on a card, where threads of the processor do not matter."
    )
    all_threads: Timing | None = Field(default=None, description="With all that the run had.")


class TeacherResult(BaseModel):
    """One of the teachers of a run."""

    model_config = ConfigDict(frozen=True)

    network: str
    kind: Kind = Field(
        description="weights: a network with its weights; graph: an ONNX graph; predictions: "
        "stored predictions."
    )
    # Any: each task has metrics of its own.
    scores: dict[str, Any] | None = Field(
        description="Alone on the test split; null where it was not evaluated."
    )


class SizeScores(BaseModel):
    """The student in another size of the test images."""

    model_config = ConfigDict(frozen=True)

    height: int = Field(description="Of the images, in pixels.")
    width: int
    scores: dict[str, Any] = Field(description="As `scores.student`.")  # Any: as there


class RunResult(BaseModel):
    """What was measured and made by one run; fields that are not declared are left out."""

    model_config = ConfigDict(frozen=True)

    # Any: each task has metrics of its own.
    scores: dict[Role, dict[str, Any] | None] = Field(
        default={},
        description="On the test split, by network; null for what was not measured. The metric "
        "that decides (`accuracy`, `miou`, `ap` or `knn`, 0..1) and `samples` of every task, "
        "`agreement` with the teacher (0..1), and the task's own. Classification: "
        "`accuracy_interval` (95 %), `ece` and `loss` (nats). Segmentation: `accuracy` of pixels, "
        "`miou_interval` (95 %), `iou` by class and `pixels`. Detection: COCO's other figures "
        "(`ap50`, `ap75`, `ap_small` and so on), `ap_interval` (95 %), `ap_by_class`, `voc_ap50`, "
        "number of `boxes`, and `detections` by kind of error. "
        "Embedding: `knn` and `linear_probe` (accuracy by the nearest labelled training images, "
        "and by a linear classifier on embeddings; null without labels) with their intervals, "
        "`reference_images`, and `cka`, `cosine` and `shared_neighbours` with the teacher.",
    )
    scores_by_size: list[SizeScores] = Field(
        default=[],
        description="The student on the test split once more, in the sizes of "
        "`training.evaluate_sizes`.",
    )
    conclusion: str | None = Field(
        default=None,
        description="One sentence on what the student is worth, beside its teacher and baseline. "
        "It `beats` or `misses` the baseline only where the 95 % interval of the difference leaves "
        "out 0.",
    )
    teachers: list[TeacherResult] = Field(
        default=[],
        description="Each teacher alone, in the order of the job's spec; with several, "
        "`scores.teacher` is that of all together.",
    )
    parameters: dict[Role, int | None] = Field(
        default={}, description="Number of parameters, by network."
    )
    flops: dict[Role, int | None] = Field(
        default={}, description="Floating-point operations for one image, by network."
    )
    latency_ms: dict[Role, float | None] = Field(
        default={},
        description="Median time from one image to the network's answer in ms, by network: "
        "`p50_ms` of `latency` with all threads.",
    )
    latency: dict[Role, Latency | None] = Field(
        default={},
        description="Time from one image to the network's answer, by network: median and 99th "
        "percentile, with one thread and with all.",
    )
    images_per_second: float | None = Field(
        default=None, description="Training images per second while the student was trained."
    )
    floor_share: float | None = Field(
        default=None,
        description="Share of a training step that is the networks' arithmetic, 0..1; null where "
        "it could not be measured.",
    )
    wall_seconds: float | None = Field(default=None, description="Time of the whole run in s.")
    report_seconds: float | None = Field(
        default=None, description="Time to write the report in s; null where there is none."
    )
    epochs: int | None = Field(default=None, description="Epochs that were asked for.")
    steps: int | None = Field(default=None, description="Optimizer steps of one network.")
    best_epoch: int | None = Field(
        default=None, description="Epoch whose weights were delivered, from 1."
    )
    kept_epochs: list[KeptEpoch] = Field(
        default=[],
        description="With `training.keep_best_epochs`: the epochs whose weights are kept, the best "
        "first, which is the student.",
    )
    device: str | None = Field(default=None, description="`cpu` or `cuda`.")
    device_name: str | None = Field(default=None, description="Such as `NVIDIA H100`.")
    precision: str | None = Field(default=None, description="Such as `float32` or `bfloat16`.")
    compile: bool | None = Field(default=None, description="Whether torch.compile was used.")
    method: dict[str, Any] = Field(  # Any: each method has facts of its own
        default={},
        description="What the method made of the networks' shapes, such as `patches` of densepcka: "
        "patches of each level of the pyramid, finest first; too few teach little.",
    )
    balance: BalanceSummary | None = Field(
        default=None, description="Null where nothing was measured."
    )
    class_weights: dict[str, float] | None = Field(
        default=None,
        description="What a pixel of each class counted in the cross-entropy with the masks, by "
        "the name of the class; null where all counted alike.",
    )
    decode_threads: int | None = Field(
        default=None,
        description="Threads by which the process of each device decoded pictures: its part of the "
        "machine's cores, at most 16. Null where pictures are stored decoded.",
    )
    parallel: ParallelSummary | None = Field(
        default=None, description="How several devices shared the work; null for one device."
    )
    labels: LabelSummary | None = Field(
        default=None, description="Null where every image had a label."
    )
    warnings: list[RunWarning] = Field(
        default=[], description="What the run warned of, in order; also among its events."
    )
    versions: dict[str, str] = Field(
        default={}, description="Versions of the software that the student's bytes depend on."
    )
    shared_with: int | None = Field(
        default=None,
        description="How many other students of the study were trained by the same process; they "
        "shared its time, so `wall_seconds` and `images_per_second` are not those of a run alone.",
    )
    training_images_read: int | None = Field(
        default=None, description="Images of a training split; 0 for a data-free method."
    )
    evaluated_on: str | None = Field(
        default=None, description="`dataset`; null where there was none to evaluate on."
    )
    synthesis: SynthesisSummary | None = Field(
        default=None, description="Null for a method that learns from a data set."
    )
    validation: ValidationSummary | None = Field(
        default=None, description="Only of data-free methods with a data set to evaluate on."
    )
    federation: FederationSummary | None = Field(
        default=None, description="Only of federated methods."
    )
