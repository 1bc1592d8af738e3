"""What a finished run reports: the one list of its fields.

The engine fills it in `run/finish.py`, the worker stores it with the job, and the API documents it
as part of `JobResult`. Every field has a default, since results of earlier versions are still read.
Numbers that are not finite are the strings "NaN", "Infinity" and "-Infinity" within `scores`.
"""

from typing import Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

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


class RunResult(BaseModel):
    """What was measured and made by one run; fields that are not declared are left out."""

    model_config = ConfigDict(frozen=True)

    # Any: each task has metrics of its own.
    scores: dict[Role, dict[str, Any] | None] = Field(
        default={},
        description="On the test split, by network; null for what was not measured. The metric "
        "that decides (`accuracy`, `miou` or `ap`, 0..1) and `samples` of every task, `agreement` "
        "with the teacher (0..1), and the task's own. Classification: `accuracy_interval` (95 %), "
        "`ece` and `loss` (nats). Segmentation: `accuracy` of pixels, `iou` by class and `pixels`. "
        "Detection: COCO's other figures (`ap50`, `ap75`, `ap_small` and so on), `ap_interval` "
        "(95 %), `ap_by_class`, `voc_ap50`, number of `boxes`, and `detections` by kind of error.",
    )
    parameters: dict[Role, int | None] = Field(
        default={}, description="Number of parameters, by network."
    )
    flops: dict[Role, int | None] = Field(
        default={}, description="Floating-point operations for one image, by network."
    )
    latency_ms: dict[Role, float | None] = Field(
        default={},
        description="Median time from one image to the network's answer in ms, by network.",
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
    device: str | None = Field(default=None, description="`cpu` or `cuda`.")
    device_name: str | None = Field(default=None, description="Such as `NVIDIA H100`.")
    precision: str | None = Field(default=None, description="Such as `float32` or `bfloat16`.")
    compile: bool | None = Field(default=None, description="Whether torch.compile was used.")
    method: dict[str, Any] = Field(  # Any: each method has facts of its own
        default={},
        description="What the method made of the networks' shapes, such as `patches` of densepcka: "
        "patches of each level of the pyramid, finest first; too few teach little.",
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
