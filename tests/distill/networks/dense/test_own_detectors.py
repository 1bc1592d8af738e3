"""Our own detectors learn their classes, and have the sizes that their arguments say."""

from typing import Any, cast

import pytest
import torch
from torchvision.ops import box_iou

from tests.distill.networks.dense import scenes
from workers.distill import errors
from workers.distill.networks import catalog, interface
from workers.distill.networks.dense import detectors

NAMES = ("retort/fcos", "retort/retinanet", "retort/fasterrcnn")
GUIDE: dict[str, Any] = {"detections_per_image": 30}


def build(
    reference: str, *, classes: int = 3, size: tuple[int, int] = (64, 64), **arguments: Any
) -> Any:
    torch.manual_seed(0)
    return cast(
        detectors.Detector,
        catalog.build(
            reference,
            classes=classes,
            channels=3,
            height=size[0],
            width=size[1],
            arguments=arguments,
        ),
    )


def trained(network: Any, steps: int) -> list[float]:
    """Return the losses of so many steps on one batch."""
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    images, rows, losses = scenes.pictures(), scenes.two_boxes(), []
    for _ in range(steps):
        loss = sum(network.train().observe(images).detector.losses(rows).values())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5)
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def check_boxes(found: torch.Tensor) -> None:
    """Check that both boxes come first, each with its own class.

    The network is in training mode: running statistics are not those of the batch so soon.
    """
    first = {int(row[0]): row[2:] for row in found[0, :2]}
    assert set(first) == {0, 2}
    for row in scenes.two_boxes()[0]:
        assert float(box_iou(first[int(row[0])][None], row[None, 1:5])) > 0.5


class TestBuildFCOS:
    def test_loss_falls(self) -> None:
        network = build("retort/fcos", width=4, blocks=1, fpn_channels=32, head_convs=1)
        losses = trained(network, 30)
        assert losses[-1] < 0.6 * losses[0]

    @pytest.mark.slow
    def test_learns_the_first_class_as_the_first(self) -> None:
        network = build("retort/fcos", width=8, blocks=1, fpn_channels=32, head_convs=1)
        trained(network, 60)
        check_boxes(network(scenes.pictures()))

    @pytest.mark.slow
    def test_default_anchors_follow_the_size_of_the_image(self) -> None:
        assert build("retort/fcos").anchor_generator.sizes == ((2,), (4,))
        with torch.device("meta"):
            large = build("retort/fcos", size=(256, 192))
            deep = build("retort/fcos", size=(256, 192), backbone="timm/resnet18")
        assert large.anchor_generator.sizes == ((4,), (8,), (16,))
        assert deep.anchor_generator.sizes == ((4,), (8,), (16,), (32,))

    def test_has_as_many_parameters_as_the_guide_measured(self) -> None:
        # It also counts an output layer of the pyramid that is never read.
        unread = 64 * 64 * 9 + 64
        for width, blocks, convs, expected in ((24, 2, 2, 995_943), (8, 1, 1, 236_951)):
            network = build(
                "retort/fcos", classes=10, width=width, blocks=blocks, head_convs=convs, **GUIDE
            )
            count = sum(parameter.numel() for parameter in network.parameters())
            assert count == expected - unread
            assert network.detections_per_image == 30


class TestBuildRetinaNet:
    @pytest.mark.slow
    def test_learns_the_first_class_as_the_first(self) -> None:
        network = build("retort/retinanet", width=8, blocks=1, fpn_channels=32, head_convs=1)
        losses = trained(network, 80)
        assert losses[-1] < 0.3 * losses[0]
        check_boxes(network(scenes.pictures()))

    def test_its_head_has_as_many_convolutions_as_asked_for(self) -> None:
        for count in (1, 4):
            network = build("retort/retinanet", head_convs=count)
            head = network.head
            assert len(head.classification_head.conv) == len(head.regression_head.conv) == count

    def test_anchors_have_three_sizes_per_level(self) -> None:
        sizes = build("retort/retinanet").anchor_generator.sizes
        assert sizes == ((16, 20, 25), (32, 40, 50))


class TestBuildFasterRCNN:
    @pytest.mark.slow
    def test_learns_the_first_class_as_the_first(self) -> None:
        network = build(
            "retort/fasterrcnn", width=8, blocks=1, fpn_channels=32, representation_size=64
        )
        losses = trained(network, 80)
        assert losses[-1] < 0.5 * losses[0]
        check_boxes(network(scenes.pictures()))

    def test_defaults_follow_the_size_of_the_image(self) -> None:
        small = build("retort/fasterrcnn")
        assert small.roi_heads.fg_bg_sampler.batch_size_per_image == 64
        assert small.rpn._post_nms_top_n == {"training": 200, "testing": 200}
        with torch.device("meta"):
            large = build("retort/fasterrcnn", size=(256, 256))
            given = build("retort/fasterrcnn", box_batch_size_per_image=8)
        assert large.roi_heads.fg_bg_sampler.batch_size_per_image == 512
        assert large.rpn._post_nms_top_n == {"training": 2000, "testing": 1000}
        assert given.roi_heads.fg_bg_sampler.batch_size_per_image == 8


class TestAll:
    @pytest.mark.parametrize("reference", NAMES)
    def test_has_as_many_parameters_as_the_table_says(self, reference: str) -> None:
        with torch.device("meta"):
            network = build(reference, classes=100)
        count = sum(parameter.numel() for parameter in network.parameters())
        assert catalog.NETWORKS[reference].parameters_100 == count

    @pytest.mark.parametrize("reference", NAMES)
    def test_levels_and_anchors_are_as_asked_for(self, reference: str) -> None:
        network = build(reference, levels=3, anchor_sizes=[4, 8, 20])
        assert network.stages_info == tuple(
            interface.StageInfo(64, stride) for stride in (4, 8, 16)
        )
        generator = (network.rpn if reference == "retort/fasterrcnn" else network).anchor_generator
        assert [sizes[0] for sizes in generator.sizes] == [4, 8, 20]

    @pytest.mark.parametrize("reference", NAMES)
    def test_arguments_that_do_not_fit_are_named(self, reference: str) -> None:
        for given, argument, advice in (
            ({"anchor_sizes": [4]}, "anchor_sizes", "give one size per level, or set levels to 1"),
            ({"anchor_sizes": [4, 7]}, "anchor_sizes", "multiple of 2"),
            ({"levels": 4}, "levels", "at strides 4, 8, 16; ask for at most 3"),
            ({"fpn_channels": 48}, "fpn_channels", "multiple of 32"),
        ):
            with pytest.raises(errors.UnknownNetwork, match=advice) as caught:
                build(reference, **given)
            assert caught.value.details["argument"] == argument

    @pytest.mark.parametrize("reference", NAMES)
    def test_a_map_of_one_pixel_needs_two_images(self, reference: str) -> None:
        with torch.device("meta"):
            network = build(reference, size=(32, 32), backbone="timm/resnet18")
            assert network.smallest_batch == 2
            assert build(reference, size=(32, 40)).smallest_batch == 1


class TestSkipFeatures:
    @pytest.mark.parametrize("reference", NAMES)
    def test_leaves_out_a_head_that_nobody_reads(self, reference: str) -> None:
        network = build(reference, width=4, blocks=1, fpn_channels=32).eval()
        images = scenes.pictures()
        with torch.no_grad():
            whole, answers = network.observe(images), network(images)
            network.skip_features({"final", "locations"})
            cut = network.observe(images)
            assert torch.equal(network(images), answers)
        assert cut.logits.shape == (2, 3, 0)
        assert torch.equal(cut.pooled, whole.pooled)
        assert all(map(torch.equal, cut.stages, whole.stages))
        # Proposals cost nothing until they are asked for.
        assert (cut.detector is None) is (reference != "retort/fasterrcnn")
        network.skip_features({"final"})
        with torch.no_grad():
            assert torch.equal(network.observe(images).logits, whole.logits)


class TestAgnosticNMS:
    @pytest.mark.parametrize("reference", ["retort/fcos", "retort/fasterrcnn"])
    def test_leaves_fewer_boxes_none_of_which_overlaps_another(self, reference: str) -> None:
        small: dict[str, Any] = {
            "width": 4,
            "blocks": 1,
            "fpn_channels": 32,
            "score_threshold": 0.0,
        }
        plain, alone = (
            build(reference, **small, agnostic_nms=agnostic).eval()(scenes.pictures())[0]
            for agnostic in (False, True)
        )
        kept = alone[alone[:, 0] >= 0, 2:]
        assert 1 < len(kept) < (plain[:, 0] >= 0).sum()
        assert (box_iou(kept, kept).nan_to_num() - torch.eye(len(kept))).max() <= 0.5 + 1e-6
        assert alone.shape == plain.shape
