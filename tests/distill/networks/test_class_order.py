"""A network's logits follow the data set's order of classes, for every kind of head."""

from typing import Any

import pytest
import torch

from workers.distill import errors
from workers.distill.networks import catalog, class_order, interface

ORDER = [2, 0, 1]


def trained(name: str, side: int, **arguments: Any) -> interface.Network:
    torch.manual_seed(0)
    network = catalog.build(
        name, classes=3, channels=1, height=side, width=side, arguments=arguments
    )
    for parameter in network.parameters():
        torch.nn.init.uniform_(parameter, -0.2, 0.2)
    return network.eval()


class TestReorder:
    @pytest.mark.parametrize(
        ("name", "side", "arguments"),
        [
            ("retort/resnet8", 8, {"widths": [2, 2, 3, 4]}),
            ("retort/fcn", 8, {"widths": [4, 3]}),
            ("timm/test_vit", 16, {}),
            ("torchvision/squeezenet1_1", 32, {}),
        ],
    )
    def test_logits_of_images_and_pixels(
        self, name: str, side: int, arguments: dict[str, Any]
    ) -> None:
        network = trained(name, side, **arguments)
        images = torch.rand(2, 1, side, side)
        before = network(images)
        class_order.reorder(network, ORDER)
        assert torch.allclose(network(images), before[:, ORDER], atol=1e-6)

    @pytest.mark.parametrize("name", ["retort/fcos", "retort/retinanet", "retort/fasterrcnn"])
    def test_boxes(self, name: str) -> None:
        network = trained(name, 32, score_threshold=0.0)
        images = torch.rand(1, 1, 32, 32)
        before = network(images)[0]
        class_order.reorder(network, ORDER)
        after = network(images)[0]
        places = torch.tensor([ORDER.index(place) for place in range(3)])
        renamed = before.clone()
        found = before[:, 0] >= 0
        renamed[found, 0] = places[before[found, 0].long()].float()
        assert found.any()
        # Sorted, since boxes with equal scores may change places.
        rows = [sorted(map(tuple, boxes.round(decimals=3).tolist())) for boxes in (renamed, after)]
        assert rows[0] == rows[1]

    def test_weights_that_do_not_tell_how_are_refused(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        network = trained("retort/resnet8", 8, widths=[2, 2, 3, 4])
        monkeypatch.setattr(class_order, "_places", lambda _, order, *__: list(range(len(order))))
        with pytest.raises(errors.IncompatibleNetworks, match="in the order of the data set"):
            class_order.reorder(network, ORDER)
