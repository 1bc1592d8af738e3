"""A bounded buffer of synthetic images with priority sampling and eviction.

A member's priority delta is its weight times its KL divergence (teacher to student, temperature 1)
when it was last measured; its weight follows from its sampling probability since then:

    delta_i = w_{i-1} KL_i,    P_i = (|delta_i| + epsilon)^alpha / sum,    w_i = (n P_i)^-beta

with w_{-1} = 1, and i counting the measurements of a member. An update of drawn members is thus a
refresh of all, restricted to them.

Source: Liu et al., CVPR 2024, arXiv 2406.07876 (SSD-KD, priority sampling).
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workers.distill.functional import modulation, priorities
from workers.distill.functional.priorities import Priority
from workers.distill.functional.rows import per_image
from workers.distill.methods.datafree.base import Eviction


@dataclass(frozen=True)
class Draw:
    """Slots of drawn members; `weights` is None for uniform sampling."""

    slots: Int[Tensor, " b"]
    weights: Float[Tensor, " b"] | None


class ReplayBuffer:
    """Images as uint8, with the teacher's class shares and the student's divergence for each.

    Memory grows with the number of inserted images, up to `capacity`. Each property returns its
    values in the order of the slots. Draws come from torch's global generator on the CPU.
    """

    def __init__(
        self,
        capacity: int,
        *,
        image_shape: tuple[int, int, int],
        classes: int,
        caches_logits: bool,
        device: torch.device,
        eviction: Eviction = "oldest",
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a buffer holds at least one image, not {capacity}")
        self.capacity = capacity
        self._eviction = eviction
        self._device = device
        self._count = 0
        self._oldest = 0
        self._kinds: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
            "images": (image_shape, torch.uint8),
            "targets": ((), torch.int64),
            "shares": ((classes,), torch.float32),
            "confidence": ((), torch.float32),
            "kl": ((), torch.float32),
            "delta": ((), torch.float32),
            "weights": ((), torch.float32),
            "born": ((), torch.int64),
            "drawn": ((), torch.int64),
        }
        if caches_logits:
            self._kinds["logits"] = ((classes,), torch.float32)
        self._columns = {
            name: torch.empty((0, *shape), dtype=dtype, device=device)
            for name, (shape, dtype) in self._kinds.items()
        }

    @property
    def count(self) -> int:
        """Return how many members there are."""
        return self._count

    @property
    def images(self) -> UInt8[Tensor, "n c h w"]:
        """Return the pixels, 0..255."""
        return self._filled("images")

    @property
    def targets(self) -> Int[Tensor, " n"]:
        """Return the class that each was made to show."""
        return self._filled("targets")

    @property
    def shares(self) -> Float[Tensor, "n C"]:
        """Return which share of each image the teacher takes for each class."""
        return self._filled("shares")

    @property
    def confidence(self) -> Float[Tensor, " n"]:
        """Return the teacher's largest probability, averaged over the positions of an image."""
        return self._filled("confidence")

    @property
    def logits(self) -> Float[Tensor, "n C"] | None:
        """Return the teacher's logits, or None where they are not cached."""
        return self._filled("logits") if "logits" in self._columns else None

    @property
    def kl(self) -> Float[Tensor, " n"]:
        """Return the last divergence of each; for new members, the largest of the others."""
        return self._filled("kl")

    @property
    def delta(self) -> Float[Tensor, " n"]:
        """Return the priority of each."""
        return self._filled("delta")

    @property
    def weights(self) -> Float[Tensor, " n"]:
        """Return the importance weight of each since its last update; 1 before that."""
        return self._filled("weights")

    @property
    def born(self) -> Int[Tensor, " n"]:
        """Return the synthesis call in which each was made."""
        return self._filled("born")

    @property
    def drawn(self) -> Int[Tensor, " n"]:
        """Return how often each was drawn."""
        return self._filled("drawn")

    def classes(self) -> Int[Tensor, " n"]:
        """Return the class with the largest share in each image, by the teacher's predictions."""
        return self.shares.argmax(1)

    def class_shares(self) -> Float[Tensor, " C"]:
        """Return the share of all images that is predicted as each class; zeros if empty."""
        return self.shares.sum(0) / max(1, self._count)

    def insert(
        self,
        images: Float[Tensor, "N c h w"],
        targets: Int[Tensor, " N"],
        logits: Float[Tensor, "N C *S"],
        *,
        call: int,
    ) -> Int[Tensor, " M"]:
        """Insert images with pixels of 0..1, and return their slots.

        Of more images than the capacity, the last ones are kept. Until they are measured, new
        members have weight 1 and the largest known divergence, so that they are drawn soon.
        Raises ValueError for dense logits with `caches_logits`.
        """
        if "logits" in self._kinds and logits.dim() > 2:
            raise ValueError("logits of every pixel are not cached; use caches_logits=False")
        images, targets, logits = (
            part[-self.capacity :].detach() for part in (images.float(), targets, logits.float())
        )
        count = len(images)
        confidence, _ = modulation.confidence(logits)
        largest = self.kl.max() if self._count else torch.ones((), device=self._device)
        arrived = {
            "images": images.clamp(0, 1).mul(255).round(),
            "targets": targets,
            "shares": modulation.class_shares(logits),
            "confidence": per_image(confidence, count),
            "kl": largest,
            "delta": largest,
            "weights": torch.ones((), device=self._device),
            "born": torch.full((), call, device=self._device),
            "drawn": torch.zeros((), device=self._device),
            "logits": logits,
        }
        slots = self._allocate(count)
        for name, column in self._columns.items():
            shape = (count, *column.shape[1:])
            column[slots] = arrived[name].to(self._device, column.dtype).expand(shape)
        return slots

    def draw(self, count: int, priority: Priority | None) -> Draw:
        """Draw members with replacement: uniformly, or by priority with weights (n P)^-beta.

        Raises ValueError where the buffer is empty.
        """
        self._check_filled()
        if priority is None:
            slots = torch.randint(self._count, (count,)).to(self._device, non_blocking=True)
            weights = None
        else:
            shares = self.probabilities(priority)
            slots = _pick(shares, count)
            weights = priorities.importance(shares, beta=priority.beta)[slots]
        self._columns["drawn"].index_add_(0, slots, torch.ones_like(slots))
        return Draw(slots, weights)

    def probabilities(self, priority: Priority) -> Float[Tensor, " n"]:
        """Return each member's sampling probability; raises ValueError for an empty buffer."""
        self._check_filled()
        return priorities.probabilities(self.delta, alpha=priority.alpha, epsilon=priority.epsilon)

    def refresh(self, kl: Float[Tensor, " n"], priority: Priority | None) -> None:
        """Set the divergences of all members; without a priority, weights are unchanged.

        Priorities are then used for eviction alone.
        """
        if priority is None:
            self.kl.copy_(kl.detach())
            self.delta.copy_(self.weights * self.kl)
            return
        self.update(torch.arange(self._count, device=self._device), kl, priority)

    def update(self, slots: Int[Tensor, " b"], kl: Float[Tensor, " b"], priority: Priority) -> None:
        """Set the divergences of some members; of equal slots, the last one counts."""
        self._check_filled()
        order = torch.arange(len(slots), device=self._device)
        last = torch.zeros(self._count, dtype=torch.int64, device=self._device)
        last.scatter_reduce_(0, slots, order, "amax")
        # Equal slots get equal values: it does not matter which of them is written last.
        measured = kl.detach().to(self._device, torch.float32)[last[slots]]
        self.kl[slots] = measured
        self.delta[slots] = self.weights[slots] * measured
        shares = self.probabilities(priority)
        self.weights[slots] = priorities.importance(shares, beta=priority.beta)[slots]

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint: plain values and copies on the CPU."""
        members = {name: self._filled(name).to("cpu", copy=True) for name in self._columns}
        return {"capacity": self.capacity, "oldest": self._oldest, "members": members}

    def restore(self, state: dict[str, Any]) -> None:
        """Load a state; raises ValueError where it is of a buffer of another size or type."""
        members: dict[str, Tensor] = state["members"]
        kinds = {name: (tuple(m.shape[1:]), m.dtype) for name, m in members.items()}
        if state["capacity"] != self.capacity or kinds != self._kinds:
            raise ValueError("the state is that of a buffer of another size or of other images")
        self._count = len(members["images"])
        self._oldest = state["oldest"]
        self._columns = {name: members[name].to(self._device, copy=True) for name in self._columns}

    def _filled(self, name: str) -> Tensor:
        return self._columns[name][: self._count]

    def _check_filled(self) -> None:
        if not self._count:
            raise ValueError("the replay buffer is empty: insert images before drawing from it")

    def _allocate(self, count: int) -> Tensor:
        """Return slots for new members: free ones first, then those of evicted members."""
        replaced = max(0, self._count + count - self.capacity)
        if self._eviction == "oldest":
            given = (self._oldest + torch.arange(replaced, device=self._device)) % self.capacity
            self._oldest = (self._oldest + replaced) % self.capacity
        else:
            given = self.delta.abs().argsort(stable=True)[:replaced]
        end = self._count + count - replaced
        free = torch.arange(self._count, end, device=self._device)
        self._grow(end)
        self._count = end
        return torch.cat([free, given])

    def _grow(self, needed: int) -> None:
        allocated = len(self._columns["images"])
        if needed <= allocated:
            return
        # Twice as much at a time: what is copied stays below what was inserted.
        more = min(self.capacity, max(needed, 2 * allocated)) - allocated
        self._columns = {
            name: torch.cat([column, column.new_zeros(more, *column.shape[1:])])
            for name, column in self._columns.items()
        }


def _pick(shares: Tensor, count: int) -> Tensor:
    """Return indices drawn with these shares, with replacement."""
    # In float64: sums of many small shares in float32 would favour the first ones.
    ends = shares.double().cumsum(0)
    places = torch.rand(count, dtype=torch.float64).to(shares.device, non_blocking=True)
    return torch.searchsorted(ends, places * ends[-1], right=True).clamp(max=len(shares) - 1)
