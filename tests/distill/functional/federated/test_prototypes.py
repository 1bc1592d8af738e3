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

    def test_leaves_padding_out(self) -> None:
        padded = torch.cat([EMBEDDINGS, torch.full((2, 2), 7.0).double()])
        labels = torch.cat([LABELS, torch.tensor([0, 1])])
        counted = torch.tensor([True] * 3 + [False] * 2)
        assert float(prototypes.class_distance(padded, labels, GLOBAL, counted=counted)) == 9

    def test_has_the_gradient_of_its_value(self) -> None:
        for loss in (prototypes.class_distance, prototypes.sample_distances):
            assert torch.autograd.gradcheck(
                lambda given, loss=loss: loss(given, LABELS, GLOBAL),
                EMBEDDINGS.clone().requires_grad_(),
            )


class TestSampleDistances:
    def test_are_mean_squared_differences(self) -> None:
        found = prototypes.sample_distances(EMBEDDINGS, LABELS, GLOBAL)
        assert found.tolist() == [0.5, 6.5, 2.0]
        expected = torch.nn.functional.mse_loss(EMBEDDINGS, GLOBAL.rows[LABELS])
        assert float(found.mean()) == float(expected)

    def test_are_zero_without_a_prototype(self) -> None:
        without = LabelMeans(GLOBAL.rows, torch.tensor([True, True, False, False]))
        found = prototypes.sample_distances(EMBEDDINGS, LABELS, without)
        assert found.tolist() == [0.5, 6.5, 0.0]


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


class TestAsClassifier:
    def test_predicts_the_nearest_prototype_by_the_same_margins(self) -> None:
        given = torch.randn(50, 2).double() * 5
        weight, bias = prototypes.as_classifier(GLOBAL)
        logits = given @ weight.T + bias
        scores = prototypes.nearest_scores(given, GLOBAL)
        assert torch.equal(logits.argmax(1), scores.argmax(1))
        apart = (logits - scores)[:, :3]
        assert torch.allclose(apart, given.square().sum(1, keepdim=True).expand(-1, 3), rtol=1e-9)
        assert bool(logits.isfinite().all())


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
