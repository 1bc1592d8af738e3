"""Hyper-parameters that several methods have: type, bounds and description in one place.

A method declares such a field with its own default: `temperature: Temperature = 4.0`. Where it has
more to say about a value, it extends the description: `description=f"{TEMPERATURE} ..."`.
"""

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from workers.distill.config import chosen
from workers.distill.config.synthesis import StreamSynthesis

TASK_WEIGHT = "Weight of cross-entropy with the true labels."
TEMPERATURE = "Divides the logits of both networks before softmax."
SOFT_TARGET_TEMPERATURE = (
    "Divides the logits of both networks before softmax in the student's loss."
)
BN_WEIGHT = (
    "Weight of the distance to the moments in the teacher's batch norms. At 0 the teacher needs "
    "none."
)
ONEHOT_WEIGHT = "Weight of the teacher's cross-entropy with the target class of an image."
PREDICTED_ONEHOT_WEIGHT = f"{ONEHOT_WEIGHT} That is the class that the teacher predicts."
ADVERSARIAL_WEIGHT = (
    "Weight of the divergence between student and teacher, which generated images maximise."
)
MASKED = "Count the divergence only where both networks predict the same class."
TARGET = (
    "Target class of an image: random, drawn evenly; argmax, the class that the teacher predicts. "
    "In dense tasks it is always the teacher's prediction, at each position."
)
BN_MOMENTUM = (
    "Share of the moments that is kept from earlier calls; 0 compares those of the batch alone."
)
ROUND_BUDGET = "How images are generated: budget, generator, buffer."
STREAM_BUDGET = (
    "How images are generated: budget and generator. The buffer keeps the newest images for "
    "inspection; the student never trains on them again."
)

Weight: TypeAlias = Annotated[float, Field(ge=0, le=1e6)]
"""Weight of a term of the loss; each use describes its term."""
Temperature: TypeAlias = Annotated[float, Field(gt=0, le=1e4, description=TEMPERATURE)]
TaskWeight: TypeAlias = Annotated[float, Field(ge=0, le=1e6, description=TASK_WEIGHT)]
Epochs: TypeAlias = Annotated[int, Field(ge=0, le=100_000)]
WarmupEpochs: TypeAlias = Annotated[
    int,
    Field(
        ge=0,
        le=100_000,
        description="Epochs over which the weight of the term rises, as "
        "min(epoch / warmup_epochs, 1); 0 starts at full weight.",
    ),
]
WARMUP_SHARE = 20 / 240
SharedWarmupEpochs: TypeAlias = Annotated[
    int | None,
    Field(
        ge=0,
        le=100_000,
        description="Epochs over which the weight of the term rises, as "
        "min(epoch / warmup_epochs, 1); 0 starts at full weight. Null takes the published share "
        "of `epochs`, 20 of 240, rounded up.",
        json_schema_extra={chosen.SHARE: WARMUP_SHARE},
    ),
]
WarmupSteps: TypeAlias = Annotated[
    int,
    Field(
        ge=0,
        le=1_000_000,
        description="Steps over which the weight of the terms rises, as "
        "min(step / warmup_steps, 1); 0 starts at full weight.",
    ),
]
Focus: TypeAlias = Annotated[
    float,
    Field(
        ge=0,
        le=8,
        description="Exponent of the difference of both probabilities, by which a binary "
        "divergence is multiplied; 0 counts all locations alike.",
    ),
]
KDWeight: TypeAlias = Annotated[
    float, Field(ge=0, le=1e6, description="Weight of the imitation of the teacher.")
]
TCKDWeight: TypeAlias = Annotated[
    float, Field(ge=0, le=1e6, description="Weight of the target-class part (TCKD).")
]
NCKDWeight: TypeAlias = Annotated[
    float,
    Field(
        ge=0,
        le=1e6,
        description="Weight of the non-target part (NCKD); larger if the teacher is confident.",
    ),
]
Centered: TypeAlias = Annotated[
    bool, Field(description="Centre the kernels, as defined; false as in the released code.")
]
Width: TypeAlias = Annotated[int, Field(ge=1, le=65_536)]
PatchSide: TypeAlias = Annotated[
    int | None,
    Field(
        ge=1,
        le=1024,
        description="Pixels along the side of the patches that maps are cut into, which are "
        "compared one by one; maps are resized up to a multiple of it. Null compares whole maps.",
    ),
]
PoolSide: TypeAlias = Annotated[
    int | None,
    Field(
        ge=1,
        le=1024,
        description="Pixels along the side of the squares that are pooled into one position "
        "before positions are compared. Null takes 2, or more where too many would remain.",
    ),
]
Levels: TypeAlias = Annotated[
    list[Annotated[int, Field(ge=0, le=15)]] | None,
    Field(
        min_length=1,
        max_length=16,
        description="Levels of the detectors' pyramids that are compared, 0 is the finest; where "
        "one pyramid has fewer levels, each is paired with the other's that is closest in size. "
        "Null takes the default of the method, without those that are not there.",
    ),
]
Count: TypeAlias = Annotated[int, Field(ge=1, le=1_000_000)]
"""Number of epochs, calls, draws or negatives; each use says of what."""
Share: TypeAlias = Annotated[float, Field(ge=0, le=1)]
Decay: TypeAlias = Annotated[float, Field(ge=0, lt=1)]
"""Share that is kept of an earlier value, or an exponent below 1."""
PairsWeight: TypeAlias = Annotated[float, Field(ge=0, le=1e9)]
"""Weight of a mean over all pairs of a batch, which is small."""
ContrastTemperature: TypeAlias = Annotated[float, Field(gt=0, le=100)]
EmbeddingWidth: TypeAlias = Annotated[int, Field(ge=1, le=4096)]

# Of the data-free family.
SoftTargetTemperature: TypeAlias = Annotated[
    float, Field(gt=0, le=1e4, description=SOFT_TARGET_TEMPERATURE)
]
BNWeight: TypeAlias = Annotated[float, Field(ge=0, le=1e6, description=BN_WEIGHT)]
OneHotWeight: TypeAlias = Annotated[float, Field(ge=0, le=1e6, description=ONEHOT_WEIGHT)]
PredictedOneHotWeight: TypeAlias = Annotated[
    float, Field(ge=0, le=1e6, description=PREDICTED_ONEHOT_WEIGHT)
]
AdversarialWeight: TypeAlias = Annotated[float, Field(ge=0, le=1e6, description=ADVERSARIAL_WEIGHT)]
Masked: TypeAlias = Annotated[bool, Field(description=MASKED)]
Target: TypeAlias = Annotated[Literal["random", "argmax"], Field(description=TARGET)]
BNMomentum: TypeAlias = Annotated[float, Field(ge=0, lt=1, description=BN_MOMENTUM)]

STREAM = StreamSynthesis(
    steps=1,
    student_steps=5,
    calls_per_epoch=80,
    buffer_images=1024,
    augmentation="none",
    generator="large",
)
"""Budget of one generator that is trained throughout, in CMI's benchmark (Fang et al., 2021)."""
STREAM_OF_TEN = STREAM.model_copy(update={"student_steps": 10, "calls_per_epoch": 40})
"""The same with ten student steps after each of the generator's."""
