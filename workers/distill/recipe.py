"""What the engine is asked to do: plain, frozen, bounded values.

`Training` says how to train and is part of the API's documentation through its JSON Schema;
`RECIPES` holds the published settings a caller starts from; `expand` lays the caller's fields over
one of them.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Values(BaseModel):
    """Frozen values that refuse unknown fields and non-finite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class SGD(Values):
    """Stochastic gradient descent with momentum."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(0.05, gt=0, le=100, description="Step size before the schedule.")
    momentum: float = Field(0.9, ge=0, lt=1, description="Share of the last step that is kept.")
    weight_decay: float = Field(
        5e-4, ge=0, le=1, description="L2 penalty on every parameter, batch norm and biases too."
    )
    nesterov: bool = Field(False, description="Look ahead along the momentum.")

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> "SGD":
        if self.nesterov and self.momentum == 0:
            raise ValueError("nesterov needs a momentum greater than 0, got momentum 0")
        return self


class AdamW(Values):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    learning_rate: float = Field(1e-3, gt=0, le=100, description="Step size before the schedule.")
    weight_decay: float = Field(0.05, ge=0, le=1, description="Decoupled decay of the weights.")
    beta1: float = Field(0.9, ge=0, lt=1, description="Memory of the mean gradient.")
    beta2: float = Field(0.999, ge=0, lt=1, description="Memory of the squared gradient.")


class Step(Values):
    """Multiply the learning rate by `factor` after each milestone."""

    name: Literal["step"] = "step"
    milestones: list[Annotated[int, Field(ge=0)]] | None = Field(
        None,
        max_length=100,
        description="Epochs after which the rate drops; null places the recipe's own milestones "
        "at the same shares of `epochs`.",
    )
    factor: float = Field(0.1, gt=0, le=1, description="What the rate is multiplied by.")


class Cosine(Values):
    """Warm up linearly, then fall along half a cosine, step by step."""

    name: Literal["cosine"] = "cosine"
    warmup_epochs: float = Field(0, ge=0, le=10_000, description="Epochs of linear warm-up.")
    final_factor: float = Field(0.0, ge=0, le=1, description="Rate at the end, as a share.")


class Constant(Values):
    """Keep the learning rate."""

    name: Literal["constant"] = "constant"


Optimizer = Annotated[SGD | AdamW, Field(discriminator="name")]
Schedule = Annotated[Step | Cosine | Constant, Field(discriminator="name")]

MILESTONE_SHARES: dict[str, tuple[float, ...]] = {
    "small": (0.5, 0.75, 0.9),
    "cifar100": (0.625, 0.75, 0.875),
    "imagenet": (0.3, 0.6, 0.9),
}


class Training(Values):
    """How a student is trained."""

    recipe: Literal["small", "cifar100", "imagenet"] = Field(
        "small", description="Published settings that fill in what is not given."
    )
    epochs: int = Field(30, ge=1, le=100_000, description="Passes over the training split.")
    batch_size: int = Field(
        64,
        ge=2,
        le=65_536,
        description="Images per step. A last batch of a single image joins the batch before it, "
        "because batch norm cannot learn from one.",
    )
    optimizer: Optimizer = Field(default_factory=SGD, description="How weights are moved.")
    schedule: Schedule = Field(default_factory=Step, description="How the rate changes.")
    augmentation: Literal["none", "standard"] = Field(
        "standard",
        description="standard: random crop after zero padding (an eighth of the side, 4 pixels at "
        "32), and a horizontal flip where the data set allows mirrored images.",
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
    evaluate_every_epochs: int = Field(
        1, ge=1, le=100_000, description="Epochs between two looks at the validation split."
    )

    @model_validator(mode="after")
    def _place_milestones(self) -> "Training":
        if isinstance(self.schedule, Step) and self.schedule.milestones is None:
            shares = MILESTONE_SHARES[self.recipe]
            # Rounded first, since 0.7 * 10 may be 6.999...; never 0, which would drop at once.
            placed = [max(1, int(round(share * self.epochs, 6))) for share in shares]
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
_IMAGENET: dict[str, Any] = {  # guide 6.4
    **_CIFAR100,
    "epochs": 100,
    "batch_size": 512,
    "optimizer": {"name": "sgd", "learning_rate": 0.2, "momentum": 0.9, "weight_decay": 1e-4},
}

RECIPES: dict[str, dict[str, Any]] = {
    "small": Training(recipe="small").model_dump(mode="json"),
    "cifar100": Training.model_validate({"recipe": "cifar100", **_CIFAR100}).model_dump(
        mode="json"
    ),
    "imagenet": Training.model_validate({"recipe": "imagenet", **_IMAGENET}).model_dump(
        mode="json"
    ),
}


def expand(partial: Mapping[str, Any]) -> Training:
    """Lay the caller's fields over the recipe they name.

    Nested objects merge key by key unless their `name` changes. Milestones that the caller does
    not give follow `epochs`.
    """
    fields = dict(partial)
    full = dict(RECIPES.get(fields.get("recipe", "small"), RECIPES["small"]))
    full["schedule"] = {**full["schedule"], "milestones": None}
    for key, value in fields.items():
        default = full.get(key)
        if isinstance(default, dict) and isinstance(value, Mapping):
            same = value.get("name", default["name"]) == default["name"]
            full[key] = {**default, **value} if same else dict(value)
        else:
            full[key] = value
    return Training.model_validate(full)


class Input(Values):
    """Images a network expects: size, and the normalisation of pixels in 0..1."""

    channels: int = Field(ge=1, le=64)
    height: int = Field(ge=1, le=4096)
    width: int = Field(ge=1, le=4096)
    mean: list[float]
    std: list[Annotated[float, Field(gt=0)]]

    @model_validator(mode="after")
    def _one_moment_per_channel(self) -> "Input":
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean and std need one number per channel ({self.channels}), "
                f"got {len(self.mean)} and {len(self.std)}"
            )
        return self


class NetworkChoice(Values):
    """Which network plays a role, and what it expects."""

    network: str = Field(min_length=1, max_length=200)
    arguments: dict[str, Any] = {}  # Any: JSON, checked by the network's own schema
    classes: int = Field(ge=1)
    input: Input


class Recipe(Values):
    """One student to be made: the whole request, as the engine reads it."""

    version: Literal[1] = 1
    task: Literal["classification"] = "classification"
    teacher: NetworkChoice | None = None
    student: NetworkChoice
    initial: bool = False
    method: dict[str, Any]  # Any: checked by the method's own Params
    training: Training = Field(default_factory=lambda: expand({}))
    baseline: bool = False
    accelerator: Literal["any", "cpu", "cuda"] = "any"
    provenance: dict[str, str | int | None] = {}

    @field_validator("training", mode="before")
    @classmethod
    def _expanded(cls, value: object) -> object:
        return expand(value) if isinstance(value, Mapping) else value

    @field_validator("method")
    @classmethod
    def _named(cls, value: dict[str, Any]) -> dict[str, Any]:
        if not isinstance(value.get("name"), str):
            raise ValueError('a method needs a name, such as {"name": "kd"}')
        return value

    def lineage(self) -> dict[str, str | int | None]:
        """Return the provenance without what differs from one attempt to the next."""
        return {key: value for key, value in self.provenance.items() if key != "attempt"}

    def digest(self) -> str:
        """Return a digest that two attempts at the same work share."""
        content = self.model_dump(mode="json")
        content["provenance"] = self.lineage()
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
