"""Losses of a generator of latents that learns from clients' classifiers, and of its use.

The server holds no data: its generator makes latents of a class that the clients' classifiers
agree on, and the clients train on them.

Source: Zhu et al., ICML 2021, arXiv 2105.10056 (FedGen).
Checked against: zhuangdizhu/FedGen, FLAlgorithms/servers/serverpFedGen.py and
FLAlgorithms/users/userpFedGen.py, by way of values computed independently.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Float, Int
from torch import Tensor

from workers.distill.functional.federated import averaging, soft_targets


def diversity_loss(noise: Float[Tensor, "N E"], latents: Float[Tensor, "N D"]) -> Float[Tensor, ""]:
    """Return exp(-mean over pairs of noise distance * latent distance), in (0, 1].

    The noise distance is the mean squared difference, the latent distance the mean absolute one,
    over all N * N ordered pairs. 1 means that all latents are the same.
    """
    apart = (noise[:, None] - noise).square().mean(2) * (latents[:, None] - latents).abs().mean(2)
    return (-apart.mean()).exp()


def label_weights(counts: Float[Tensor, "K C"]) -> Float[Tensor, "C K"]:
    """Return the share of each client in the samples of a label; each row has sum 1.

    A label that no client has is shared evenly.
    """
    whole = counts.sum(0)
    shares = torch.where(whole > 0, counts / torch.where(whole > 0, whole, 1.0), 1 / len(counts))
    return shares.T


def label_prior(counts: Float[Tensor, "K C"]) -> Float[Tensor, " C"]:
    """Return the share of each label in the samples of all clients.

    Raises `ValueError` where there is no sample.
    """
    whole = counts.sum(0)
    if not float(whole.sum()):
        raise ValueError("no client counted a sample; the labels have no distribution")
    return whole / whole.sum()


def capped_counts(counts: Float[Tensor, "K C"], samples: Int[Tensor, " K"]) -> Float[Tensor, "K C"]:
    """Return label counts scaled down so that a client's sum is at most its number of samples.

    Clients count for themselves; one that boasts would own the generator.
    """
    whole = counts.sum(1)
    allowed = samples.to(counts.dtype)
    return counts * torch.where(whole > allowed, allowed / whole.clamp_min(1e-12), 1.0)[:, None]


def weighted_teacher_losses(
    scores: Float[Tensor, "K N C"], labels: Int[Tensor, " N"], weights: Float[Tensor, "C K"]
) -> Float[Tensor, " K"]:
    """Return each client's cross-entropy, each sample weighted by the client's share of its label.

    Means over samples. The released code minimises their sum, not `mean_score_loss`.
    """
    clients, samples, classes = scores.shape
    flat = F.cross_entropy(
        scores.reshape(-1, classes), labels.repeat(clients), reduction="none"
    ).view(clients, samples)
    return (flat * weights[labels].T).mean(1)


def mean_score_loss(scores: Float[Tensor, "K N C"], labels: Int[Tensor, " N"]) -> Float[Tensor, ""]:
    """Return the cross-entropy of the clients' mean scores: equation 4 of the paper."""
    return F.cross_entropy(averaging.mean_scores(scores), labels)


def student_disagreement(
    student_scores: Float[Tensor, "N C"],
    scores: Float[Tensor, "K N C"],
    labels: Int[Tensor, " N"],
    weights: Float[Tensor, "C K"],
) -> Float[Tensor, ""]:
    """Return the mean KL(softmax(label-weighted sum of the clients' scores) || student).

    A generator that maximises it looks for latents on which the student is wrong. The released code
    has it with weight 0.
    """
    teacher = torch.einsum("nk,knc->nc", weights[labels], scores)
    return soft_targets.kl_divergences(student_scores, teacher.softmax(1)).mean()


def latent_teacher_losses(
    scores: Float[Tensor, "N C"], latent_scores: Float[Tensor, "N C"]
) -> Float[Tensor, " N"]:
    """Return each KL(softmax(latent_scores) || softmax(scores)); the first has no gradient.

    It pulls the prediction for real images towards that for generated latents of the same label.
    The released code has it, the paper does not.
    """
    return soft_targets.kl_divergences(scores, latent_scores.detach().softmax(1))


def labels_at(prior: Float[Tensor, " C"], positions: Float[Tensor, " N"]) -> Int[Tensor, " N"]:
    """Return the labels at positions in [0, 1) of the prior's cumulative distribution.

    Even positions give labels in proportion to the prior, which need not have the sum 1; a label of
    prior 0 is never drawn where another has more. Drawn so, labels need no random numbers here.
    """
    reached = prior.cumsum(0)
    reached = reached / reached[-1].clamp_min(torch.finfo(prior.dtype).tiny)
    labels = (positions[:, None] >= reached).sum(1)
    return labels.clamp_max(len(prior) - 1)
