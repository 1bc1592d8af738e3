"""A few hundred damaged uploads; `make fuzz` tries ten thousand."""

from pathlib import Path

import pytest

from tests.drills import mutated_uploads, uploads

# Decoders warn of what they then refuse.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def test_whole_uploads_are_ready(tmp_path: Path) -> None:
    for sample in uploads.samples():
        outcome = mutated_uploads.inspect(sample.content, sample.request, tmp_path / "work")
        assert outcome == ("ready", ""), sample.name


def test_damaged_uploads_are_ready_or_refused_for_a_reason() -> None:
    seen = list(mutated_uploads.outcomes(300, seed=14))
    assert not [one for one in seen if one[2] in ("internal_error", "slow")]
    assert len({code for _, _, code, _ in seen}) > 3, "the damage is of several kinds"
