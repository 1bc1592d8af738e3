"""Disagreement of student and teacher, and the balance of the teacher's predicted classes.

Adversarial synthesis generates images on which the student is wrong. The functions return values
that grow with the disagreement; a method chooses the sign. Means are over images, and over
positions in dense tasks.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from workers.distill.functional.divergences import softened_kl
from workers.distill.functional.rows import rows

LEAST_SHARE = 1e-12
"""Lower bound of a class's mean probability, as 0 has no logarithm."""


def agreement(
    student_logits: Float[Tensor, "N C *S"], teacher_logits: Float[Tensor, "N C *S"]
) -> Float[Tensor, " R"]:
    """Return 1 for each row for which both networks predict the same class, else 0."""
    student, teacher = rows(student_logits), rows(teacher_logits)
    return (student.argmax(1) == teacher.argmax(1)).to(student.dtype)


def discrepancy(
    student_logits: Float[Tensor, "N C *S"],
    teacher_logits: Float[Tensor, "N C *S"],
    *,
    masked: bool,
) -> Float[Tensor, ""]:
    """Return the mean of KL(teacher || student) over all rows, at temperature 1.

    `masked` counts rows with different predictions as 0 and still divides by all rows (Fang et al.,
    IJCAI 2021, arXiv 2105.08584).
    """
    apart = softened_kl(rows(student_logits), rows(teacher_logits), temperature=1.0)
    return (apart * agreement(student_logits, teacher_logits) if masked else apart).mean()


def mean_difference(
    student_logits: Float[Tensor, "N C *S"], teacher_logits: Float[Tensor, "N C *S"]
) -> Float[Tensor, ""]:
    """Return |student - teacher|, averaged over all logits (Fang et al., arXiv 1912.11006)."""
    return (student_logits - teacher_logits).abs().mean()


def clamped_js(
    student_logits: Float[Tensor, "N C *S"],
    teacher_logits: Float[Tensor, "N C *S"],
    *,
    temperature: float = 3.0,
) -> Float[Tensor, ""]:
    """Return the mean over rows of [KL(m || student) + KL(m || teacher)] / 2, m their mean.

    All probabilities are clamped to 0.01..0.99 after the mean is taken, and not normalised again,
    as in the authors' code (Yin et al., CVPR 2020, arXiv 1912.08795, adaptive inversion). With many
    classes the result may thus exceed the bound of a Jensen-Shannon divergence.
    """
    student = (rows(student_logits) / temperature).softmax(1)
    teacher = (rows(teacher_logits) / temperature).softmax(1)
    middle = ((student + teacher) / 2).clamp(0.01, 0.99)
    apart = [
        (middle * (middle.log() - each.clamp(0.01, 0.99).log())).sum(1)
        for each in (student, teacher)
    ]
    return torch.stack(apart).mean()


def class_balance(logits: Float[Tensor, "N C *S"], *, base_ten: bool = False) -> Float[Tensor, ""]:
    """Return sum over classes of p log p, p the mean probability over rows; smallest when uniform.

    Source: Chen et al., ICCV 2019, arXiv 1904.01186 (DAFL, information entropy loss), whose code
    takes the logarithm to base ten.
    """
    shares = rows(logits).softmax(1).mean(0).clamp_min(LEAST_SHARE)
    return (shares * (shares.log10() if base_ten else shares.log())).sum()
