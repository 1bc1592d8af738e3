"""What the line of a failure says."""

import errno

from workers.distill import errors


class TestFailureLine:
    def test_of_an_own_error_has_its_code_and_facts(self) -> None:
        line = errors.failure_line(errors.BadDataset("it has no split test", split="test"))
        assert line == {
            "code": "bad_dataset",
            "message": "it has no split test",
            "retryable": False,
            "details": {"split": "test"},
        }

    def test_of_a_full_disk_may_be_tried_again(self) -> None:
        line = errors.failure_line(OSError(errno.ENOSPC, "No space left on device"))
        assert (line["code"], line["retryable"]) == ("internal_error", True)
        assert line["message"] == "the disk is full"

    def test_of_what_nobody_foresaw_has_its_type(self) -> None:
        line = errors.failure_line(ValueError("17"))
        assert (line["code"], line["retryable"]) == ("internal_error", False)
        assert line["message"] == "ValueError: 17"
