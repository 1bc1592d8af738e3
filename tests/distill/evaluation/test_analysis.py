import numpy as np
import pytest
import torch
from sklearn import calibration, metrics

from workers.distill.evaluation import analysis, evaluate

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(60, 4)).astype(np.float32) * 2
LABELS = RANDOM.integers(0, 4, size=60)


class TestConfusion:
    def test_equals_another_librarys(self) -> None:
        expected = metrics.confusion_matrix(LABELS, LOGITS.argmax(1), labels=range(4))
        assert np.array_equal(analysis.confusion(LOGITS, LABELS), expected)

    def test_has_a_row_for_a_class_without_images(self) -> None:
        counts = analysis.confusion(LOGITS[:3], np.zeros(3, dtype=np.int64))
        assert counts.shape == (4, 4)
        assert counts[1:].sum() == 0


class TestCorrelation:
    def test_equals_numpys(self) -> None:
        expected = np.corrcoef(LOGITS, rowvar=False)
        np.testing.assert_allclose(analysis.correlation(LOGITS), expected, rtol=1e-6)

    def test_of_a_logit_that_never_changes_is_unknown(self) -> None:
        logits = LOGITS.copy()
        logits[:, 1] = 3.0
        found = analysis.correlation(logits)
        assert np.isnan(found[1]).all()
        assert np.isnan(found[:, 1]).all()
        assert np.isfinite(found[np.ix_([0, 2, 3], [0, 2, 3])]).all()

    def test_ignores_scale_and_shift_of_a_class(self) -> None:
        changed = LOGITS * np.array([1, 2, 3, 4]) + np.array([5, 6, 7, 8])
        np.testing.assert_allclose(
            analysis.correlation(changed.astype(np.float32)),
            analysis.correlation(LOGITS),
            atol=1e-5,
        )


class TestReliability:
    def test_has_the_error_that_is_reported_as_a_score(self) -> None:
        found = analysis.reliability(LOGITS, LABELS)
        probabilities = torch.from_numpy(LOGITS).double().softmax(1).numpy()
        right, sure = calibration.calibration_curve(
            LOGITS.argmax(1) == LABELS, probabilities.max(1), n_bins=analysis.BINS
        )  # of the bins that are not empty
        counts = found.counts[found.counts > 0]
        assert found.counts.sum() == 60
        assert found.error == pytest.approx((abs(right - sure) * counts).sum() / 60, rel=1e-9)
        scores = evaluate.scores(torch.from_numpy(LOGITS), torch.from_numpy(LABELS))
        assert scores["ece"] == found.error

    def test_of_a_network_that_is_always_sure_and_right_is_perfect(self) -> None:
        logits = 1e4 * np.eye(4, dtype=np.float32)
        found = analysis.reliability(logits, np.arange(4))
        assert found.counts[-1] == 4
        assert (found.confidence[-1], found.accuracy[-1], found.error) == (1, 1, 0)


class TestImagesToMap:
    def test_are_all_where_there_are_few(self) -> None:
        assert analysis.images_to_map(LABELS).tolist() == list(range(60))

    def test_are_of_ten_classes_where_there_are_many(self) -> None:
        labels = np.arange(5000) % 100
        chosen = analysis.images_to_map(labels)
        assert len(chosen) == analysis.MAP_IMAGES
        assert len(np.unique(labels[chosen])) == 10
        assert (np.diff(chosen) > 0).all()

    def test_are_the_same_every_time(self) -> None:
        labels = np.arange(2000) % 7
        first, second = (analysis.images_to_map(labels) for _ in range(2))
        assert np.array_equal(first, second)


class TestPCA:
    def test_keeps_distances_within_a_plane(self) -> None:
        flat = RANDOM.normal(size=(20, 2))
        basis, _ = np.linalg.qr(RANDOM.normal(size=(7, 7)))
        plane = analysis.pca(flat @ basis[:2])
        between = np.linalg.norm(plane.points[:, None] - plane.points[None], axis=-1)
        expected = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
        np.testing.assert_allclose(between, expected, atol=1e-9)
        assert sum(plane.shares) == pytest.approx(1.0)

    def test_of_a_single_feature_is_a_line(self) -> None:
        plane = analysis.pca(RANDOM.normal(size=(6, 1)))
        assert (plane.points[:, 1] == 0).all()

    def test_of_equal_features_is_one_place(self) -> None:
        plane = analysis.pca(np.ones((6, 3)))
        assert (plane.points == 0).all()
        assert plane.shares == (0, 0)


class TestTSNE:
    def test_keeps_groups_together_and_repeats_itself(self) -> None:
        groups = np.repeat(10 * np.eye(3), 8, axis=0) + 0.1 * RANDOM.normal(size=(24, 3))
        first, second = (analysis.tsne(groups, steps=400) for _ in range(2))
        assert np.array_equal(first, second)
        apart = np.linalg.norm(first[:, None] - first[None], axis=-1)
        np.fill_diagonal(apart, np.inf)
        assert (apart.argmin(1) // 8 == np.arange(24) // 8).all()

    @pytest.mark.parametrize("count", [analysis.FEWEST_FOR_MAP, 7])
    def test_takes_few_images_even_if_they_are_equal(self, count: int) -> None:
        assert np.isfinite(analysis.tsne(np.ones((count, 4)), steps=250)).all()


class TestCKA:
    FEATURES = RANDOM.normal(size=(50, 6))

    def test_equals_the_estimate_written_out_in_sums(self) -> None:
        """Song et al. (2012), equation 4: sums over different images, by hand."""
        one, other = RANDOM.normal(size=(6, 3)), RANDOM.normal(size=(6, 2))

        def hsic(first: np.ndarray, second: np.ndarray) -> float:
            count = len(first)
            rows = range(count)
            pairs = [(i, j) for i in rows for j in rows if i != j]
            triples = [(i, j, q) for i, j in pairs for q in rows if q not in (i, j)]
            fours = [(i, j, q, r) for i, j, q in triples for r in rows if r not in (i, j, q)]
            same = np.mean([first[i, j] * second[i, j] for i, j in pairs])
            apart = np.mean([first[i, j] * second[q, r] for i, j, q, r in fours])
            crossed = np.mean([first[i, j] * second[i, q] for i, j, q in triples])
            return float(same + apart - 2 * crossed)

        k, m = one @ one.T, other @ other.T
        expected = hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))
        assert analysis.cka(one, other) == pytest.approx(expected, rel=1e-9)

    def test_ignores_rotation_scale_and_shift(self) -> None:
        turn, _ = np.linalg.qr(RANDOM.normal(size=(6, 6)))
        moved = 3 * self.FEATURES @ turn + 100
        assert analysis.cka(self.FEATURES, moved) == pytest.approx(1.0, abs=1e-9)

    def test_of_unrelated_wide_features_is_near_zero(self) -> None:
        found = [
            analysis.cka(RANDOM.normal(size=(50, 200)), RANDOM.normal(size=(50, 300)))
            for _ in range(20)
        ]
        assert abs(np.mean(found)) < 0.02

    def test_is_symmetric_for_features_of_any_width(self) -> None:
        other = self.FEATURES[:, :2] ** 2
        found = analysis.cka(self.FEATURES, other)
        assert found == pytest.approx(analysis.cka(other, self.FEATURES), rel=1e-9)
        assert abs(found) < 1

    @pytest.mark.parametrize("value", [1.0, np.inf, np.nan], ids=["equal", "infinite", "nan"])
    def test_of_features_that_tell_nothing_is_unknown(self, value: float) -> None:
        assert np.isnan(analysis.cka(self.FEATURES, np.full((50, 3), value)))

    def test_of_too_few_images_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 4 images, got 3"):
            analysis.cka(self.FEATURES[:3], self.FEATURES[:3])
