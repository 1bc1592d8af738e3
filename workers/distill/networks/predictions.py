"""A teacher whose predictions for the images of a data set were computed elsewhere.

It is never run: what it says of an image is a row of its table. So it teaches what it was asked
about, the stored images or a fixed number of views of each, and nothing else.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pydantic
import torch
from jaxtyping import Float, Int
from torch import Tensor

from workers.distill import errors
from workers.distill.files import tensorfile
from workers.distill.networks import interface
from workers.distill.networks.zoo import arguments

MOST_VIEWS = 64
SPLITS = ("train", "validation", "test")


class Arguments(arguments.Arguments):
    """Which images the rows are for."""

    dataset: str = pydantic.Field(
        max_length=300,
        description="Reference of the data set whose images were predicted, such as digits@1.",
    )
    digest: str | None = pydantic.Field(
        None,
        pattern=r"^sha256:[0-9a-f]{64}$",
        description="Digest of that data set; filled in at the registration.",
    )
    rows: dict[Literal["train", "validation", "test"], int] | None = pydantic.Field(
        None, description="Images of each split that are predicted; filled in by the inspection."
    )
    outputs: Literal["logits", "probabilities"] | None = pydantic.Field(
        None, description="What the rows hold; null: recognised."
    )
    views: int = pydantic.Field(
        1,
        ge=1,
        le=MOST_VIEWS,
        description="Predictions of each training image. More than 1 are of the augmented views "
        "that python -m workers.distill.data.views writes for this seed and this augmentation.",
    )
    seed: int | None = pydantic.Field(
        None, ge=0, description="training.seed of those views; only with views above 1."
    )
    augmentation: Literal["standard", "flip"] | None = pydantic.Field(
        None, description="training.augmentation of those views; only with views above 1."
    )


class PredictionsNetwork(interface.FileNetwork):
    """A table of logits for each image of a training split, of one or several views."""

    can_run = False
    parameter_count = 0
    limits = "it is a table of predictions, which holds logits alone"

    def __init__(self, accepted: Arguments, sizes: interface.Sizes) -> None:
        super().__init__()
        self.arguments_read = accepted
        self._sizes = sizes
        # So that a device and a floating-point type are known, as of networks with parameters.
        self.register_buffer("_place", torch.zeros(0), persistent=False)
        for split in SPLITS:
            self.register_buffer(f"_{split}", None, persistent=False)

    def load_file(self, path: Path) -> list[str]:
        """Read the table that an inspection wrote: logits [N, V, C] of the training split.

        Raises `UploadRefused` for a table of another shape.
        """
        tensors = tensorfile.read(path)
        for split in SPLITS:
            table = tensors.get(split)
            if table is None:
                continue
            views = self.arguments_read.views if split == "train" else 1
            if table.dim() != 3 or tuple(table.shape[1:]) != (views, self._sizes.classes):
                raise errors.UploadRefused(
                    "unreadable",
                    f"the predictions of the {split} split have shape {list(table.shape)}, "
                    f"expected [images, {views}, {self._sizes.classes}]",
                )
            setattr(self, f"_{split}", table.float())
        if tensors.get("train") is None:
            raise errors.UploadRefused(
                "unreadable", f"{path.name} holds no predictions of a training split"
            )
        return []

    def table(self, split: str) -> Float[Tensor, "N V C"] | None:
        """Return the logits of a split, or None where it was not predicted."""
        found: Tensor | None = getattr(self, f"_{split}")
        return found

    def rows(
        self, index: Int[Tensor, " n"], view: Int[Tensor, " n"] | None = None
    ) -> Float[Tensor, "n C"]:
        """Return the logits of some training images; `view` chooses among several of each."""
        table = self.table("train")
        if table is None:
            raise ValueError("the predictions have not been read")
        return table[index, torch.zeros_like(index) if view is None else view]

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C"]:
        """Raise `ValueError`: predictions belong to images by their number, not by their pixels."""
        raise ValueError("stored predictions cannot be computed for images")

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Raise `ValueError`, as `forward` does."""
        return interface.Features.from_logits(self.forward(images))

    def reorder_classes(self, order: Sequence[int]) -> None:
        """Make column i of every table what was column `order[i]`."""
        for split in SPLITS:
            table = self.table(split)
            if table is not None:
                setattr(self, f"_{split}", table[:, :, list(order)].contiguous())

    def enable_gradients(self) -> None:
        """Raise `IncompatibleNetworks`: there is nothing that a gradient could flow through."""
        raise errors.IncompatibleNetworks(
            f"{self.reference} gives no gradients: {self.limits}", network=self.reference
        )

    def torch_form(self) -> None:
        """Return None: nothing is computed."""
        return


def build(accepted: Arguments, sizes: interface.Sizes) -> PredictionsNetwork:
    """Return a network that is yet to read its table."""
    return PredictionsNetwork(accepted, sizes)
