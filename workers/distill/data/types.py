"""What a loader hands to a training step."""

from dataclasses import dataclass

from jaxtyping import Float, Int, Real, Shaped, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Mixed:
    """The second image of each mixed one: its labels, and the share that the first one keeps."""

    labels: Shaped[Tensor, "N *T"]
    share: Float[Tensor, " N"]


@dataclass(frozen=True)
class Batch:
    """Images as stored (uint8, augmented), their labels, and their places in the split.

    The form of the labels is that of the task: for classification one class for each image.

    Invented images may be floats of 0..255; their labels are the classes that they were to show,
    their places those in the replay buffer, and `weights` what each counts (None: all the same).
    `view` counts the stored views of an image, where the recipe has a teacher cache. `mixed` is
    there where images were mixed; `strong` holds a second, strongly augmented view of the same
    images where the method asks for one.
    """

    images: Real[Tensor, "N c h w"]
    labels: Shaped[Tensor, "N *T"]
    index: Int[Tensor, " N"]
    view: Int[Tensor, " N"] | None = None
    mixed: Mixed | None = None
    strong: UInt8[Tensor, "N c h w"] | None = None
    weights: Float[Tensor, " N"] | None = None
