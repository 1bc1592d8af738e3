"""Several teachers' logits together are those of a mean, plain or weighted by confidence."""

import torch

from workers.distill.networks import ensemble

SURE = torch.tensor([[8.0, 0.0, 0.0], [0.0, 0.0, 5.0]])
UNSURE = torch.tensor([[0.0, 0.4, 0.2], [0.3, 0.0, 0.1]])


def test_the_mean_of_probabilities_is_hintons() -> None:
    found = ensemble.joined(torch.stack([SURE, UNSURE]), "probabilities")
    expected = (SURE.softmax(1) + UNSURE.softmax(1)) / 2
    torch.testing.assert_close(found.softmax(1), expected)


def test_the_mean_of_logits_is_plain() -> None:
    found = ensemble.joined(torch.stack([SURE, UNSURE]), "logits")
    torch.testing.assert_close(found, (SURE + UNSURE) / 2)


def test_confidence_weighs_by_the_inverse_of_the_entropy() -> None:
    found = ensemble.joined(torch.stack([SURE, UNSURE]), "confidence").softmax(1)
    soft = torch.stack([SURE.softmax(1), UNSURE.softmax(1)])
    inverse = 1 / -(soft * soft.log()).sum(-1, keepdim=True)
    torch.testing.assert_close(found, (inverse / inverse.sum(0) * soft).sum(0))
    assert (found - soft[0]).abs().max() < (found - soft[1]).abs().min() + 0.2


def test_one_that_is_certain_leaves_no_nan() -> None:
    certain = torch.tensor([[1e4, 0.0, 0.0]])
    found = ensemble.joined(torch.stack([certain, UNSURE[:1]]), "confidence")
    assert found.isfinite().all()
    assert found.argmax() == 0
