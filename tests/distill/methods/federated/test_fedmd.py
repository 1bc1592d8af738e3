import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.federated.scenes import gather
from workers.distill.networks.interface import Features

SCORES = torch.tensor([[1.0, 0.0, -1.0], [0.5, 0.5, 0.0]], dtype=torch.float64)
TARGETS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.5]], dtype=torch.float64)
LOSSES = {
    # (1 + 0 + 1) / 3 and (0.5 + 0.5 + 0.5) / 3.
    "l1": (2 / 3 + 1.5 / 3) / 2,
    # (1 + 0 + 1) / 3 and (0.25 + 0.25 + 0.25) / 3.
    "l2": (2 / 3 + 0.75 / 3) / 2,
    "kl": float(F.kl_div(SCORES.log_softmax(1), TARGETS.softmax(1), reduction="batchmean")),
}


class TestDigest:
    @pytest.mark.parametrize("loss", sorted(LOSSES))
    def test_equals_its_formula_and_has_the_gradient_of_its_value(self, loss: str) -> None:
        method = gather("fedmd", loss=loss).method

        def digest(scores: torch.Tensor) -> torch.Tensor:
            features = Features(scores, scores)
            term: torch.Tensor = method.adapt_terms(features, TARGETS, None)["digest"]
            return term

        assert float(digest(SCORES)) == pytest.approx(LOSSES[loss], rel=1e-9)
        assert torch.autograd.gradcheck(digest, SCORES.clone().requires_grad_())

    def test_brings_clients_of_unlike_networks_nearer_to_the_mean(self) -> None:
        parties = gather("fedmd", widths=[(8, 6), (5,), (7, 4, 3)], digest_epochs=20)
        parties.run(1)
        targets = parties.consensus.tensors["scores"]
        open_set = parties.shared.open_set
        assert open_set is not None
        for client, reply in zip(parties.clients, parties.replies, strict=True):
            before = (reply.tensors["scores"] - targets).abs().mean()
            after = (client.predict(open_set.images) - targets).abs().mean()
            assert float(after) < 0.7 * float(before)


class TestAggregate:
    def test_is_the_mean_of_the_scores(self) -> None:
        parties = gather("fedmd")
        parties.run(1)
        rows = torch.stack([reply.tensors["scores"] for reply in parties.replies])
        assert torch.allclose(parties.consensus.tensors["scores"], rows.mean(0), rtol=1e-6)
        assert parties.replies[0].kinds == ("scores",)
