import torch

from workers.distill.functional import class_queues

CLASSES = torch.tensor([[0, 0, 0, 2, -1], [2, 2, 2, 2, 2]])


class TestClassQueues:
    def test_the_newest_take_the_places_of_the_oldest(self) -> None:
        queues = class_queues.ClassQueues(classes=2, length=3, width=2)
        noise = queues.vectors.clone()
        assert torch.allclose(noise.norm(dim=2), torch.ones(2, 3))
        rows = torch.tensor([[2.0, 0.0], [0.0, 3.0], [3.0, 4.0], [-1.0, 0.0]])
        queues.push(rows[:2], torch.tensor([1, 1]))
        queues.push(rows[2:], torch.tensor([1, 1]))
        assert torch.equal(queues.vectors[0], noise[0])
        assert torch.allclose(
            queues.vectors[1], torch.tensor([[-1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
        )
        assert queues.oldest.tolist() == [0, 1]

    def test_of_too_many_the_last_ones_stay(self) -> None:
        queues = class_queues.ClassQueues(classes=1, length=2, width=1)
        queues.push(torch.tensor([[1.0], [1.0], [-1.0]]), torch.zeros(3, dtype=torch.int64))
        assert sorted(queues.vectors.flatten().tolist()) == [-1.0, 1.0]
        assert queues.oldest.tolist() == [1]

    def test_draws_as_many_of_each_class_and_at_most_all(self) -> None:
        queues = class_queues.ClassQueues(classes=2, length=3, width=4)
        drawn = queues.draw(2)
        assert drawn.shape == (4, 4)
        for row in drawn[:2]:
            assert (queues.vectors[0] == row).all(1).any()
        assert queues.draw(9).shape == (6, 4)


class TestRegionMeans:
    def test_are_those_of_the_classes_that_an_image_has(self) -> None:
        features = torch.arange(20.0).view(2, 5, 2)
        means, classes = class_queues.region_means(features, CLASSES, 3)
        assert classes.tolist() == [0, 2, 2]
        assert means.tolist() == [[2.0, 3.0], [6.0, 7.0], [14.0, 15.0]]


class TestSomeOfEach:
    def test_takes_at_most_so_many_of_a_class_in_an_image(self) -> None:
        seen = torch.zeros_like(CLASSES)
        for _ in range(20):
            chosen = class_queues.some_of_each(CLASSES, 3, most=2)
            assert chosen.sum(1).tolist() == [3, 2]
            assert chosen[0, 3]
            seen += chosen
        assert not seen[0, 4]
        assert (seen.flatten()[:4] > 0).all()
