import itertools

import pytest
import torch

from tests.distill.golden import FEDERATED
from workers.distill.functional.federated import latent_generation

NAME = "fedgen_generator"
COUNTS = torch.stack(
    [FEDERATED.inputs(NAME, "label_counts_with_plus_one", each) for each in ("k1", "k2")]
)
SCORES = torch.stack(
    [FEDERATED.inputs(NAME, "user_logits_on_generated_batch", each) for each in ("k1", "k2")]
)
LABELS = FEDERATED.inputs(NAME, "y").long()


class TestDiversityLoss:
    NOISE = FEDERATED.inputs("fedgen_diversity", "eps")
    LATENTS = FEDERATED.inputs("fedgen_diversity", "z")

    def test_equals_the_guide(self) -> None:
        loss = latent_generation.diversity_loss(self.NOISE, self.LATENTS)
        assert FEDERATED.close(loss, FEDERATED.expected("fedgen_diversity", "loss"))
        expected = FEDERATED.expected("fedgen_diversity", "mean_exponent")
        assert FEDERATED.close(loss.log(), expected)

    def test_equals_the_sum_over_pairs(self) -> None:
        noise, latents = torch.rand(4, 2).double(), torch.randn(4, 5).double()
        pairs = [
            (noise[i] - noise[j]).square().mean() * (latents[i] - latents[j]).abs().mean()
            for i, j in itertools.product(range(4), repeat=2)
        ]
        loss = latent_generation.diversity_loss(noise, latents)
        assert torch.allclose(loss, (-torch.stack(pairs).mean()).exp(), rtol=1e-12)

    def test_is_one_where_all_latents_are_the_same(self) -> None:
        assert float(latent_generation.diversity_loss(self.NOISE, torch.ones(3, 5).double())) == 1

    def test_has_the_gradient_of_its_value(self) -> None:
        latents = torch.randn(4, 5).double().requires_grad_()
        noise = torch.rand(4, 2).double()
        # The absolute difference has no gradient at 0, which each latent has to itself: it is 0.
        assert torch.autograd.gradcheck(
            lambda given: latent_generation.diversity_loss(noise, given), latents
        )


class TestWeightedTeacherLosses:
    def test_equal_the_guide(self) -> None:
        weights = latent_generation.label_weights(COUNTS)
        assert FEDERATED.close(weights, FEDERATED.expected(NAME, "label_weights"))
        losses = latent_generation.weighted_teacher_losses(SCORES, LABELS, weights)
        assert FEDERATED.close(losses, FEDERATED.expected(NAME, "per_user"))
        assert FEDERATED.close(losses.sum(), FEDERATED.expected(NAME, "teacher_loss_code"))

    def test_are_the_paper_loss_for_equal_clients(self) -> None:
        scores = SCORES[:1].expand(4, -1, -1)
        weights = latent_generation.label_weights(torch.rand(4, 3).double())
        losses = latent_generation.weighted_teacher_losses(scores, LABELS, weights)
        plain = latent_generation.mean_score_loss(scores, LABELS)
        assert torch.allclose(losses.sum(), plain, rtol=1e-12)

    def test_have_the_gradient_of_their_value(self) -> None:
        weights = latent_generation.label_weights(COUNTS)
        assert torch.autograd.gradcheck(
            lambda given: latent_generation.weighted_teacher_losses(given, LABELS, weights),
            SCORES.clone().requires_grad_(),
        )


class TestMeanScoreLoss:
    def test_equals_the_guide(self) -> None:
        loss = latent_generation.mean_score_loss(SCORES, LABELS)
        assert FEDERATED.close(loss, FEDERATED.expected(NAME, "eq4"))

    def test_has_the_gradient_of_its_value(self) -> None:
        assert torch.autograd.gradcheck(
            lambda given: latent_generation.mean_score_loss(given, LABELS),
            SCORES.clone().requires_grad_(),
        )


class TestStudentDisagreement:
    def test_is_zero_for_a_student_that_says_what_its_only_teacher_says(self) -> None:
        weights = torch.ones(3, 1).double()
        apart = latent_generation.student_disagreement(SCORES[0], SCORES[:1], LABELS, weights)
        assert float(apart) == pytest.approx(0, abs=1e-12)

    def test_weighs_scores_by_label_and_has_the_gradient_of_its_value(self) -> None:
        weights = latent_generation.label_weights(COUNTS)
        student = torch.randn(2, 3).double().requires_grad_()
        found = latent_generation.student_disagreement(student, SCORES, LABELS, weights)
        mixed = [
            weights[label, 0] * SCORES[0, row] + weights[label, 1] * SCORES[1, row]
            for row, label in enumerate(LABELS.tolist())
        ]
        target = torch.stack(mixed).softmax(1)
        expected = (target * (target.log() - student.log_softmax(1))).sum(1).mean()
        assert torch.allclose(found, expected, rtol=1e-12)
        assert torch.autograd.gradcheck(
            lambda student, scores: latent_generation.student_disagreement(
                student, scores, LABELS, weights
            ),
            (student, SCORES.clone().requires_grad_()),
        )


class TestLatentTeacherLosses:
    def test_pulls_only_the_prediction_for_images(self) -> None:
        images, latents = (SCORES[each].clone().requires_grad_() for each in (0, 1))
        loss = latent_generation.latent_teacher_losses(images, latents).mean()
        loss.backward()
        target = SCORES[1].softmax(1)
        expected = (target * (target.log() - SCORES[0].log_softmax(1))).sum(1).mean()
        assert torch.allclose(loss, expected, rtol=1e-12)
        assert latents.grad is None
        assert torch.autograd.gradcheck(
            lambda given: latent_generation.latent_teacher_losses(given, SCORES[1]), images
        )


class TestLabels:
    def test_weights_of_a_label_that_nobody_has_are_even(self) -> None:
        weights = latent_generation.label_weights(torch.tensor([[0.0, 2.0], [0.0, 6.0]]))
        assert weights.tolist() == [[0.5, 0.5], [0.25, 0.75]]

    def test_prior_is_the_share_of_all_samples(self) -> None:
        prior = latent_generation.label_prior(torch.tensor([[3.0, 1.0], [0.0, 4.0]]))
        assert prior.tolist() == [0.375, 0.625]
        with pytest.raises(ValueError, match="no client counted a sample"):
            latent_generation.label_prior(torch.zeros(2, 3))

    def test_counts_are_capped_at_the_number_of_samples(self) -> None:
        counts = torch.tensor([[30.0, 10.0], [3.0, 1.0], [0.0, 0.0]])
        found = latent_generation.capped_counts(counts, torch.tensor([20, 4, 5]))
        assert found.tolist() == [[15.0, 5.0], [3.0, 1.0], [0.0, 0.0]]

    def test_are_drawn_in_proportion_to_the_prior(self) -> None:
        prior = torch.tensor([0.0, 2.0, 0.0, 6.0, 0.0])
        positions = torch.linspace(0, 1, 401)[:-1]
        drawn = latent_generation.labels_at(prior, positions)
        assert drawn.bincount(minlength=5).tolist() == [0, 100, 0, 300, 0]

    def test_are_drawn_for_many_clients_at_once(self) -> None:
        prior, positions = torch.rand(5), torch.rand(3, 8)
        together = torch.vmap(lambda at: latent_generation.labels_at(prior, at))(positions)
        alone = [latent_generation.labels_at(prior, at) for at in positions]
        assert torch.equal(together, torch.stack(alone))
