"""What our convolutional networks share: stages, average pooling, one linear classifier."""

from collections.abc import Iterable, Sequence

from jaxtyping import Float
from torch import Tensor, nn

from workers.distill.networks import interface


class ConvolutionalNetwork(interface.Network):
    """A network whose last map, averaged over positions, is the input of its classifier.

    A subclass writes `observe`, and sets `pooled_width` and `stages_info`.
    """

    classifier_name = "fc"
    """Name of the classifier's layer in checkpoints."""

    def forward(self, images: Float[Tensor, "N c h w"]) -> Float[Tensor, "N C"]:
        """Return the logits."""
        return self.observe(images).logits

    def pooled_classifier(self) -> nn.Linear | None:
        """Return the last layer, or None where it was taken out."""
        classifier = self.get_submodule(self.classifier_name)
        return classifier if isinstance(classifier, nn.Linear) else None

    def features(
        self,
        final: Float[Tensor, "N k i j"],
        *,
        stem: Float[Tensor, "N c h w"] | None = None,
        stages: Sequence[Tensor],
        pre_activations: Sequence[Tensor] = (),
    ) -> interface.Features:
        """Average the last map, classify it, and return both with the maps of the stages."""
        pooled = final.mean(dim=(2, 3))
        return interface.Features(
            logits=self.get_submodule(self.classifier_name)(pooled),
            pooled=pooled,
            stem=stem,
            stages=tuple(stages),
            pre_activations=tuple(pre_activations),
            final=final,
        )


def stages_info(widths: Iterable[int], strides: Iterable[int]) -> tuple[interface.StageInfo, ...]:
    """Return the description of the stages from their channels and strides to the image."""
    return tuple(
        interface.StageInfo(width, stride) for width, stride in zip(widths, strides, strict=True)
    )


def initialise_convolutions(network: nn.Module) -> None:
    """Draw the convolutions' weights by He et al. (fan out, ReLU); biases become 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
