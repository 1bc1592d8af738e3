import pytest
import torch

from workers.distill import errors
from workers.distill.networks import catalog, interface
from workers.distill.networks.zoo import reused

SMALL = {"network": "retort/resnet8", "arguments": {"widths": [4, 4, 6, 8]}}


def build(side: int = 8, **arguments: object) -> interface.Network:
    return catalog.build(
        reused.REFERENCE, classes=3, channels=1, height=side, width=side, arguments=arguments
    )


class TestProjector:
    def test_is_three_convolutions_that_narrow_by_the_factor(self) -> None:
        projector = reused.Projector(4, 12, factor=3, size=(2, 2))
        shapes = [tuple(value.shape) for value in projector.parameters() if value.dim() == 4]
        assert shapes == [(4, 4, 1, 1), (4, 4, 3, 3), (12, 4, 1, 1)]
        projected = projector(torch.randn(2, 4, 4, 1))
        assert projected.shape == (2, 12, 2, 1)
        assert (projected >= 0).all()


class TestReusedClassifier:
    def test_shows_what_its_backbone_shows_behind_its_own_classifier(self) -> None:
        network = build(backbone=SMALL, channels=6, height=2, width=2).eval()
        images = torch.randn(2, 1, 8, 8)
        features = network.observe(images)
        assert torch.equal(features.logits, network(images))
        assert [stage.shape[1] for stage in features.stages] == [4, 6, 8]
        assert len(features.pre_activations) == len(network.stage_norms()) == 3
        assert features.pooled.shape == (2, network.pooled_width) == (2, 6)
        assert [stage.channels for stage in network.stages_info] == [4, 6, 8]
        classifier = network.pooled_classifier()
        assert classifier is not None
        assert torch.equal(classifier(features.pooled), features.logits)

    def test_refuses_to_be_its_own_backbone(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="cannot be its own backbone"):
            build(backbone={"network": reused.REFERENCE, "arguments": {}})

    def test_refuses_an_unknown_backbone_and_what_that_does_not_accept(self) -> None:
        with pytest.raises(errors.UnknownNetwork, match="did you mean 'retort/resnet32'"):
            build(backbone={"network": "retort/resnet33", "arguments": {}})
        with pytest.raises(errors.UnknownNetwork, match="retort/resnet8 has no argument 'depth'"):
            build(backbone={"network": "retort/resnet8", "arguments": {"depth": 3}})

    def test_refuses_a_backbone_without_a_last_map(self) -> None:
        class Blind(interface.Network):
            def __init__(self) -> None:
                super().__init__()
                self.layer = torch.nn.Linear(1, 1)
                self.image_shape = (1, 2, 2)

            def observe(self, images: torch.Tensor) -> interface.Features:
                pooled = images.flatten(1)
                return interface.Features(logits=pooled, pooled=pooled)

        with pytest.raises(errors.UnknownNetwork, match="cannot project the last map"):
            reused.build(reused.Arguments(), Blind())
        network = reused.ReusedClassifier(
            Blind(), reused.Projector(1, 1, factor=1, size=(1, 1)), torch.nn.Linear(1, 2)
        )
        with pytest.raises(ValueError, match="shows no last map"):
            network(torch.zeros(1, 1, 2, 2))
