import torch

from tests.distill.federated import scenes


class TestFedEnsemble:
    def test_is_trained_as_fedavg_and_scored_by_mean_scores(self) -> None:
        ensemble, avg = (
            scenes.run(scenes.federation(name), 1) for name in ("fedensemble", "fedavg")
        )
        assert torch.equal(
            scenes.weights(ensemble.server.network), scenes.weights(avg.server.network)
        )
        split = ensemble._scoring.split
        assert split is not None
        scores = torch.stack(list(ensemble.clients.logits(split.every_image()).values())).mean(0)
        right = float((scores.argmax(1) == split.labels).double().mean())
        assert ensemble.finish_epoch(1, last=True)["federation/ensemble_accuracy"] == right
