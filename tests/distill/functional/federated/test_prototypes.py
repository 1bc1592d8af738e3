import pytest
import torch

from workers.distill.functional.federated import prototypes
from workers.distill.functional.federated.label_means import LabelMeans

EMBEDDINGS = torch.tensor([[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]).double()
LABELS = torch.tensor([0, 0, 2])
GLOBAL = LabelMeans(
    torch.tensor([[1.0, 1.0], [5.0, 5.0], [0.0, 2.0], [9.0, 9.0]]).double(),
    torch.tensor([True, True, True, False]),
)


class TestClassDistance:
    def test_is_the_squared_distance_of_means_summed_over_labels(self) -> None:
        # Label 0: mean (2, 3), prototype (1, 1): 1 + 4. Label 2: (0, 0) and (0, 2): 4.
        assert float(prototypes.class_distance(EMBEDDINGS, LABELS, GLOBAL)) == 9

    def test_leaves_out_labels_without_a_prototype(self) -> None:
        without = LabelMeans(GLOBAL.rows, torch.tensor([True, True, False, False]))
        assert float(prototypes.class_distance(EMBEDDINGS, LABELS, without)) == 5
        none = LabelMeans(GLOBAL.rows, torch.zeros(4, dtype=torch.bool))
        assert float(prototypes.class_distance(EMBEDDINGS, LABELS, none)) == 0

    def test_has_the_gradient_of_its_value(self) -> None:
        for loss in (prototypes.class_distance, prototypes.sample_distance):
            assert torch.autograd.gradcheck(
                lambda given, loss=loss: loss(given, LABELS, GLOBAL),
                EMBEDDINGS.clone().requires_grad_(),
            )


class TestSampleDistance:
    def test_is_the_mean_squared_difference(self) -> None:
        # (0 + 1) / 2, (4 + 9) / 2 and (0 + 4) / 2, over three samples.
        assert float(prototypes.sample_distance(EMBEDDINGS, LABELS, GLOBAL)) == 3
        expected = torch.nn.functional.mse_loss(EMBEDDINGS, GLOBAL.rows[LABELS])
        assert float(prototypes.sample_distance(EMBEDDINGS, LABELS, GLOBAL)) == float(expected)

    def test_counts_samples_without_a_prototype_as_nothing(self) -> None:
        without = LabelMeans(GLOBAL.rows, torch.tensor([True, True, False, False]))
        found = prototypes.sample_distance(EMBEDDINGS, LABELS, without)
        assert float(found) == pytest.approx(7 / 3)


class TestNearestScores:
    def test_are_largest_for_the_nearest_prototype_that_exists(self) -> None:
        given = torch.tensor([[1.0, 1.5], [6.0, 6.0], [9.0, 9.0]]).double()
        scores = prototypes.nearest_scores(given, GLOBAL)
        assert scores.argmax(1).tolist() == [0, 1, 1]
        assert scores[0].tolist() == [-0.25, -28.25, -1.25, -torch.inf]

    def test_need_a_prototype(self) -> None:
        none = LabelMeans(GLOBAL.rows, torch.zeros(4, dtype=torch.bool))
        with pytest.raises(ValueError, match="no class has a prototype"):
            prototypes.nearest_scores(EMBEDDINGS, none)


class TestAggregate:
    def test_weighs_holders_by_their_counts_or_evenly(self) -> None:
        rows = torch.tensor([[[1.0], [0.0]], [[4.0], [2.0]]])
        held = torch.tensor([[True, False], [True, True]])
        counts = torch.tensor([[10.0, 0.0], [20.0, 5.0]])
        found = prototypes.aggregate(LabelMeans(rows, held), counts)
        assert found.rows.flatten().tolist() == [3.0, 2.0]
        found = prototypes.aggregate(LabelMeans(rows, held))
        assert found.rows.flatten().tolist() == [2.5, 2.0]
        assert found.held.tolist() == [True, True]
