import numpy as np
import pytest

from workers.distill.evaluation import embedding

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(60, 4)).astype(np.float32) * 2
LABELS = RANDOM.integers(0, 4, size=60)


class TestImagesToMap:
    def test_are_all_where_there_are_few(self) -> None:
        assert embedding.images_to_map(LABELS).tolist() == list(range(60))

    def test_are_of_ten_classes_where_there_are_many(self) -> None:
        labels = np.arange(5000) % 100
        chosen = embedding.images_to_map(labels)
        assert len(chosen) == embedding.MAP_IMAGES
        assert len(np.unique(labels[chosen])) == 10
        assert (np.diff(chosen) > 0).all()

    def test_are_the_same_every_time(self) -> None:
        labels = np.arange(2000) % 7
        first, second = (embedding.images_to_map(labels) for _ in range(2))
        assert np.array_equal(first, second)


class TestPCA:
    def test_keeps_distances_within_a_plane(self) -> None:
        flat = RANDOM.normal(size=(20, 2))
        basis, _ = np.linalg.qr(RANDOM.normal(size=(7, 7)))
        plane = embedding.pca(flat @ basis[:2])
        between = np.linalg.norm(plane.points[:, None] - plane.points[None], axis=-1)
        expected = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
        np.testing.assert_allclose(between, expected, atol=1e-9)
        assert sum(plane.shares) == pytest.approx(1.0)

    def test_of_a_single_feature_is_a_line(self) -> None:
        plane = embedding.pca(RANDOM.normal(size=(6, 1)))
        assert (plane.points[:, 1] == 0).all()

    def test_of_equal_features_is_one_place(self) -> None:
        plane = embedding.pca(np.ones((6, 3)))
        assert (plane.points == 0).all()
        assert plane.shares == (0, 0)


class TestTSNE:
    def test_keeps_groups_together_and_repeats_itself(self) -> None:
        groups = np.repeat(10 * np.eye(3), 8, axis=0) + 0.1 * RANDOM.normal(size=(24, 3))
        first, second = (embedding.tsne(groups, steps=400) for _ in range(2))
        assert np.array_equal(first, second)
        apart = np.linalg.norm(first[:, None] - first[None], axis=-1)
        np.fill_diagonal(apart, np.inf)
        assert (apart.argmin(1) // 8 == np.arange(24) // 8).all()

    @pytest.mark.parametrize("count", [embedding.FEWEST_FOR_MAP, 7])
    def test_takes_few_images_even_if_they_are_equal(self, count: int) -> None:
        assert np.isfinite(embedding.tsne(np.ones((count, 4)), steps=250)).all()
