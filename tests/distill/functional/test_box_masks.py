import math
import statistics

import torch

from workers.distill.functional import box_masks

BOXES = torch.tensor([[[1.0, 0.0, 3.0, 1.0], [2.0, 0.0, 3.0, 4.0]]])
BOTH = torch.tensor([[True, True]])


class TestScaleWeights:
    def test_rows_are_y_and_the_smaller_box_wins(self) -> None:
        foreground, background = box_masks.scale_weights(BOXES, BOTH, (4, 5))
        wanted = torch.zeros(1, 4, 5)
        wanted[0, 0, 1] = wanted[0, 0, 2] = 1 / 2  # one row of two columns, the smaller box
        wanted[0, 1:, 2] = 1 / 4  # the rest of a column of four rows
        assert torch.allclose(foreground, wanted)
        assert torch.allclose(background, (wanted == 0) / 15)

    def test_a_position_counts_if_a_box_touches_it(self) -> None:
        boxes = torch.tensor([[[0.9, 1.2, 1.1, 1.3]]])
        foreground, _ = box_masks.scale_weights(boxes, torch.tensor([[True]]), (3, 3))
        assert foreground.nonzero().tolist() == [[0, 1, 0], [0, 1, 1]]
        assert float(foreground.sum()) == 1

    def test_images_without_boxes_are_background(self) -> None:
        for boxes, exist in (
            (BOXES, torch.zeros_like(BOTH)),
            (BOXES[:, :0], BOTH[:, :0]),
        ):
            foreground, background = box_masks.scale_weights(boxes, exist, (4, 5))
            assert not foreground.any()
            assert torch.allclose(background, torch.full((1, 4, 5), 1 / 20))

    def test_images_full_of_boxes_have_no_background(self) -> None:
        boxes = torch.tensor([[[0.0, 0.0, 5.0, 4.0]]])
        foreground, background = box_masks.scale_weights(boxes, torch.tensor([[True]]), (4, 5))
        assert torch.allclose(foreground, torch.full((1, 4, 5), 1 / 20))
        assert not background.any()


def grid_of_anchors() -> torch.Tensor:
    """Return a square of 2 and one of 4 pixels around the centre of each of 3 x 4 positions."""
    rows, columns = torch.meshgrid(torch.arange(3), torch.arange(4), indexing="ij")
    centres = torch.stack([columns, rows], dim=2) + 0.5
    squares = [torch.cat([centres - half, centres + half], dim=2) for half in (1, 2)]
    return torch.stack(squares, dim=2)


class TestAnchorMask:
    def test_marks_what_exceeds_half_of_the_best_overlap(self) -> None:
        # The small anchor of row 1, column 2, exactly; its neighbours overlap by 1/3 and 1/7.
        boxes = torch.tensor([[[1.5, 0.5, 3.5, 2.5], [0.0, 0.0, 1.0, 1.0]]])
        first = torch.tensor([[True, False]])
        found = box_masks.anchor_mask(boxes, first, grid_of_anchors(), share=0.5)
        assert found.nonzero().tolist() == [[0, 1, 2]]
        wider = box_masks.anchor_mask(boxes, first, grid_of_anchors(), share=0.3)
        assert wider.nonzero().tolist() == [[0, 0, 2], [0, 1, 1], [0, 1, 2], [0, 1, 3], [0, 2, 2]]

    def test_unites_boxes_and_keeps_images_apart(self) -> None:
        boxes = torch.tensor(
            [
                [[1.5, 0.5, 3.5, 2.5], [-0.5, -0.5, 1.5, 1.5]],
                [[100.0, 100.0, 101.0, 101.0], [0.0, 0.0, 0.0, 0.0]],
            ]
        )
        found = box_masks.anchor_mask(
            boxes, torch.ones(2, 2, dtype=torch.bool), grid_of_anchors(), share=0.9
        )
        assert found.nonzero().tolist() == [[0, 0, 0], [0, 1, 2]]
        none = box_masks.anchor_mask(
            boxes[:, :0], torch.ones(2, 0, dtype=torch.bool), grid_of_anchors(), share=0.5
        )
        assert none.shape == (2, 3, 4)
        assert not none.any()


def valuable(box: list[float], levels: list[list[list[float]]], share: float) -> list[bool]:
    """Return the definition for one box, in plain numbers."""

    def center(one: list[float]) -> tuple[float, float]:
        return (one[0] + one[2]) / 2, (one[1] + one[3]) / 2

    def iou(one: list[float]) -> float:
        width = max(0.0, min(one[2], box[2]) - max(one[0], box[0]))
        height = max(0.0, min(one[3], box[3]) - max(one[1], box[1]))
        areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (one, box)]
        return width * height / (sum(areas) - width * height)

    def diou(one: list[float]) -> float:
        first = min(one[0], box[0]), min(one[1], box[1])
        last = max(one[2], box[2]), max(one[3], box[3])
        return iou(one) - (math.dist(center(one), center(box)) / math.dist(first, last)) ** 2

    candidates = []
    for level in levels:
        level = sorted(level, key=lambda one: math.dist(center(one), center(box)))
        candidates += [iou(one) for one in level[:9]]
    needed = statistics.mean(candidates) + statistics.stdev(candidates)
    return [share * needed <= diou(one) <= needed for level in levels for one in level]


class TestValuableRegion:
    def test_is_what_overlaps_a_box_too_little_to_learn_it(self) -> None:
        levels = [
            [
                [x - half, y - half, x + half, y + half]
                for y in range(0, 32, stride)
                for x in range(0, 32, stride)
            ]
            for stride, half in ((4, 4.0), (8, 8.0))
        ]
        box = [5.0, 6.0, 17.5, 19.0]
        boxes = torch.tensor([[box, [0.0, 0.0, 9.0, 9.0]], [box, box]])
        exist = torch.tensor([[True, False], [False, False]])
        anchors = torch.tensor([one for level in levels for one in level])
        found = box_masks.valuable_region(boxes, exist, anchors, [64, 16], share=0.25)
        wanted = valuable(box, levels, 0.25)
        assert 3 < sum(wanted) < 40
        assert found.tolist() == [wanted, [False] * 80]

    def test_a_level_of_one_anchor_is_enough(self) -> None:
        anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0]])
        boxes = torch.tensor([[[0.0, 0.0, 4.0, 4.0]]])
        found = box_masks.valuable_region(boxes, torch.tensor([[True]]), anchors, [1], share=0.25)
        assert found.tolist() == [[True]]


class TestOverlap:
    def test_is_intersection_over_union(self) -> None:
        one = torch.tensor([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
        other = torch.tensor([[1.0, 0.0, 3.0, 2.0], [0.0, 0.0, 2.0, 2.0], [5.0, 5.0, 6.0, 6.0]])
        found = box_masks.overlap(one, other)
        assert torch.allclose(found, torch.tensor([[1 / 3, 1.0, 0.0], [0.0, 0.0, 0.0]]))
