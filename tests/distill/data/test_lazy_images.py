from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from workers.distill.data.formats import classified
from workers.distill.data.lazy_images import CentreViews, centre_view, resized, select, shown

IMAGES = torch.randint(
    0, 256, (4, 3, 40, 40), generator=torch.Generator().manual_seed(0), dtype=torch.uint8
)


class TestCentreView:
    def test_is_torchvisions_resize_and_centre_crop(self) -> None:
        # 224 of 256, as ImageNet's evaluation, at a seventh of the size.
        theirs = v2.Compose([v2.Resize(int(32 / 0.875), antialias=True), v2.CenterCrop(32)])
        assert torch.equal(centre_view(IMAGES, (32, 32), 0.875), theirs(IMAGES))

    @pytest.mark.parametrize("ratio", [1.0, 0.9, 0.5])
    @pytest.mark.parametrize("size", [(50, 31), (12, 40)])
    def test_agrees_with_what_pictures_become_at_upload(
        self, ratio: float, size: tuple[int, int]
    ) -> None:
        image = Image.fromarray(IMAGES[0].permute(1, 2, 0).numpy())
        pillow = np.asarray(classified.fitted(image, *size, ratio)).transpose(2, 0, 1)
        ours = centre_view(IMAGES[:1], size, ratio)[0].numpy()
        assert int(np.abs(ours.astype(int) - pillow.astype(int)).max()) <= 1

    def test_leaves_images_of_the_size_as_they_are(self) -> None:
        assert torch.equal(centre_view(IMAGES, (40, 40)), IMAGES)


class TestCentreViews:
    def test_are_read_as_a_tensor_is(self) -> None:
        views = CentreViews(IMAGES, 0.5)
        whole = centre_view(IMAGES, (40, 40), 0.5)
        assert views.shape == whole.shape
        assert len(views) == 4
        assert torch.equal(views[1:3], whole[1:3])
        assert torch.equal(views[torch.tensor([3, 0])], whole[[3, 0]])
        mask = torch.tensor([True, False, False, True])
        assert torch.equal(views[mask], whole[mask])

    def test_a_part_is_chosen_without_making_it(self) -> None:
        views = shown(IMAGES, 0.8)
        part = select(views, torch.tensor([False, True, True, False]))
        assert part.shape == (2, 3, 40, 40)
        assert torch.equal(part[0:2], centre_view(IMAGES[1:3], (40, 40), 0.8))

    @pytest.mark.parametrize("ratio", [None, 0.8])
    def test_in_another_size_are_resized_from_what_is_stored(self, ratio: float | None) -> None:
        views = resized(shown(IMAGES, ratio), 24, 56)
        assert views.shape == (4, 3, 24, 56)
        assert torch.equal(views[1:3], centre_view(IMAGES[1:3], (24, 56), ratio or 1.0))

    def test_are_resized_on_the_cpu_wherever_they_are_stored(self) -> None:
        """An image on a device that cannot resize whole numbers is copied first."""

        class Card(torch.Tensor):
            """Images of another device, which know no kernel of resizing."""

            asked: ClassVar[list[str]] = []

            def cpu(self, *_: Any, **__: Any) -> torch.Tensor:
                self.asked.append("cpu")
                return self.as_subclass(torch.Tensor)

        views = CentreViews(IMAGES.as_subclass(Card), 0.5)
        assert torch.equal(views[1:3], centre_view(IMAGES[1:3], (40, 40), 0.5))
        assert Card.asked == ["cpu"]

    def test_without_a_ratio_images_are_those_that_are_stored(self) -> None:
        assert shown(IMAGES, None) is IMAGES
