"""Several teachers as one network, whose logits stand for what all of them say.

They may differ in architecture, in kind and in how they want their images: each prepares the stored
images itself. They must tell apart the same classes, in one order.

Source: the mean of several networks' probabilities as a teacher is that of Hinton et al., 2015,
arXiv:1503.02531; weights by the inverse of the entropy are those of Kwon et al., Adaptive Knowledge
Distillation Based on Entropy, ICASSP 2020 (doi:10.1109/ICASSP40776.2020.9054698).
Differs: the entropy is that of the probabilities without a temperature, so that the ensemble has
one answer, whatever a method does with it.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.config.teachers import SEVERAL_LIMITS, Weighting
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.networks import interface

SMALLEST_ENTROPY = 1e-6
"""A teacher that is certain, in nats: so that its weight stays a number."""


class Ensemble(interface.Network):
    """The teachers' joint logits [N, C] for images as they are stored, pixels of 0..255."""

    limits = SEVERAL_LIMITS

    def __init__(
        self,
        members: Sequence[interface.Network],
        preprocessors: Sequence[Preprocessor],
        weighting: Weighting,
        image_shape: tuple[int, int, int],
    ) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self._preprocessors = tuple(preprocessors)
        self._weighting = weighting
        self.reference = " + ".join(member.reference for member in members)
        self.classes = members[0].classes
        self.image_shape = image_shape
        self.parameter_count = sum(_parameters(member) for member in members)

    def each(self) -> list[tuple[interface.Network, Preprocessor]]:
        """Return the members, each with what prepares its images."""
        members: list[interface.Network] = list(self.members)  # type: ignore[arg-type]  # torch's
        return list(zip(members, self._preprocessors, strict=True))

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C"]:
        """Return the joint logits."""
        answers = [
            member(preprocess(images))
            for member, preprocess in zip(self.members, self._preprocessors, strict=True)
        ]
        return joined(torch.stack([answer.float() for answer in answers]), self._weighting)

    def observe(self, images: Float[Tensor, "N c h w"]) -> interface.Features:
        """Return the joint logits, and no features."""
        return interface.Features.from_logits(self(images))

    def enable_gradients(self) -> None:
        """Raise `IncompatibleNetworks`: synthesis has one teacher."""
        raise errors.IncompatibleNetworks(
            "images are synthesized for one teacher, not for several", network=self.reference
        )

    def torch_form(self) -> nn.Module | None:
        """Return itself where all of its members compute in torch, else None."""
        return self if all(member.torch_form() is member for member in self.members) else None  # type: ignore[operator]  # torch types a child as a tensor or a module


def joined(logits: Float[Tensor, "M N C"], weighting: Weighting) -> Float[Tensor, "N C"]:
    """Return the logits of M teachers together; the log of a mean, where probabilities are."""
    if weighting == "logits":
        return logits.mean(0)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    if weighting == "probabilities":
        weights = torch.full_like(logits[..., :1], 1 / len(logits))
    else:
        entropy = -(log_probabilities.exp() * log_probabilities).sum(-1, keepdim=True)
        inverse = 1 / entropy.clamp_min(SMALLEST_ENTROPY)
        weights = inverse / inverse.sum(0)
    return torch.logsumexp(log_probabilities + weights.log(), dim=0)


def _parameters(network: interface.Network) -> int:
    if network.parameter_count is not None:
        return network.parameter_count
    return sum(parameter.numel() for parameter in network.parameters())
