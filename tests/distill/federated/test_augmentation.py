import pytest
import torch

from tests.distill.federated.scenes import Parties, gather
from workers.distill import errors
from workers.distill.config.federation import Augmentation
from workers.distill.federated import augmentation

LABELS = ([0] * 9 + [1] * 2, [1] * 8 + [2], [2] * 7 + [0] * 2)
QUICK = {"oversampled": 40, "steps": 2, "seeds_per_label": 2, "redundant_labels": 0}


def parties_of(name: str = "faug") -> Parties:
    return gather(name, LABELS)


def augmented(parties: Parties, **settings: object) -> augmentation.Augmented:
    given = Augmentation.model_validate({"generator": "gaussian", **QUICK, **settings})
    return augmentation.augment(parties.clients, parties.shared, given)


class TestAugment:
    def test_fills_up_scarce_labels_to_the_largest_count(self) -> None:
        parties = parties_of()
        done = augmented(parties)
        # Nobody has label 3. Client 0 lacks 1 and 2; client 1 lacks 0 and 2; client 2 lacks 0, 1.
        assert done.facts["labels_without_seed"] == [3]
        counts = [client.label_counts.tolist() for client in parties.clients]
        assert counts == [[9, 9, 9, 0], [8, 8, 8, 0], [7, 7, 7, 0]]
        facts = done.facts["clients"]["client-000"]
        assert facts["target_labels"] == [1, 2, 3]
        assert facts["generated_images"] == 7 + 9
        assert facts["seed_images"] == 2

    def test_keeps_own_images_and_adds_images_of_the_label(self) -> None:
        parties = parties_of()
        before = parties.clients[0].batches.images_of(torch.arange(11))
        augmented(parties, oversampled=400)
        client = parties.clients[0]
        assert torch.equal(client.batches.images_of(torch.arange(11)), before)
        labels = client.batches.labels
        made = client.batches.images_of(torch.arange(11, client.samples)).float()
        shown = made[labels[11:] == 2].mean(0)[0]
        # Label 2 is bright below and to the left.
        assert float(shown[2:, :2].mean()) > float(shown[:2, 2:].mean()) + 20

    def test_tells_what_clients_reveal(self) -> None:
        none = augmented(parties_of()).facts["clients"]["client-000"]
        assert none["redundant_labels"] == []
        assert none["device_server_leakage"] == 1
        some = augmented(parties_of(), redundant_labels=1).facts["clients"]["client-000"]
        assert some["redundant_labels"] == [0]
        assert some["device_server_leakage"] == pytest.approx(3 / 4)
        assert some["inter_device_leakage"] == pytest.approx(3 / 4)

    def test_sends_seeds_up_and_one_generator_down(self) -> None:
        done = augmented(parties_of())
        seeds = done.seeds["client-000"].tensors
        # It has two images of label 1, of which it lacks more, and none of 2 and 3.
        assert seeds["seed_labels"].tolist() == [1, 1]
        assert seeds["seeds"].shape == (2, 1, 4, 4)
        # Moments of 4 labels in float32, of 16 pixels.
        assert done.generator.payload_bytes == 2 * 4 * 16 * 4

    def test_tells_that_images_were_sent_and_what_is_missing(self) -> None:
        told = dict(augmentation.remarks(augmented(parties_of(), redundant_labels=2).facts))
        assert "sent 11 of their images" in told["images_sent"]
        assert "nobody sent an image of label 3" in told["labels_without_seed"]
        assert "3 clients hold too few other labels" in told["less_camouflage"]

    def test_gives_the_same_images_again_and_those_of_a_checkpoint(self) -> None:
        first, second = parties_of(), parties_of()
        for parties in (first, second):
            augmented(parties, generator="gan")
        resumed = parties_of().clients[0]
        resumed.load_state_dict(first.clients[0].state_dict())
        for other in (second.clients[0], resumed):
            every = torch.arange(other.samples)
            assert torch.equal(
                other.batches.images_of(every), first.clients[0].batches.images_of(every)
            )
            assert torch.equal(other.batches.labels, first.clients[0].batches.labels)

    def test_learns_images_by_label_with_the_gan(self) -> None:
        parties = parties_of()
        augmented(parties, generator="gan", steps=150, learning_rate=2e-3, seeds_per_label=5)
        client = parties.clients[0]
        made = client.batches.images_of(torch.arange(11, client.samples)).float().mean((1, 2, 3))
        assert float(made.std()) > 0
        images = client.batches.images_of(torch.arange(client.samples)).float()
        shown = images[11:][client.batches.labels[11:] == 2].mean(0)[0]
        assert float(shown[2:, :2].mean()) > float(shown[:2].mean()) + 20

    def test_refuses_where_nobody_sends_a_seed(self) -> None:
        parties = gather("faug", [[0, 0, 1, 1], [2, 3, 2, 3]])
        with pytest.raises(errors.BadRecipe, match="no client lacks a label of which it has"):
            augmented(parties)

    def test_refuses_more_target_labels_than_there_are(self) -> None:
        with pytest.raises(errors.BadRecipe, match="target_labels is 5, and there are 4 labels"):
            augmented(parties_of(), target_labels=5)

    def test_stands_before_another_method_too(self) -> None:
        parties = parties_of("fd")
        augmented(parties)
        parties.run(1)
        assert parties.replies[0].tensors["label_counts"].tolist() == [9, 9, 9, 0]
