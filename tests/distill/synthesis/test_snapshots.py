import io
import math

import pytest
import torch

from workers.distill.functional.priorities import Priority
from workers.distill.synthesis import snapshots
from workers.distill.synthesis.replay_buffer import ReplayBuffer

CLASSES = 3
PRIORITY = Priority(alpha=1.0, beta=0.5, epsilon=0.0)


def a_buffer(classes: list[int], *, side: int = 4, number: int = CLASSES) -> ReplayBuffer:
    """Return a buffer of one image for each class in the list, each made by a call of its own.

    The n-th image is all n / 255; the teacher gives its class nine tenths.
    """
    replay = ReplayBuffer(
        len(classes),
        image_shape=(3, side, side),
        classes=number,
        caches_logits=False,
        device=torch.device("cpu"),
    )
    for place, label in enumerate(classes):
        shares = torch.full((1, number), 0.1 / (number - 1))
        shares[0, label] = 0.9
        image = torch.full((1, 3, side, side), place / 255)
        replay.insert(image, torch.tensor([(label + 1) % number]), shares.log(), call=place + 1)
    return replay


def a_snapshot(epoch: int) -> snapshots.Snapshot:
    return snapshots.take(a_buffer([0, 1]), epoch=epoch, call=epoch, priority=None)


class TestWanted:
    @pytest.mark.parametrize("epochs", [1, 2, 7, 8, 9, 100, 1_000_000])
    def test_has_first_and_last_and_never_more_than_fit(self, epochs: int) -> None:
        expected = snapshots.wanted(epochs)
        assert {1, epochs} <= expected <= set(range(1, epochs + 1))
        assert len(expected) <= snapshots.MOST_SNAPSHOTS

    def test_is_even_on_a_log_scale(self) -> None:
        assert snapshots.wanted(2**14) == {4**power for power in range(8)}


class TestGallery:
    def test_wants_what_is_wanted(self) -> None:
        shelf = snapshots.SnapshotKeeper(100)
        assert {epoch for epoch in range(1, 101) if shelf.wants(epoch)} == snapshots.wanted(100)

    def test_keeps_one_snapshot_of_an_epoch_in_their_order(self) -> None:
        shelf = snapshots.SnapshotKeeper(100)
        again = a_snapshot(2)
        for snapshot in (a_snapshot(2), a_snapshot(1), again):
            shelf.add(snapshot)
        assert [kept.epoch for kept in shelf.snapshots] == [1, 2]
        assert shelf.snapshots[1] is again

    def test_takes_the_last_epoch_of_a_training_that_ended_early(self) -> None:
        shelf = snapshots.SnapshotKeeper(2**14)
        for epoch in sorted(snapshots.wanted(2**14))[:-1]:
            shelf.add(a_snapshot(epoch))
        shelf.add(a_snapshot(5000))
        assert len(shelf.snapshots) == snapshots.MOST_SNAPSHOTS
        with pytest.raises(ValueError, match="full"):
            shelf.add(a_snapshot(5001))

    def test_goes_on_from_a_checkpoint(self) -> None:
        shelf, other = snapshots.SnapshotKeeper(10), snapshots.SnapshotKeeper(10)
        shelf.add(a_snapshot(1))
        shelf.add(a_snapshot(10))
        file = io.BytesIO()
        torch.save(shelf.state(), file)
        file.seek(0)
        other.restore(torch.load(file, weights_only=True))
        assert [kept.epoch for kept in other.snapshots] == [1, 10]
        for mine, theirs in zip(shelf.snapshots, other.snapshots, strict=True):
            for name, value in vars(mine).items():
                torch.testing.assert_close(vars(theirs)[name], value, rtol=0, atol=0)


class TestTake:
    def test_shows_the_newest_images_of_each_class_that_is_present(self) -> None:
        replay = a_buffer([0] * 10 + [2] * 3)
        snapshot = snapshots.take(replay, epoch=4, call=13, priority=None)
        assert snapshot.classes.tolist() == [0] * 8 + [2] * 3
        assert snapshot.targets.tolist() == [1] * 8 + [0] * 3
        assert snapshot.images[:, 0, 0, 0].tolist() == [*range(9, 1, -1), 12, 11, 10]
        assert (snapshot.epoch, snapshot.call, snapshot.count) == (4, 13, 13)

    def test_counts_all_images(self) -> None:
        snapshot = snapshots.take(a_buffer([0] * 10 + [2] * 3), epoch=1, call=13, priority=None)
        assert snapshot.class_counts.tolist() == [10.0, 0.0, 3.0]
        # All have a confidence of nine tenths, a bin's edge as far as float32 can tell.
        assert int(snapshot.difficulty[1:3].sum()) == int(snapshot.difficulty.sum()) == 13

    def test_sorts_what_is_hard_to_the_right(self) -> None:
        replay = a_buffer([0])
        replay.confidence[:] = 1.0
        assert snapshots.take(replay, epoch=1, call=1, priority=None).difficulty[0] == 1
        replay.confidence[:] = 0.02
        assert snapshots.take(replay, epoch=1, call=1, priority=None).difficulty[-1] == 1

    def test_of_an_even_draw_shows_ones(self) -> None:
        snapshot = snapshots.take(a_buffer([0, 1, 2]), epoch=1, call=3, priority=None)
        assert snapshot.is_even
        assert snapshot.effective == 1.0

    def test_of_priorities_shows_how_often_each_image_is_drawn(self) -> None:
        replay = a_buffer([0, 1, 2])
        replay.refresh(torch.tensor([1.0, 5.0, 4.0]), PRIORITY)
        snapshot = snapshots.take(replay, epoch=1, call=3, priority=PRIORITY)
        assert not snapshot.is_even
        ends = [float(snapshot.shares[place]) for place in (0, 50, 100)]
        assert ends == pytest.approx([0.3, 1.2, 1.5], rel=1e-6)
        assert snapshot.effective == pytest.approx(1 / (3 * (0.01 + 0.25 + 0.16)), rel=1e-6)
        assert [float(snapshot.kl[place]) for place in (0, 50, 100)] == [1.0, 4.0, 5.0]

    def test_of_dense_tasks_counts_classes_by_their_pixels(self) -> None:
        replay = ReplayBuffer(
            2,
            image_shape=(1, 2, 2),
            classes=2,
            caches_logits=False,
            device=torch.device("cpu"),
        )
        logits = torch.tensor([[[[2.0, 2.0], [2.0, 0.0]], [[0.0, 0.0], [0.0, 2.0]]]])
        replay.insert(torch.zeros(1, 1, 2, 2), torch.zeros(1, dtype=torch.int64), logits, call=1)
        snapshot = snapshots.take(replay, epoch=1, call=1, priority=None)
        assert snapshot.class_counts.tolist() == [0.75, 0.25]
        assert snapshot.classes.tolist() == [0]

    def test_reduces_large_images(self) -> None:
        replay = a_buffer([0] * 3, side=2 * snapshots.LARGEST_SIDE)
        replay.images[2, :, ::2] = 100
        snapshot = snapshots.take(replay, epoch=1, call=3, priority=None)
        assert snapshot.images.shape == (3, 3, snapshots.LARGEST_SIDE, snapshots.LARGEST_SIDE)
        assert bool((snapshot.images[0] == 51).all())  # the mean of 100 and 2
        assert bool((snapshot.images[1] == 1).all())

    def test_of_nothing_is_refused(self) -> None:
        replay = ReplayBuffer(
            2, image_shape=(1, 2, 2), classes=2, caches_logits=False, device=torch.device("cpu")
        )
        with pytest.raises(ValueError, match="empty buffer has no snapshot"):
            snapshots.take(replay, epoch=1, call=1, priority=None)
        assert snapshots.numbers(replay, None) == {"buffer/images": 0.0}


class TestShownClasses:
    def test_are_all_of_a_few(self) -> None:
        assert snapshots.shown_classes([4, 1, 2], 10) == [1, 2, 4]

    def test_are_evenly_spaced_of_many(self) -> None:
        classes = snapshots.shown_classes(range(1000), 1000)
        assert len(classes) == snapshots.MOST_CLASSES
        assert (classes[0], classes[-1]) == (0, 999)

    def test_stay_the_same_while_they_are_there(self) -> None:
        whole = snapshots.shown_classes(range(1000), 1000)
        fewer = snapshots.shown_classes(
            [number for number in range(1000) if number != whole[3]], 1000
        )
        assert set(whole) - {whole[3]} < set(fewer)
        assert len(fewer) == snapshots.MOST_CLASSES


class TestNumbers:
    def test_tell_of_the_buffer(self) -> None:
        replay = a_buffer([0, 0, 1, 1])
        replay.refresh(torch.tensor([0.0, 0.0, 1.0, 3.0]), PRIORITY)
        numbers = snapshots.numbers(replay, PRIORITY)
        assert numbers == pytest.approx(
            {
                "buffer/images": 4.0,
                "buffer/classes": 2.0,
                "buffer/class_entropy": math.log(2) / math.log(3),
                "buffer/confidence": 0.9,
                "buffer/kl": 1.0,
                "buffer/effective_share": 1 / (4 * (0.0625 + 0.5625)),
            },
            rel=1e-6,
        )

    def test_say_nothing_of_divergence_where_it_is_not_asked_for(self) -> None:
        numbers = snapshots.numbers(a_buffer([0, 1, 2]), None)
        assert "buffer/kl" not in numbers
        assert numbers["buffer/effective_share"] == 1.0
        assert numbers["buffer/class_entropy"] == pytest.approx(1.0, rel=1e-6)
