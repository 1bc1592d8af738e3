import pytest
import torch

from workers.distill.functional import embedding_metrics as metrics

# Angles in degrees; lengths differ, since only directions count.
REFERENCES = torch.tensor([[1.0, 0.0], [0.0, 3.0], [0.0, 0.1], [-2.0, 0.0]])
LABELS = torch.tensor([2, 0, 0, 1])


class TestNearestNeighbours:
    def test_the_nearest_weighs_more_than_two_far_ones(self) -> None:
        queries = torch.tensor([[5.0, 0.1], [0.1, 5.0], [-5.0, 0.1]])
        found = metrics.knn_predict(queries, REFERENCES, LABELS, classes=3)
        assert found.tolist() == [2, 0, 1]

    def test_votes_of_equal_similarity_are_counted(self) -> None:
        # At 45 degrees one reference of class 2 and two of class 0 are as near.
        found = metrics.knn_predict(torch.tensor([[1.0, 1.0]]), REFERENCES, LABELS, classes=3)
        assert found.tolist() == [0]

    def test_no_image_is_its_own_neighbour(self) -> None:
        rows = torch.tensor([[1.0, 0.0], [1.0, 0.05], [0.0, 1.0], [0.05, 1.0]])
        labels = torch.tensor([0, 1, 2, 2])
        found = metrics.knn_predict(rows, rows, labels, classes=3, leaves_self_out=True)
        assert found.tolist() == [1, 0, 2, 2]

    def test_no_more_than_twenty_neighbours_vote(self) -> None:
        near, far = torch.tensor([[1.0, 0.3]]), torch.tensor([[1.0, 0.4]])
        rows = torch.cat([near.expand(20, 2), far.expand(500, 2)])
        labels = torch.tensor([1] * 20 + [0] * 500)
        found = metrics.knn_predict(torch.tensor([[1.0, 0.0]]), rows, labels, classes=2)
        assert found.tolist() == [1]

    def test_is_the_same_in_pieces(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
        labels = torch.arange(50) % 3

        def found() -> list[int]:
            return metrics.knn_predict(rows, rows, labels, classes=3, leaves_self_out=True).tolist()

        whole = found()
        monkeypatch.setattr(metrics, "CHUNK", 7)
        assert found() == whole


class TestSharedNeighbours:
    def test_is_one_of_a_rotated_and_scaled_space(self) -> None:
        rows = torch.randn(60, 2, generator=torch.Generator().manual_seed(0))
        turned = 3 * rows @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
        assert metrics.shared_neighbours(rows, turned) == 1

    def test_is_what_chance_gives_of_unrelated_spaces(self) -> None:
        generator = torch.Generator().manual_seed(0)
        one, other = (torch.randn(400, 8, generator=generator) for _ in range(2))
        assert float(metrics.shared_neighbours(one, other)) == pytest.approx(20 / 399, abs=0.01)

    def test_is_no_certainty_of_few_images(self) -> None:
        # With all others as neighbours, any two spaces would agree.
        one = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]])
        assert float(metrics.shared_neighbours(one, one[[0, 2, 1, 3]])) < 1


class TestLinearProbe:
    def test_separates_what_a_line_separates_and_neighbours_do_not(self) -> None:
        generator = torch.Generator().manual_seed(0)
        rows = torch.randn(300, 3, generator=generator) * torch.tensor([0.1, 10.0, 10.0])
        labels = (rows[:, 0] > 0).long()
        given = (rows[200:], rows[:200], labels[:200])
        probed = metrics.linear_probe_predict(*given, classes=2)
        assert float((probed == labels[200:]).float().mean()) > 0.95
        assert float((metrics.knn_predict(*given, classes=2) == labels[200:]).float().mean()) < 0.8

    def test_learns_in_inference_mode_without_drawing_numbers(self) -> None:
        rows, labels = REFERENCES, torch.tensor([0, 1, 1, 2])
        before = torch.get_rng_state()
        with torch.inference_mode():
            found = metrics.linear_probe_predict(rows.clone(), rows.clone(), labels, classes=3)
        assert found.tolist() == [0, 1, 1, 2]
        assert torch.equal(torch.get_rng_state(), before)

    def test_of_one_reference_gives_its_class(self) -> None:
        references, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([2])
        found = metrics.linear_probe_predict(torch.randn(4, 2), references, labels, classes=3)
        assert found.tolist() == [2, 2, 2, 2]

    def test_takes_evenly_spread_references_where_they_are_too_many(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        references, labels = torch.randn(9, 2), torch.arange(9) % 3
        monkeypatch.setattr(metrics, "PROBE_WORK", 5 * 2 * 3)
        queries, rows = torch.randn(20, 2), [0, 2, 4, 6, 8]
        found, expected = (
            metrics.linear_probe_predict(queries, bank, its, classes=3)
            for bank, its in ((references, labels), (references[rows], labels[rows]))
        )
        assert torch.equal(found, expected)
