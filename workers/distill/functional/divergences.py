"""Divergences between softened outputs, whole and split at the true class.

All work on log-probabilities from log-sum-exp, so they and their gradients are finite for all
finite logits. Units are nats; none is multiplied by the squared temperature unless its docstring
says so.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Bool, Float, Int
from torch import Tensor

from workers.distill.functional.rows import rows

SMALLEST_SHARE = 1e-12


def softened_kl(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    *,
    temperature: float,
) -> Float[Tensor, " N"]:
    """Return KL(teacher || student) of each sample, both softened by `temperature`."""
    student = F.log_softmax(student_logits / temperature, dim=1)
    teacher = F.log_softmax(teacher_logits / temperature, dim=1)
    return (teacher.exp() * (teacher - student)).sum(1)


def scaled_kl(
    student_logits: Float[Tensor, "N C *S"],
    teacher_logits: Float[Tensor, "N C *S"],
    *,
    temperature: float,
    counted: Bool[Tensor, "N *S"] | Float[Tensor, "N *S"] | None = None,
) -> Float[Tensor, ""]:
    """Return temperature^2 * KL(teacher || student), averaged over images and positions.

    Units: nats times temperature squared, so that gradients keep their size (Hinton et al., 2015).
    `counted` says which images and positions are averaged, or what each of them counts; None counts
    all alike.
    """
    apart = softened_kl(rows(student_logits), rows(teacher_logits), temperature=temperature)
    return temperature**2 * (apart.mean() if counted is None else mean_of(apart, counted))


def binary_kl(
    student_logits: Float[Tensor, "*S"],
    teacher_logits: Float[Tensor, "*S"],
    *,
    temperature: float,
    focus: float,
) -> Float[Tensor, "*S"]:
    """Return temperature^2 * KL(teacher || student) of each sigmoid, focused where they differ.

    Each is multiplied by |difference of the probabilities|^focus, through which a gradient passes.
    Units as `scaled_kl`.
    """
    student, teacher = student_logits / temperature, teacher_logits / temperature
    shares = teacher.sigmoid()
    divergence = shares * (F.logsigmoid(teacher) - F.logsigmoid(student))
    divergence = divergence + (1 - shares) * (F.logsigmoid(-teacher) - F.logsigmoid(-student))
    if focus:
        # A root of 0 has no gradient that is a number.
        apart = (shares - student.sigmoid()).abs().clamp_min(SMALLEST_SHARE)
        divergence = divergence * apart.pow(focus)
    return temperature**2 * divergence


def mean_of(
    values: Float[Tensor, " R"], counted: Bool[Tensor, "N *S"] | Float[Tensor, "N *S"]
) -> Float[Tensor, ""]:
    """Return the mean of the values that are counted, or 0 without a gradient where none is.

    `counted` may also be what each value counts, 0 or more; the mean is then the weighted one.
    """
    # Multiplied, not selected: to select waits for the GPU.
    share = counted.flatten().to(values.dtype)
    total = share.sum()
    return (values * share).sum() / torch.where(total > 0, total, 1)


def channel_kl(
    student_maps: Float[Tensor, "N c *S"],
    teacher_maps: Float[Tensor, "N c *S"],
    *,
    temperature: float,
) -> Float[Tensor, ""]:
    """Return temperature^2 * KL(teacher || student) over positions, averaged over channels.

    Each channel of an image is softened into a distribution over positions. Units as `scaled_kl`.

    Source: Shu et al., ICCV 2021, arXiv:2011.13256 (CWD).
    """
    student, teacher = (each.flatten(2).flatten(0, 1) for each in (student_maps, teacher_maps))
    return scaled_kl(student, teacher, temperature=temperature)


def decoupled_kl(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    *,
    alpha: float,
    beta: float | Float[Tensor, " N"],
    temperature: float,
) -> Float[Tensor, " N"]:
    """Return alpha * TCKD + beta * NCKD of each sample (DKD); `beta` may be each sample's own.

    Units: nats times temperature squared.
    """
    target = target_kl(student_logits, teacher_logits, labels, temperature=temperature)
    others = non_target_kl(student_logits, teacher_logits, labels, temperature=temperature)
    return temperature**2 * (alpha * target + beta * others)


def target_kl(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    *,
    temperature: float,
) -> Float[Tensor, " N"]:
    """Return KL between [p_y, 1 - p_y] of teacher and student, for each sample."""
    student = _log_binary(student_logits / temperature, labels)
    teacher = _log_binary(teacher_logits / temperature, labels)
    return (teacher.exp() * (teacher - student)).sum(1)


def non_target_kl(
    student_logits: Float[Tensor, "N C"],
    teacher_logits: Float[Tensor, "N C"],
    labels: Int[Tensor, " N"],
    *,
    temperature: float,
) -> Float[Tensor, " N"]:
    """Return KL between the distributions over all classes but the true one, for each sample."""
    return softened_kl(
        non_target(student_logits, labels),
        non_target(teacher_logits, labels),
        temperature=temperature,
    )


def log_odds(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Return log(p_y / (1 - p_y)) of each sample's true class, in nats.

    It grows with p_y, and tells samples apart whose p_y rounds to 1.
    """
    return logits.gather(1, labels[:, None]).squeeze(1) - non_target(logits, labels).logsumexp(1)


def non_target(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N D"]:
    """Return the C - 1 logits of each sample without that of its true class, in order."""
    if logits.shape[1] < 2:
        raise ValueError("one class has no non-target class; at least 2 classes are needed")
    columns = torch.arange(logits.shape[1] - 1, device=logits.device).expand(len(labels), -1)
    return logits.gather(1, columns + (columns >= labels[:, None]))


def _log_binary(logits: Float[Tensor, "N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, "N two"]:
    # log(1 - p_y) through the log-sum-exp of the others: 1 - p_y itself would round to 0.
    everything = logits.logsumexp(1)
    target = logits.gather(1, labels[:, None]).squeeze(1) - everything
    others = non_target(logits, labels).logsumexp(1) - everything
    return torch.stack([target, others], dim=1)
