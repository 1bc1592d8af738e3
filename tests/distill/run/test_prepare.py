"""What a job and its data set say of mirrored images, and what its loader does."""

import pytest

from tests.distill import folders
from workers.distill.config.job import Input, JobConfig
from workers.distill.data import dataset
from workers.distill.run import prepare


def record(flip: bool) -> dataset.DatasetRecord:
    return dataset.DatasetRecord(
        classes=["a"], splits=folders.COUNTS, input=Input.model_validate(folders.INPUT), flip=flip
    )


class TestMayFlip:
    @pytest.mark.parametrize(
        ("asked", "recorded", "flips"),
        [
            (None, True, True),
            (None, False, False),
            (None, None, False),
            (False, True, False),
            (True, False, True),
            (True, None, True),
        ],
    )
    def test_is_the_jobs_choice_and_else_the_data_sets(
        self, asked: bool | None, recorded: bool | None, flips: bool
    ) -> None:
        config = JobConfig.model_validate(
            {"student": folders.network(), "method": {"name": "ce"}, "training": {"flip": asked}}
        )
        given = None if recorded is None else record(recorded)
        assert prepare.may_flip(config, given) is flips
