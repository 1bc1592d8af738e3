import pytest
import torch

from tests.distill.golden import CASES
from workers.distill.functional import entropies

LOGITS = CASES.tensor("inputs", "teacher_logits")
TARGETS = CASES.tensor("random_targets").long()


def as_maps(logits: torch.Tensor) -> torch.Tensor:
    """Return four rows as two images of one line with two pixels."""
    return logits.view(2, 1, 2, -1).permute(0, 3, 1, 2)


class TestCrossEntropies:
    def test_equal_the_guide(self) -> None:
        actual = entropies.cross_entropies(LOGITS, TARGETS)
        assert torch.allclose(
            actual, CASES.tensor("ce_to_targets_each"), rtol=0, atol=CASES.tolerance
        )

    def test_take_each_rows_own_class_where_none_is_given(self) -> None:
        entropy = entropies.cross_entropies(LOGITS)
        assert torch.equal(entropy, entropies.cross_entropies(LOGITS, LOGITS.argmax(1)))

    @pytest.mark.parametrize("classes", [None, torch.tensor([2, 2])])
    def test_take_each_positions_own_class_whatever_the_image_is_to_show(
        self, classes: torch.Tensor | None
    ) -> None:
        entropy = entropies.cross_entropies(as_maps(LOGITS), classes)
        assert torch.allclose(entropy, entropies.cross_entropies(LOGITS), rtol=1e-12)


class TestMeanCrossEntropy:
    def test_equals_the_guide(self) -> None:
        for classes, expected in ((TARGETS, "ce_to_targets_mean"), (None, "dafl_onehot")):
            loss = entropies.mean_cross_entropy(LOGITS, classes)
            assert float(loss) == pytest.approx(CASES.case(expected), abs=CASES.tolerance)

    def test_falls_when_confidence_grows(self) -> None:
        losses = [float(entropies.mean_cross_entropy(scale * LOGITS)) for scale in (0.5, 1, 2, 4)]
        assert losses == sorted(losses, reverse=True)
        assert losses[0] > losses[-1]

    @pytest.mark.parametrize("classes", [None, TARGETS])
    def test_has_the_gradient_of_its_value(self, classes: torch.Tensor | None) -> None:
        assert torch.autograd.gradcheck(
            lambda logits: entropies.mean_cross_entropy(logits, classes),
            (LOGITS.clone().requires_grad_(),),
        )
