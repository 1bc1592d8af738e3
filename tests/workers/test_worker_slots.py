"""What a worker's command line makes of the number of slots."""

import pytest

from workers import worker_slots


class TestSlotsOf:
    @pytest.mark.parametrize(
        ("arguments", "slots"),
        [
            (["--queues", "any,cuda"], 3),
            (["-Qcpu", "--loglevel", "info"], 3),
            (["--queues", "any", "--concurrency", "3"], 3),
            (["--queues", "inspect"], 1),
            (["--queues", "maintenance", "--beat"], 1),
            (["--queues", "webhooks", "--pool", "threads", "--concurrency", "8"], 1),
        ],
    )
    def test_are_those_of_the_settings_for_a_worker_of_jobs(
        self, arguments: list[str], slots: int
    ) -> None:
        assert worker_slots.slots_of(arguments, 3) == slots

    @pytest.mark.parametrize(
        ("arguments", "reason"),
        [
            (["--queues", "any", "--concurrency", "2"], r"RETORT_WORKER_SLOTS \(3\)"),
            (["--queues", "any", "--pool", "threads"], "leave out --concurrency and --pool"),
            (["--queues", "any,maintenance"], "start another worker for that queue"),
            ([], "start another worker"),  # all queues
        ],
    )
    def test_are_refused_where_the_arguments_contradict(
        self, arguments: list[str], reason: str
    ) -> None:
        with pytest.raises(ValueError, match=reason):
            worker_slots.slots_of(arguments, 3)

    def test_may_be_one_for_all_queues(self) -> None:
        assert worker_slots.slots_of([], 1) == 1
