"""How a student is trained: plain, frozen, bounded values.

`Training` is part of the API's documentation through its JSON Schema; `PRESETS` holds the published
settings a caller starts from; `expand` lays the caller's fields over one of them. Each field is
checked on its own here; which values contradict each other stands in `rules.py`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Values(BaseModel):
    """Frozen values that refuse unknown fields and non-finite numbers, and convert no type.

    Types are those of JSON Schema, which the service checks by: a float may be given as an integer,
    and an integer as a float without a fraction.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    @model_validator(mode="before")
    @classmethod
    def _integers(cls, given: object) -> object:
        """Write floats without a fraction as integers, which fields of both types accept."""
        if not isinstance(given, Mapping):
            return given
        return {name: _as_integer(value) for name, value in given.items()}


def _as_integer(value: object) -> object:
    if isinstance(value, list):
        return [_as_integer(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


class SGD(Values):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.05, gt=0, le=100, description="Step size before the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last step that is kept.")
    weight_decay: float = Field(
        5e-4, ge=0, le=1, description="L2 penalty on every parameter, batch norm and biases too."
    )
    nesterov: bool = Field(False, description="Look ahead along the momentum.")


class AdamW(Values):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, le=100, description="Step size before the schedule.")
    weight_decay: float = Field(0.05, ge=0, le=1, description="Decoupled decay of the weights.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's beta1.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's beta2.")


class LAMB(Values):
    """Adam whose step for each weight is as long as the weight, for large batches.

    You et al., ICLR 2020, arXiv 1904.00962. Biases, and scales and shifts of norms, do not decay,
    and their step is Adam's.
    """

    name: Literal["lamb"] = "lamb"
    learning_rate: float = Field(
        5e-3, gt=0, le=100, description="Step size before the schedule, in lengths of a weight."
    )
    weight_decay: float = Field(0.02, ge=0, le=1, description="Decoupled decay of the weights.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Adam's beta1.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Adam's beta2.")


class DOT(Values):
    """Distillation-oriented trainer: SGD with one momentum for the task, one for the teacher.

    Zhao et al., ICCV 2023, arXiv 2307.08436. Where a method has only one of both, as the baseline
    has, this is SGD. Clipping measures the sum of both gradients and shrinks both alike.
    """

    name: Literal["dot"] = "dot"
    learning_rate: float = Field(0.05, gt=0, le=100, description="Step size before the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last step that is kept.")
    delta: float = Field(
        0.075,
        ge=0,
        lt=1,
        description="What the momentum of the task term loses and that of all other terms gains; "
        "published: 0.075 on CIFAR-100 and Tiny-ImageNet, 0.09 on ImageNet.",
    )
    weight_decay: float = Field(
        5e-4, ge=0, le=1, description="L2 penalty on every parameter, on the side of the task."
    )


WarmupEpochs = Annotated[
    float,
    Field(
        ge=0,
        le=10_000,
        description="Epochs over which the rate rises from zero, a little with every step.",
    ),
]


class Step(Values):
    """Multiply the learning rate by `factor` after each milestone."""

    name: Literal["step"] = "step"
    milestones: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        max_length=100,
        description="Epochs after which the rate drops; null places the recipe's own milestones "
        "at the same shares of `epochs` (in a short training, those that meet are one).",
    )
    factor: float = Field(0.1, gt=0, le=1, description="What the rate is multiplied by.")
    warmup_epochs: WarmupEpochs = 0


class Cosine(Values):
    """Warm up linearly, then fall along half a cosine, step by step."""

    name: Literal["cosine"] = "cosine"
    warmup_epochs: WarmupEpochs = 0
    final_factor: float = Field(0.0, ge=0, le=1, description="Rate at the end, as a share.")


class Poly(Values):
    """Warm up linearly, then fall as a power of what is left of the training, step by step."""

    name: Literal["poly"] = "poly"
    warmup_epochs: WarmupEpochs = 0
    power: float = Field(0.9, gt=0, le=10, description="Exponent of the share that is left.")
    final_factor: float = Field(0.0, ge=0, le=1, description="Rate at the end, as a share.")


class Constant(Values):
    """Keep the learning rate."""

    name: Literal["constant"] = "constant"
    warmup_epochs: WarmupEpochs = 0


class Mixup(Values):
    """Blend each image with another of its batch; the labels count by the same shares."""

    name: Literal["mixup"] = "mixup"
    alpha: float = Field(
        1.0, gt=0, le=100, description="Both parameters of the Beta distribution of the share."
    )


class CutMix(Values):
    """Paste a box of another image of the batch; the labels count by the areas."""

    name: Literal["cutmix"] = "cutmix"
    alpha: float = Field(
        1.0, gt=0, le=100, description="Both parameters of the Beta distribution of the share."
    )


class MixupOrCutMix(Values):
    """Mix each image by one of both, drawn for it."""

    name: Literal["mixup_or_cutmix"] = "mixup_or_cutmix"
    mixup_alpha: float = Field(
        0.8, gt=0, le=100, description="Both parameters of mixup's Beta distribution."
    )
    cutmix_alpha: float = Field(
        1.0, gt=0, le=100, description="Both parameters of CutMix's Beta distribution."
    )
    cutmix_share: float = Field(
        0.5, ge=0, le=1, description="Share of the images that are mixed by CutMix."
    )


class CrossEntropy(Values):
    """Cross-entropy of the softmax over all classes."""

    name: Literal["cross_entropy"] = "cross_entropy"


class BinaryCrossEntropy(Values):
    """Is it this class or not, for each class on its own; the mean over images and classes.

    Wightman et al., arXiv 2110.00476. With C classes it is some C times smaller than cross-entropy,
    so beside a teacher `method.task_weight` may be raised, or `method.balance` set to a number.
    """

    name: Literal["bce"] = "bce"
    target_threshold: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Classes whose share of a mixed image is above it count as shown in full, all "
        "others as not shown; null takes the shares themselves.",
    )


CropShare = Annotated[float, Field(gt=0, le=1)]
SideRatio = Annotated[float, Field(ge=0.1, le=10)]


class RandomResizedCrop(Values):
    """Cut a random part of each image and resize it to the images' size (Inception's crop)."""

    scale: list[CropShare] = Field(
        [0.08, 1.0],
        min_length=2,
        max_length=2,
        description="Smallest and largest share of the image's area that is cut.",
    )
    ratio: list[SideRatio] = Field(
        [0.75, 1.3333333333333333],
        min_length=2,
        max_length=2,
        description="Smallest and largest width, in heights, of what is cut; drawn evenly on a "
        "logarithmic scale.",
    )
    interpolation: Literal["bilinear", "bicubic"] = Field(
        "bilinear", description="How it is resized; both average where they make it smaller."
    )


class RandomErasing(Values):
    """Overwrite a random rectangle of some images with random pixels, after all else but mixing.

    Zhong et al., AAAI 2020, arXiv 1708.04896, with random values (RE-R).
    """

    probability: float = Field(0.25, ge=0, le=1, description="Share of the images.")
    scale: list[CropShare] = Field(
        [0.02, 0.33],
        min_length=2,
        max_length=2,
        description="Smallest and largest share of the image's area that is overwritten.",
    )
    ratio: list[SideRatio] = Field(
        [0.3, 3.3],
        min_length=2,
        max_length=2,
        description="Smallest and largest height of the rectangle, in widths.",
    )


class TeacherCache(Values):
    """Look at a fixed number of views of each image, so that the teacher sees each only once."""

    views: int = Field(
        10,
        ge=1,
        le=1000,
        description="Augmented views of each image; an epoch draws among them. Crop, flip and "
        "augmentation of a view depend on seed, image and view alone.",
    )
    per_visit: int = Field(
        1,
        ge=1,
        le=64,
        description="Different views of an image that follow one another in a batch. An epoch "
        "keeps its number of steps and shows as many times fewer images; as many epochs show each "
        "image once.",
    )


class PseudoLabels(Values):
    """Give images without a label the class of which the teacher is sure."""

    threshold: float = Field(
        0.95,
        ge=0,
        le=1,
        description="Smallest probability that the teacher must give a class; 0 takes all of its "
        "answers.",
    )


Optimizer = Annotated[SGD | AdamW | LAMB | DOT, Field(discriminator="name")]
TaskLoss = Annotated[CrossEntropy | BinaryCrossEntropy, Field(discriminator="name")]
Schedule = Annotated[Step | Cosine | Poly | Constant, Field(discriminator="name")]
Mixing = Annotated[Mixup | CutMix | MixupOrCutMix, Field(discriminator="name")]

MILESTONE_SHARES: dict[str, tuple[float, ...]] = {
    "small": (0.5, 0.75, 0.9),
    "cifar100": (0.625, 0.75, 0.875),
    "tiny_imagenet": (0.3, 0.6, 0.8),
    "imagenet": (0.3, 0.6, 0.9),
    "imagenet_a3": (0.3, 0.6, 0.9),
    "coco_1x": (2 / 3, 11 / 12),
    "coco_2x": (2 / 3, 11 / 12),
    "voc": (0.75,),
    "cityscapes": (0.5, 0.75, 0.9),
    "small_dense": (0.5, 0.75, 0.9),
}

PresetName: TypeAlias = Literal[
    "small",
    "cifar100",
    "tiny_imagenet",
    "imagenet",
    "imagenet_a3",
    "coco_1x",
    "coco_2x",
    "voc",
    "cityscapes",
    "small_dense",
]


ScaleFactor = Annotated[float, Field(ge=0.1, le=10)]


EvaluationSide = Annotated[int, Field(ge=8, le=1024)]


ClassWeight = Annotated[float, Field(ge=0, le=1e6)]


class Training(Values):
    """How a student is trained."""

    recipe: PresetName = Field(
        "small", description="Published settings that fill in what is not given."
    )
    epochs: int = Field(
        30,
        ge=1,
        le=100_000,
        description="Passes over the training split, at most; the schedule runs over all of them, "
        "however early another limit ends the training.",
    )
    max_steps: int | None = Field(
        None,
        ge=1,
        le=10**9,
        description="Steps after which training ends at the latest, with a last validation; null "
        "leaves it to `epochs`.",
    )
    max_seconds: float | None = Field(
        None,
        gt=0,
        le=10**7,
        description="Seconds of training, of all attempts together and without validation, after "
        "which it ends with a last validation. How far a machine comes is not repeatable.",
    )
    patience_epochs: int | None = Field(
        None,
        ge=1,
        le=100_000,
        description="End when the metric that decides (accuracy, miou or ap) has not risen on the "
        "validation split for so many epochs; null never does.",
    )
    batch_size: int = Field(
        64,
        ge=2,
        le=65_536,
        description="Images per step. A last batch of a single image joins the batch before it, "
        "because batch norm cannot learn from one.",
    )
    optimizer: Optimizer = Field(default_factory=SGD, description="How weights are moved.")
    schedule: Schedule = Field(default_factory=Step, description="How the rate changes.")
    augmentation: Literal[
        "none",
        "flip",
        "standard",
        "scale_jitter",
        "autoaugment",
        "randaugment",
        "trivialaugment",
    ] = Field(
        "standard",
        description="flip: a horizontal flip where the data set allows mirrored images. standard: "
        "random crop after zero padding (an eighth of the side, 4 pixels at 32), and flip. "
        "scale_jitter: resized by a factor of `scale_jitter`, cut or padded to the image's size at "
        "a random place, and flip. autoaugment: standard, then the policy that was found for "
        "CIFAR-10. randaugment: standard, then operations drawn anew for each image. "
        "trivialaugment: standard, then one operation of any strength (TrivialAugmentWide). "
        "Masks and boxes move with their images; autoaugment, randaugment and trivialaugment are "
        "for classification only.",
    )
    random_resized_crop: RandomResizedCrop | None = Field(
        None,
        description="What standard, autoaugment, randaugment and trivialaugment cut, in place of "
        "the crop after zero padding; null keeps that one. Classification only.",
    )
    random_erasing: RandomErasing | None = Field(
        None,
        description="Overwrite a random rectangle of some images; null erases nothing. "
        "Classification only.",
    )
    crop_ratio: float | None = Field(
        None,
        ge=0.1,
        le=1,
        description="Share of the shorter side that validation and test images show: an image is "
        "resized until it just covers the input's size divided by this share, and cut to that size "
        "at its centre (224 of 256 is 0.875). null shows them as the data set has them. "
        "Classification only.",
    )
    flip: bool | None = Field(
        None,
        description="Whether mirrored images keep their labels, so that the augmentation may "
        "mirror them; false for text, signs and digits. null asks the data set's record: true of "
        "uploaded pictures, false of arrays and of the built-in digits. Of synthetic images "
        "`synthesis.flip` goes first.",
    )
    scale_jitter: list[ScaleFactor] = Field(
        [0.5, 2.0],
        min_length=2,
        max_length=2,
        description="Lowest and highest factor of scale_jitter.",
    )
    randaugment_operations: int = Field(
        2, ge=1, le=14, description="Operations that randaugment applies one after the other."
    )
    randaugment_magnitude: int = Field(
        9, ge=0, le=30, description="How strong the operations of randaugment are."
    )
    mixing: Mixing | None = Field(
        None, description="Train on mixtures of two images; null does not mix."
    )
    task_loss: TaskLoss = Field(
        default_factory=CrossEntropy,
        description="What the student loses by its labels, in the task term of the method and of "
        "the baseline. The scores' `loss` is cross-entropy, whatever this is. bce: classification "
        "only.",
    )
    label_noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of the training labels that are replaced by another class, the same "
        "for a seed; validation and test keep theirs.",
    )
    class_weights: Literal["none", "auto"] | list[ClassWeight] = Field(
        "none",
        description="What a pixel of each class counts in the cross-entropy with the masks. none: "
        "all alike. auto: 1 / ln(1.02 + the class's share of the training pixels), from 1.4 to 50 "
        "(ENet, arXiv:1606.02147); rare classes are then found sooner, and a little too often. A "
        "list has one weight a class, in the data set's order. Methods that imitate the teacher's "
        "classes pixel by pixel (pixelkd, pixeldkd, and parts of skd and cirkd) weigh pixels the "
        "same way. Validation and test weigh nothing. Segmentation only.",
    )
    pseudo_labels: PseudoLabels | None = Field(
        None,
        description="Where training images have no label, let those of which the teacher is sure "
        "count in the task term as well, with its class, asked once before training; null leaves "
        "them to the distillation terms. The baseline never has them.",
    )
    teacher_cache: TeacherCache | None = Field(
        None, description="Keep what the teacher shows of a fixed set of views; null does not."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 mixed precision on CUDA, float32 on the CPU."
    )
    compile: Literal["auto", "on", "off"] = Field(
        "auto", description="Compile the networks; auto: on CUDA when the run is long enough."
    )
    seed: int = Field(0, ge=0, le=2**31 - 1, description="Start of every random choice.")
    checkpoint_seconds: float = Field(
        60, gt=0, le=86_400, description="Most work that a killed worker can lose."
    )
    clip_norm: float | None = Field(
        None, gt=0, description="Largest norm of a step's gradient; null does not clip."
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Validate and deliver a moving average of the weights that keeps this share of "
        "itself at a step (less in the first steps, where it is still young); null delivers the "
        "weights themselves.",
    )
    evaluate_every_epochs: int = Field(
        1, ge=1, le=100_000, description="Epochs between two looks at the validation split."
    )
    evaluate_sizes: list[EvaluationSide] = Field(
        [],
        max_length=8,
        description="Sides in pixels of square images on which the student is scored once more on "
        "the test split, after training; `scores_by_size` of the result has them. Images are cut "
        "by crop_ratio; pictures that are stored encoded are resized from their own size, others "
        "from the size that the data set has. Classification only.",
    )
    sync_batch_norm: bool = Field(
        False,
        description="On several devices, whether batch norms normalise by the statistics of the "
        "whole batch, as on one device; else each device normalises its own slice by those of the "
        "slice. Costs an exchange at each batch norm of each step.",
    )
    keep_best_epochs: int = Field(
        1,
        ge=1,
        le=20,
        description="How many epochs' weights are kept, by the validation metric that decides. The "
        "best become the student; the others are files of its version, such as "
        "epochs/epoch-0007.safetensors, each a whole student. Checkpoints hold them all.",
    )

    def steps(self, per_epoch: int) -> int:
        """Return how many steps are made at most."""
        whole = self.epochs * per_epoch
        return whole if self.max_steps is None else min(whole, self.max_steps)

    @model_validator(mode="after")
    def _place_milestones(self) -> "Training":
        if isinstance(self.schedule, Step) and self.schedule.milestones is None:
            shares = MILESTONE_SHARES[self.recipe]
            # Rounded first, since 0.7 * 10 may be 6.999...
            epochs = {int(round(share * self.epochs, 6)) for share in shares}
            # In a short training, milestones meet: one drop, and none before the first epoch.
            placed = sorted(epochs - {0})
            schedule = self.schedule.model_copy(update={"milestones": placed})
            object.__setattr__(self, "schedule", schedule)
        return self


_CIFAR100: dict[str, Any] = {  # guide 6.1
    "epochs": 240,
    "batch_size": 64,
    "optimizer": {"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "step", "milestones": None, "factor": 0.1},
    "augmentation": "standard",
}
_TINY_IMAGENET: dict[str, Any] = {  # guide 6.3, but cropped and mirrored, not rotated
    **_CIFAR100,
    "epochs": 200,
    "batch_size": 256,
    "optimizer": {"name": "sgd", "learning_rate": 0.2, "momentum": 0.9, "weight_decay": 5e-4},
}
_IMAGENET: dict[str, Any] = {  # guide 6.4
    **_CIFAR100,
    "epochs": 100,
    "batch_size": 512,
    "optimizer": {"name": "sgd", "learning_rate": 0.2, "momentum": 0.9, "weight_decay": 1e-4},
    "random_resized_crop": {},
    "crop_ratio": 0.875,
}
_IMAGENET_A3: dict[str, Any] = {  # arXiv 2110.00476, table 2, procedure A3
    "epochs": 100,
    "batch_size": 2048,
    "optimizer": {"name": "lamb", "learning_rate": 8e-3, "weight_decay": 0.02},
    # From 8e-3 to 1e-6, as timm ends.
    "schedule": {"name": "cosine", "warmup_epochs": 5, "final_factor": 1.25e-4},
    "augmentation": "randaugment",
    "randaugment_operations": 2,
    "randaugment_magnitude": 18,  # 6 of timm's 10
    "random_resized_crop": {"interpolation": "bicubic"},
    "crop_ratio": 0.95,
    "evaluate_sizes": [224],
    "mixing": {"name": "mixup_or_cutmix", "mixup_alpha": 0.1, "cutmix_alpha": 1.0},
    "task_loss": {"name": "bce", "target_threshold": 0.2},
    "clip_norm": 1.0,  # within timm's LAMB, whatever else clips
}
_COCO_1X: dict[str, Any] = {  # guide of dense prediction, 1.4: 16 images, rate of one-stage heads
    "epochs": 12,
    "batch_size": 16,
    "optimizer": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 1e-4},
    "schedule": {"name": "step", "milestones": None, "factor": 0.1, "warmup_epochs": 0.07},
    "augmentation": "flip",
    "clip_norm": 35.0,
}
_CITYSCAPES: dict[str, Any] = {
    "epochs": 240,  # 80,000 steps of 8 of the 2,975 images
    "batch_size": 8,
    "optimizer": {"name": "sgd", "learning_rate": 0.01, "momentum": 0.9, "weight_decay": 5e-4},
    "schedule": {"name": "poly", "power": 0.9},
    "augmentation": "scale_jitter",
}
_SMALL_DENSE: dict[str, Any] = {  # guide of dense prediction, 8.3
    "epochs": 3,  # 600 steps of 8 of the 2,000 scenes are 2.4 epochs
    "batch_size": 8,
    "optimizer": {"name": "adamw", "learning_rate": 2e-3, "weight_decay": 1e-4},
    "schedule": {"name": "cosine", "warmup_epochs": 0.4},
    "augmentation": "flip",
    "clip_norm": 5.0,
}

PRESETS: dict[str, dict[str, Any]] = {
    name: Training.model_validate({"recipe": name, **fields}).model_dump(mode="json")
    for name, fields in (
        ("small", {}),
        ("cifar100", _CIFAR100),
        ("tiny_imagenet", _TINY_IMAGENET),
        ("imagenet", _IMAGENET),
        ("imagenet_a3", _IMAGENET_A3),
        ("coco_1x", _COCO_1X),
        ("coco_2x", {**_COCO_1X, "epochs": 24}),
        ("voc", {**_COCO_1X, "schedule": {**_COCO_1X["schedule"], "warmup_epochs": 0.5}}),
        ("cityscapes", _CITYSCAPES),
        ("small_dense", _SMALL_DENSE),
    )
}


def expand(partial: Mapping[str, Any]) -> Training:
    """Return the caller's fields over the preset they name, as `merge_preset` lays them."""
    return Training.model_validate(merge_preset(partial))


def merge_preset(partial: Mapping[str, Any]) -> dict[str, Any]:
    """Return the caller's fields over the preset they name, unchecked.

    Nested objects merge key by key unless their `name` changes. Milestones that the caller does
    not give follow `epochs`.
    """
    name = partial.get("recipe", "small")
    is_known = isinstance(name, str) and name in PRESETS
    full = dict(PRESETS[name if is_known else "small"])
    if "milestones" in full["schedule"]:
        full["schedule"] = {**full["schedule"], "milestones": None}
    for key, value in partial.items():
        default = full.get(key)
        if isinstance(default, dict) and isinstance(value, Mapping):
            # Objects of one kind only have no name.
            same = value.get("name", default.get("name")) == default.get("name")
            full[key] = {**default, **value} if same else dict(value)
        else:
            full[key] = value
    return full
