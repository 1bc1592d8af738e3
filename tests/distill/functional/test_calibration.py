import numpy as np
import pytest
import torch

from workers.distill.functional import calibration

RANDOM = np.random.default_rng(0)
LOGITS = RANDOM.normal(size=(60, 4)).astype(np.float32) * 2
LABELS = RANDOM.integers(0, 4, size=60)


class TestReliability:
    def test_has_the_error_that_is_reported_as_a_score(self) -> None:
        # Takes every process that collects tests a second.
        from torchmetrics.functional import classification

        expected = classification.multiclass_calibration_error(
            torch.from_numpy(LOGITS).softmax(1),
            torch.from_numpy(LABELS),
            num_classes=4,
            n_bins=calibration.CALIBRATION_BINS,
        )
        reliability = calibration.reliability(LOGITS, LABELS)
        assert reliability.counts.sum() == 60
        # Theirs is computed in single precision.
        assert reliability.error == pytest.approx(float(expected), rel=1e-4)

    def test_of_a_network_that_is_always_sure_and_right_is_perfect(self) -> None:
        logits = 1e4 * np.eye(4, dtype=np.float32)
        reliability = calibration.reliability(logits, np.arange(4))
        assert reliability.counts[-1] == 4
        assert (reliability.confidence[-1], reliability.accuracy[-1], reliability.error) == (
            1,
            1,
            0,
        )
