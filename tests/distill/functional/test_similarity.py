import numpy as np
import pytest

from workers.distill.functional import similarity

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(60, 4)).astype(np.float32) * 2
LABELS = RANDOM.integers(0, 4, size=60)


class TestCorrelation:
    def test_equals_numpys(self) -> None:
        expected = np.corrcoef(LOGITS, rowvar=False)
        np.testing.assert_allclose(similarity.correlation(LOGITS), expected, rtol=1e-6)

    def test_of_a_logit_that_never_changes_is_unknown(self) -> None:
        logits = LOGITS.copy()
        logits[:, 1] = 3.0
        correlations = similarity.correlation(logits)
        assert np.isnan(correlations[1]).all()
        assert np.isnan(correlations[:, 1]).all()
        assert np.isfinite(correlations[np.ix_([0, 2, 3], [0, 2, 3])]).all()

    def test_ignores_scale_and_shift_of_a_class(self) -> None:
        changed = LOGITS * np.array([1, 2, 3, 4]) + np.array([5, 6, 7, 8])
        np.testing.assert_allclose(
            similarity.correlation(changed.astype(np.float32)),
            similarity.correlation(LOGITS),
            atol=1e-5,
        )


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
        assert similarity.cka(one, other) == pytest.approx(expected, rel=1e-9)

    def test_ignores_rotation_scale_and_shift(self) -> None:
        turn, _ = np.linalg.qr(RANDOM.normal(size=(6, 6)))
        moved = 3 * self.FEATURES @ turn + 100
        assert similarity.cka(self.FEATURES, moved) == pytest.approx(1.0, abs=1e-9)

    def test_of_unrelated_wide_features_is_near_zero(self) -> None:
        values = [
            similarity.cka(RANDOM.normal(size=(50, 200)), RANDOM.normal(size=(50, 300)))
            for _ in range(20)
        ]
        assert abs(np.mean(values)) < 0.02

    def test_is_symmetric_for_features_of_any_width(self) -> None:
        other = self.FEATURES[:, :2] ** 2
        value = similarity.cka(self.FEATURES, other)
        assert value == pytest.approx(similarity.cka(other, self.FEATURES), rel=1e-9)
        assert abs(value) < 1

    @pytest.mark.parametrize("value", [1.0, np.inf, np.nan], ids=["equal", "infinite", "nan"])
    def test_of_features_that_tell_nothing_is_unknown(self, value: float) -> None:
        assert np.isnan(similarity.cka(self.FEATURES, np.full((50, 3), value)))

    def test_of_too_few_images_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 4 images, got 3"):
            similarity.cka(self.FEATURES[:3], self.FEATURES[:3])
