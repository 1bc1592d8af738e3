"""The training split: which images make a step, and how a network sees them.

An epoch is a pure function of seed and epoch number, and a stored view one of seed, image and view,
so a resumed run needs no state to see the same images in the same order with the same crops. Images
stay uint8 until a network's own `Preprocessor` normalises them.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from workers.distill.config.devices import FEWEST_ROWS, WHOLE, Share
from workers.distill.config.training import TeacherCache, Training
from workers.distill.data import cropping, stateless_rng
from workers.distill.data.transforms import mixing, operations, policies, resized_crops
from workers.distill.data.types import Batch, Crops, CropTargets

CROP_SHARE = 8
"""Zero padding of the random crop is this share of the side: 4 pixels at 32."""

AUGMENT, STRONG, MIX, VISIT, VIEW, NOISE, SCALE = range(1, 8)
"""What random numbers are for; each purpose has its own, so none changes those of another."""


class BatchLoader:
    """The training split, cut and augmented in batches on the device.

    The CPU reads a batch's images from the split's mapped file; another device holds them all.

    With a teacher cache of k views a visit, a batch holds k views of each of its images. An epoch
    has as many steps as without, so it shows every k-th image; k epochs show each once (and, where
    k does not divide their number, a few twice). A strong view is made of images that are neither
    mixed nor kept (`rules.of_method_and_training`).
    """

    def __init__(
        self,
        images: UInt8[Tensor, "N c h w"],
        labels: Shaped[Tensor, "N *T"],
        *,
        training: Training,
        flip: bool,
        device: torch.device,
        strong: bool = False,
        crop_targets: CropTargets | None = None,
        class_weights: Float[Tensor, " C"] | None = None,
        has_all_labels: bool = True,
        share: Share = WHOLE,
    ) -> None:
        """Take a split for a device.

        `flip` says that mirrored images keep their labels, `strong` that batches have a strong
        view. `crop_targets` moves labels with the crops; without it a crop keeps its label.
        `class_weights` and `has_all_labels` go along with every batch. Of each batch, an epoch
        yields the rows of `share`.
        """
        self.count, _, self._height, self._width = images.shape
        self._training = training
        self._per_visit = training.teacher_cache.per_visit if training.teacher_cache else 1
        self._visited = math.ceil(self.count / self._per_visit)
        self._share = share
        self._bounds = bounds(self.rows_per_epoch, training.batch_size, share.fewest_rows)
        self._strong = strong
        # Scale jitter cuts from the whole image, so nothing is padded for it.
        self._crops = training.augmentation not in {"none", "flip", "scale_jitter"}
        self._flip = flip
        # A strong view is cropped, whatever the first one is.
        pads = self._crops or strong
        self._pad_y = crop_padding(self._height) if pads else 0
        self._pad_x = crop_padding(self._width) if pads else 0
        self._images = cropping.crop_source(
            images, pad_y=self._pad_y, pad_x=self._pad_x, device=device
        )
        self._labels = labels.to(device)
        self._crop_targets = crop_targets
        self._class_weights = None if class_weights is None else class_weights.to(device)
        self._has_all_labels = has_all_labels
        self._device = device

    @property
    def steps_per_epoch(self) -> int:
        """Return the number of batches in an epoch."""
        return len(self._bounds)

    @property
    def rows_per_epoch(self) -> int:
        """Return how many images an epoch shows; several views of one count as several."""
        return self._visited * self._per_visit

    def epoch(self, epoch: int, *, first: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch (from 1), leaving out those before `first`."""
        if self._training.teacher_cache:
            yield from self._visit(epoch, self._training.teacher_cache, first)
            return
        order, places, drawn = self._arrange(epoch)
        mixes = self._mixture(epoch)
        for whole_start, whole_end in self._bounds[first:]:
            start, end = whole_start, whole_end
            if mixes is None:  # else each image may meet one of another rank
                start, end = self._share.bounds(whole_start, whole_end)
            index, crops = places[start:end], drawn.part(start, end)
            images = self._cut(index, crops)
            images = self._augment(images, self._stream(order[start:end], epoch, AUGMENT))
            strong = self._strong_view(order[start:end], epoch) if self._strong else None
            labels = self._labels_in(index, crops)
            batch = self._batch(images, labels, index, strong=strong)
            if mixes is not None:
                mixed = mixes.part(start, end).mix(batch)
                batch = mixed.part(*self._share.bounds(0, end - start))
            yield self._as_slice(batch, whole_end - whole_start)

    def whole_epoch(self, epoch: int) -> Batch:
        """Return the images of an epoch in its order, as one batch; `bounds` says where steps cut.

        Neither mixed nor with a strong view.
        """
        order, places, crops = self._arrange(epoch)
        images = self._augment(self._cut(places, crops), self._stream(order, epoch, AUGMENT))
        labels = self._labels_in(places, crops)
        return self._batch(images, labels, places)

    @property
    def counts_alike(self) -> bool:
        """Whether every image counts alike in the task's loss."""
        return self._class_weights is None and self._has_all_labels

    @property
    def shows_stored(self) -> bool:
        """Whether each epoch shows the images as they are stored, in another order."""
        return self._training.augmentation == "none"

    def order(self, epoch: int) -> Int[Tensor, " n"]:
        """Return the order of an epoch (from 1), on the CPU."""
        return torch.randperm(self.count, generator=self._generator(epoch))

    def stored(self) -> Batch:
        """Return all images as they are stored, unaugmented, as one batch."""
        index = torch.arange(self.count, device=self._device)
        return self._batch(self.images_of(index), self._labels, index)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """Return where each batch of an epoch starts and ends."""
        return list(self._bounds)

    def subset(self, index: Int[Tensor, " n"], training: Training) -> "BatchLoader":
        """Return a loader of some of the images, which `training` says how to draw."""
        index = index.to(self._device)
        return BatchLoader(
            self._cut(index, self._whole(index)),
            self._labels[index],
            training=training,
            flip=self._flip,
            device=self._device,
            strong=self._strong,
            crop_targets=self._crop_targets,
            class_weights=self._class_weights,
            has_all_labels=self._has_all_labels,
        )

    def with_labels(self, labels: Shaped[Tensor, "N *T"]) -> "BatchLoader":
        """Return a loader of the same images with other labels, of which some may be missing."""
        other = copy.copy(self)
        other._labels = labels.to(self._device)
        other._has_all_labels = False
        return other

    def extended(
        self, images: UInt8[Tensor, "n c h w"], labels: Int[Tensor, " n"]
    ) -> "BatchLoader":
        """Return a loader of these images and of others after them, drawn in the same way."""
        own = torch.arange(self.count)
        return BatchLoader(
            torch.cat([self.images_of(own), images.to(self._device)]),
            torch.cat([self._labels, labels.to(self._device)]),
            training=self._training,
            flip=self._flip,
            device=self._device,
            strong=self._strong,
            crop_targets=self._crop_targets,
            class_weights=self._class_weights,
            has_all_labels=self._has_all_labels,
        )

    def images_of(self, index: Int[Tensor, " n"]) -> UInt8[Tensor, "n c h w"]:
        """Return some images as they are stored, unaugmented."""
        index = index.to(self._device)
        return self._cut(index, self._whole(index))

    @property
    def class_weights(self) -> Float[Tensor, " C"] | None:
        """Return what the targets of each class count in the task's loss; None: all alike."""
        return self._class_weights

    @property
    def labels(self) -> Shaped[Tensor, "N *T"]:
        """Return the labels of training, in stored order."""
        return self._labels

    def label_counts(self, classes: int) -> Int[Tensor, " C"]:
        """Return how many images each class has, where an image has one class."""
        return torch.bincount(self._labels, minlength=classes)

    def share_done(self, step: int, steps: int) -> float:
        """Return which share (0..1) of all work is done after a step of so many."""
        return step / steps

    def finish_epoch(self, epoch: int, *, last: bool) -> dict[str, float]:
        """Return no metrics: an epoch of a loader has none of its own."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: an epoch depends on seed and number alone."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: there is no state."""

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images once, unaugmented, in stored order, with the labels of training."""
        for start in range(0, self.count, batch_size):
            index = torch.arange(start, min(start + batch_size, self.count), device=self._device)
            images = self._cut(index, self._whole(index))
            yield self._batch(images, self._labels[index], index)

    def views_in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield every view of the teacher cache once: all of the first image, then of the next.

        Counted through, the view `v` of the image `i` is number `i * views + v`.
        """
        cache = self._training.teacher_cache
        views = cache.views if cache else 1
        for start in range(0, self.count * views, batch_size):
            number = torch.arange(start, min(start + batch_size, self.count * views))
            yield self._views(number // views, number % views)

    def _batch(
        self,
        images: Tensor,
        labels: Tensor,
        index: Tensor,
        *,
        view: Tensor | None = None,
        strong: Tensor | None = None,
    ) -> Batch:
        return Batch(
            images,
            labels,
            index,
            view=view,
            strong=strong,
            class_weights=self._class_weights,
            has_all_labels=self._has_all_labels,
        )

    def _arrange(self, epoch: int) -> tuple[Tensor, Tensor, Crops]:
        """Return an epoch's order, on the CPU and on the device, and the crops in that order."""
        generator = self._generator(epoch)
        order = torch.randperm(self.count, generator=generator)
        crops = self._draw(generator, self._stream(order, epoch, SCALE)).to(self._device)
        return order, order.to(self._device, non_blocking=True), crops

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(stateless_rng.mix(self._training.seed, epoch))

    def _visit(self, epoch: int, cache: TeacherCache, first: int) -> Iterator[Batch]:
        turn, part = divmod(epoch - 1, cache.per_visit)
        seed = self._training.seed
        generator = torch.Generator().manual_seed(stateless_rng.mix(seed, turn, VISIT))
        order = torch.randperm(self.count, generator=generator)
        index = order[(part * self._visited + torch.arange(self._visited)) % self.count]
        chosen = self._stream(index, epoch, VISIT).some_of(cache.per_visit, cache.views)
        index, view = index.repeat_interleave(cache.per_visit), chosen.flatten()
        for start, end in self._bounds[first:]:
            own = slice(*self._share.bounds(start, end))
            yield self._as_slice(self._views(index[own], view[own]), end - start)

    def _as_slice(self, batch: Batch, rows: int) -> Batch:
        """Return a batch that knows of how many rows it is a slice, where it is one."""
        if self._share.ranks == 1:
            return batch
        return dataclasses.replace(batch, rows_of_all=rows)

    def _views(self, index: Tensor, view: Tensor) -> Batch:
        stream = stateless_rng.StatelessRNG(
            stateless_rng.mix(self._training.seed, 0, VIEW), index, view
        )
        places = index.to(self._device, non_blocking=True)
        crops = self._draw_views(stream, len(index)).to(self._device)
        images = self._augment(self._cut(places, crops), stream)
        labels = self._labels_in(places, crops)
        return self._batch(images, labels, places, view=view.to(self._device, non_blocking=True))

    def _strong_view(self, index: Tensor, epoch: int) -> Tensor:
        stream = self._stream(index, epoch, STRONG)
        crops = self._draw_padded(stream).to(self._device)
        images = self._cut(index.to(self._device, non_blocking=True), crops)
        images = operations.apply(images, policies.draw_strong(stream))
        images = policies.cut_out(images, stream)
        return images.contiguous(memory_format=torch.channels_last)

    def _stream(self, index: Tensor, epoch: int, purpose: int) -> stateless_rng.StatelessRNG:
        return stateless_rng.StatelessRNG(
            stateless_rng.mix(self._training.seed, epoch, purpose), index
        )

    def _augment(self, images: Tensor, stream: stateless_rng.StatelessRNG) -> Tensor:
        match self._training.augmentation:
            case "autoaugment":
                drawn = policies.draw_autoaugment(stream)
            case "randaugment":
                drawn = policies.draw_randaugment(
                    stream,
                    self._training.randaugment_operations,
                    self._training.randaugment_magnitude,
                )
            case _:
                return images
        done = operations.apply(images, drawn)
        return done.contiguous(memory_format=torch.channels_last)

    def _mixture(self, epoch: int) -> mixing.Mixture | None:
        wanted = self._training.mixing
        if wanted is None:
            return None
        return mixing.draw(wanted, self.count, stateless_rng.mix(self._training.seed, epoch, MIX))

    def _draw(self, generator: torch.Generator, stream: stateless_rng.StatelessRNG) -> Crops:
        """Draw the crops of an epoch's images, on the CPU; scale jitter has streams of its own."""

        def whole(high: int) -> Tensor:
            return torch.randint(high, (self.count,), generator=generator)

        if self._training.augmentation == "scale_jitter":
            return self._draw_resized(stream)
        zeros = torch.zeros(self.count, dtype=torch.int64)
        mirrored = zeros.bool()
        if self._training.augmentation == "none":
            return self._moved(zeros, zeros, mirrored)
        top = left = zeros
        if self._crops:
            top, left = (whole(2 * pad + 1) - pad for pad in (self._pad_y, self._pad_x))
        return self._moved(top, left, whole(2).bool() if self._flip else mirrored)

    def _draw_views(self, stream: stateless_rng.StatelessRNG, count: int) -> Crops:
        """Draw crops of so many images from their own streams, as the augmentation wants them."""
        if self._training.augmentation == "scale_jitter":
            return self._draw_resized(stream)
        if self._crops:
            return self._draw_padded(stream)
        zeros = torch.zeros(count, dtype=torch.int64)
        mirrored = zeros.bool()
        if self._training.augmentation == "flip":
            mirrored = stream.coins() & self._flip
        return self._moved(zeros, zeros, mirrored)

    def _draw_padded(self, stream: stateless_rng.StatelessRNG) -> Crops:
        top, left = (stream.whole(2 * pad + 1) - pad for pad in (self._pad_y, self._pad_x))
        return self._moved(top, left, stream.coins() & self._flip)

    def _draw_resized(self, stream: stateless_rng.StatelessRNG) -> Crops:
        low, high = self._training.scale_jitter
        return resized_crops.draw(
            stream,
            (low, high),
            height=self._height,
            width=self._width,
            flip=self._flip,
        )

    def _whole(self, index: Tensor) -> Crops:
        zeros = torch.zeros_like(index)
        return self._moved(zeros, zeros, zeros.bool())

    def _moved(self, top: Tensor, left: Tensor, mirrored: Tensor) -> Crops:
        return Crops(top, left, mirrored, self._height, self._width)

    def _labels_in(self, index: Tensor, crops: Crops) -> Tensor:
        labels = self._labels[index]
        return labels if self._crop_targets is None else self._crop_targets(labels, crops)

    def _cut(self, index: Tensor, crops: Crops) -> Tensor:
        if crops.scale is not None:
            whole = self._images.cut(index, self._whole(index))
            return resized_crops.cut_images(whole, crops)
        return self._images.cut(index, crops)


def crop_padding(side: int) -> int:
    """Return the pixels of zeros on each end of a side before a random crop; at least one."""
    return max(1, round(side / CROP_SHARE))


def bounds(count: int, batch_size: int, fewest: int = FEWEST_ROWS) -> list[tuple[int, int]]:
    """Return where each batch of an epoch starts and ends.

    The last batch may be smaller. If fewer than `fewest` images would be left, they join the batch
    before: batch norm has no variance to learn from one image, and each rank needs some.
    """
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] < fewest:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))
