"""The training split: which images make a step, and how a network sees them.

An epoch is a pure function of seed and epoch number, and a stored view one of seed, image and view,
so a resumed run needs no state to see the same images in the same order with the same crops. Images
stay uint8 until a network's own `Preprocessor` normalises them.
"""

import copy
import dataclasses
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped, UInt8
from torch import Tensor

from workers.distill.config.devices import FEWEST_ROWS, WHOLE, Share
from workers.distill.config.training import TeacherCache, Training
from workers.distill.data import crop_writing, cropping, stateless_rng
from workers.distill.data.lazy_images import StoredImages
from workers.distill.data.transforms import (
    erasing,
    mixing,
    operations,
    policies,
    random_crops,
    resized_crops,
)
from workers.distill.data.types import AnyCrops, Batch, Crops, CropTargets, ResizedCrops

CROP_SHARE = 8
"""Zero padding of the random crop is this share of the side: 4 pixels at 32."""

AUGMENT, STRONG, MIX, VISIT, VIEW, NOISE, SCALE, CROP, ERASE, VIEW_ERASE = range(1, 11)
"""What random numbers are for; each purpose has its own, so none changes those of another."""


@dataclass(frozen=True)
class BatchPlan:
    """Which images make a batch, and how they are cut; nothing of them is loaded yet.

    It is used once: its random streams go on where the crops have left them.
    """

    index: Int[Tensor, " n"]
    """Places in the split; on the CPU."""
    places: Int[Tensor, " n"]
    """The same on the loader's device."""
    crops: AnyCrops
    policy: stateless_rng.StatelessRNG
    erasing: stateless_rng.StatelessRNG
    view: Int[Tensor, " n"] | None = None
    """Which stored view of an image it is, with a teacher cache; on the CPU."""
    strong: tuple[Crops, stateless_rng.StatelessRNG] | None = None
    """How the second view is cut, and its random stream, where there is one."""


class BatchLoader:
    """The training split, cut and augmented in batches on the device.

    The CPU reads a batch's images from the split's mapped file; another device holds them all.
    Of a split that is stored encoded, threads decode the next batches while one is used.

    With a teacher cache of k views a visit, a batch holds k views of each of its images. An epoch
    has as many steps as without, so it shows every k-th image; k epochs show each once (and, where
    k does not divide their number, a few twice). A strong view is made of images that are neither
    mixed nor kept (`rules.of_method_and_training`).
    """

    def __init__(
        self,
        images: StoredImages,
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
        self._resizes = training.random_resized_crop is not None
        # Scale jitter and resized crops cut from the whole image, so nothing is padded for them.
        self._crops = (
            training.augmentation not in {"none", "flip", "scale_jitter"} and not self._resizes
        )
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
        mixes = self._mixture(epoch)
        for number, batch in enumerate(self._loaded(self.plans(epoch, first)), first):
            start, end = self._bounds[number]
            if mixes is not None:
                mixed = mixes.part(start, end).mix(batch)
                batch = mixed.part(*self._share.bounds(0, end - start))
            yield self._as_slice(batch, end - start)

    def plans(self, epoch: int, first: int = 0) -> Iterator[BatchPlan]:
        """Yield which images each batch of an epoch shows and how they are cut, from `first` on.

        A pure function of seed and epoch, which loads no image. The images are those of the share;
        where images are mixed they are all, since each may meet one of another rank.
        """
        cache = self._training.teacher_cache
        if cache:
            yield from self._visit(epoch, cache, first)
            return
        order, places, crops = self._arrange(epoch)
        for start, end in self._bounds[first:]:
            rows = (start, end) if self._training.mixing else self._share.bounds(start, end)
            own = slice(*rows)
            yield self._plan(epoch, order[own], places[own], crops, rows)

    def whole_epoch(self, epoch: int) -> Batch:
        """Return the images of an epoch in its order, as one batch; `bounds` says where steps cut.

        Neither mixed nor with a strong view.
        """
        order, places, crops = self._arrange(epoch)
        plan = self._plan(epoch, order, places, crops, (0, self.count), strong=False)
        return next(self._loaded([plan]))

    @property
    def counts_alike(self) -> bool:
        """Whether every image counts alike in the task's loss."""
        return self._class_weights is None and self._has_all_labels

    @property
    def shows_stored(self) -> bool:
        """Whether each epoch shows the images as they are stored, in another order."""
        training = self._training
        return training.augmentation == "none" and training.random_erasing is None

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
            self._shown(index),
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
        return self._shown(index)

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
            images = self._shown(index)
            yield self._batch(images, self._labels[index], index)

    def views_in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield every view of the teacher cache once: all of the first image, then of the next.

        Counted through, the view `v` of the image `i` is number `i * views + v`.
        """
        cache = self._training.teacher_cache
        views = cache.views if cache else 1
        total = self.count * views
        numbers = (
            torch.arange(start, min(start + batch_size, total))
            for start in range(0, total, batch_size)
        )
        plans = (self._plan_of_views(number // views, number % views) for number in numbers)
        yield from self._loaded(plans)

    def _loaded(self, plans: Iterable[BatchPlan]) -> Iterator[Batch]:
        """Load, augment and yield the batches of plans, some of which are begun early."""
        begun: deque[tuple[BatchPlan, list[crop_writing.Loading]]] = deque()
        try:
            for plan in plans:
                begun.append((plan, self._begin(plan)))
                if len(begun) > self._images.ahead:
                    yield self._finished(*begun.popleft())
            while begun:
                yield self._finished(*begun.popleft())
        finally:
            for _, loading in begun:
                for one in loading:
                    one.cancel()

    def _begin(self, plan: BatchPlan) -> list[crop_writing.Loading]:
        """Begin to load what a batch shows: its images, and their second view if it has one."""
        index = plan.places if self._images.device == self._device else plan.index
        both = [plan.crops] if plan.strong is None else [plan.crops, plan.strong[0]]
        return [self._images.begin(index, self._cut_from(crops, index)) for crops in both]

    def _finished(self, plan: BatchPlan, loading: list[crop_writing.Loading]) -> Batch:
        images = loading[0].result()
        if isinstance(plan.crops, Crops) and plan.crops.scale is not None:
            images = resized_crops.cut_images(images, plan.crops.to(self._device))
        images = self._apply_policy(images, plan.policy)
        if self._training.random_erasing is not None:
            images = erasing.erase(images, self._training.random_erasing, plan.erasing)
        strong = None
        if plan.strong is not None:
            strong = _strong_view(loading[1].result(), plan.strong[1])
        labels = self._labels_in(plan.places, plan.crops)
        view = None if plan.view is None else plan.view.to(self._device, non_blocking=True)
        return self._batch(images, labels, plan.places, view=view, strong=strong)

    def _cut_from(self, crops: AnyCrops, index: Tensor) -> AnyCrops:
        """Return what the source is to cut: whole images where they are resized afterwards."""
        if isinstance(crops, Crops) and crops.scale is not None:
            return self._whole(index)
        return crops

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
            task_loss=self._training.task_loss,
            has_all_labels=self._has_all_labels,
        )

    def _arrange(self, epoch: int) -> tuple[Tensor, Tensor, Crops | None]:
        """Return an epoch's order, on the CPU and on the device, and the crops in that order.

        Crops are None where each batch draws its own.
        """
        generator = self._generator(epoch)
        order = torch.randperm(self.count, generator=generator)
        crops = None
        if not self._resizes:
            drawn = self._draw(generator, self._stream(order, epoch, SCALE))
            crops = drawn.to(self._images.device)
        return order, order.to(self._device, non_blocking=True), crops

    def _plan(
        self,
        epoch: int,
        index: Tensor,
        places: Tensor,
        crops: Crops | None,
        rows: tuple[int, int],
        *,
        strong: bool = True,
    ) -> BatchPlan:
        """Return the plan of the images at these rows of an epoch, of which `crops` are all."""
        if crops is None:
            own: AnyCrops = self._draw_resized_parts(self._stream(index, epoch, CROP), index)
        else:
            own = crops.part(*rows)
        second = None
        if strong and self._strong:
            stream = self._stream(index, epoch, STRONG)
            second = (self._draw_padded(stream).to(self._images.device), stream)
        policy, erased = (self._stream(index, epoch, use) for use in (AUGMENT, ERASE))
        return BatchPlan(index, places, own, policy, erased, strong=second)

    def _generator(self, epoch: int) -> torch.Generator:
        return torch.Generator().manual_seed(stateless_rng.mix(self._training.seed, epoch))

    def _visit(self, epoch: int, cache: TeacherCache, first: int) -> Iterator[BatchPlan]:
        turn, part = divmod(epoch - 1, cache.per_visit)
        seed = self._training.seed
        generator = torch.Generator().manual_seed(stateless_rng.mix(seed, turn, VISIT))
        order = torch.randperm(self.count, generator=generator)
        index = order[(part * self._visited + torch.arange(self._visited)) % self.count]
        chosen = self._stream(index, epoch, VISIT).some_of(cache.per_visit, cache.views)
        index, view = index.repeat_interleave(cache.per_visit), chosen.flatten()
        for start, end in self._bounds[first:]:
            own = slice(*self._share.bounds(start, end))
            yield self._plan_of_views(index[own], view[own])

    def _as_slice(self, batch: Batch, rows: int) -> Batch:
        """Return a batch that knows of how many rows it is a slice, where it is one."""
        if self._share.ranks == 1:
            return batch
        return dataclasses.replace(batch, rows_of_all=rows)

    def _plan_of_views(self, index: Tensor, view: Tensor) -> BatchPlan:
        stream = self._view_stream(index, view, VIEW)
        crops = self._draw_views(stream, index).to(self._images.device)
        places = index.to(self._device, non_blocking=True)
        erased = self._view_stream(index, view, VIEW_ERASE)
        return BatchPlan(index, places, crops, stream, erased, view)

    def _view_stream(self, index: Tensor, view: Tensor, purpose: int) -> stateless_rng.StatelessRNG:
        seed = stateless_rng.mix(self._training.seed, 0, purpose)
        return stateless_rng.StatelessRNG(seed, index, view)

    def _stream(self, index: Tensor, epoch: int, purpose: int) -> stateless_rng.StatelessRNG:
        return stateless_rng.StatelessRNG(
            stateless_rng.mix(self._training.seed, epoch, purpose), index
        )

    def _apply_policy(self, images: Tensor, stream: stateless_rng.StatelessRNG) -> Tensor:
        match self._training.augmentation:
            case "autoaugment":
                drawn = policies.draw_autoaugment(stream)
            case "randaugment":
                drawn = policies.draw_randaugment(
                    stream,
                    self._training.randaugment_operations,
                    self._training.randaugment_magnitude,
                )
            case "trivialaugment":
                drawn = policies.draw_trivialaugment(stream, self._height, self._width)
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

    def _draw_views(self, stream: stateless_rng.StatelessRNG, index: Tensor) -> AnyCrops:
        """Draw crops of some images from their own streams, as the augmentation wants them."""
        if self._resizes:
            return self._draw_resized_parts(stream, index)
        if self._training.augmentation == "scale_jitter":
            return self._draw_resized(stream)
        if self._crops:
            return self._draw_padded(stream)
        zeros = torch.zeros(len(index), dtype=torch.int64)
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

    def _draw_resized_parts(
        self, stream: stateless_rng.StatelessRNG, index: Tensor
    ) -> ResizedCrops:
        settings = self._training.random_resized_crop
        if settings is None:
            raise ValueError("the training has no random_resized_crop")
        heights, widths = self._images.sizes(index)
        drawn = random_crops.draw(stream, settings, heights=heights, widths=widths, flip=self._flip)
        return drawn.to(self._images.device)

    def _whole(self, index: Tensor) -> Crops:
        zeros = torch.zeros_like(index)
        return self._moved(zeros, zeros, zeros.bool())

    def _moved(self, top: Tensor, left: Tensor, mirrored: Tensor) -> Crops:
        return Crops(top, left, mirrored, self._height, self._width)

    def _labels_in(self, index: Tensor, crops: AnyCrops) -> Tensor:
        labels = self._labels[index]
        # Only images with one class are resized, which keep it.
        if self._crop_targets is None or isinstance(crops, ResizedCrops):
            return labels
        return self._crop_targets(labels, crops.to(self._device))

    def _shown(self, index: Tensor) -> Tensor:
        """Return whole images, channels last."""
        index = index.to(self._images.device)
        return self._images.begin(index, self._whole(index)).result()


def _strong_view(images: Tensor, stream: stateless_rng.StatelessRNG) -> Tensor:
    """Return images after the operations of a second, strongly augmented view."""
    images = operations.apply(images, policies.draw_strong(stream))
    images = policies.cut_out(images, stream)
    return images.contiguous(memory_format=torch.channels_last)


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
