import errno
import multiprocessing
import os
from pathlib import Path

import pytest

from models_registry.settings import Settings
from workers import machine_health
from workers.machine_health import MachineFault, MachineHealth

FULL = MachineFault(machine_health.NO_DISK, "The disk is full.")


class Clock:
    """Seconds since the epoch, as a test sets them."""

    def __init__(self) -> None:
        self.now = 1e9

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, worker_min_free_bytes=0)


class TestCheck:
    def test_finds_nothing_wrong_with_a_machine_that_works(self, settings: Settings) -> None:
        assert machine_health.check(settings) is None
        assert list(settings.scratch_dir.iterdir()) == []

    def test_asks_for_as_much_free_disk_as_the_setting_says(self, settings: Settings) -> None:
        free = machine_health.free_bytes(settings.data_dir)
        wanted = settings.model_copy(update={"worker_min_free_bytes": 2 * free})
        fault = machine_health.check(wanted)
        assert fault is not None
        assert fault.code == machine_health.NO_DISK
        assert "RETORT_WORKER_MIN_FREE_BYTES" in fault.message

    def test_finds_a_folder_that_cannot_be_written(self, settings: Settings) -> None:
        settings.scratch_dir.touch()  # a file: true for root, too
        fault = machine_health.check(settings)
        assert fault is not None
        assert fault.code == machine_health.DISK_FAILED
        assert str(settings.data_dir) not in fault.message

    @pytest.mark.parametrize(
        ("number", "code"),
        [
            (errno.ENOSPC, machine_health.NO_DISK),
            (errno.EAGAIN, machine_health.NO_PROCESS),
            (errno.ENOMEM, machine_health.NO_MEMORY),
            (errno.EIO, machine_health.DISK_FAILED),
        ],
    )
    def test_knows_what_the_system_means(self, number: int, code: str) -> None:
        error = OSError(number, os.strerror(number), "/secret/path")
        assert machine_health.of_error(error) == MachineFault(code, os.strerror(number))


class TestMachineHealth:
    def test_is_suspended_until_the_machine_passes(self) -> None:
        clock = Clock()
        health = MachineHealth(first_pause_seconds=10, clock=clock)
        assert health.suspension is None
        health.suspend(FULL)
        health.suspend(MachineFault(machine_health.NO_MEMORY, "a later one"))
        assert health.suspension is not None
        assert (health.suspension.code, health.suspension.message) == (FULL.code, FULL.message)
        asked: list[str] = []
        health.review(lambda code: asked.append(code))
        assert asked == []  # not yet
        clock.now += 10
        health.review(lambda code: asked.append(code))
        assert asked == [FULL.code]
        assert health.suspension is None

    def test_waits_twice_as_long_each_time_also_after_a_relapse(self) -> None:
        clock = Clock()
        health = MachineHealth(first_pause_seconds=1, clock=clock)
        health.suspend(FULL)
        pauses = []
        for _ in range(4):
            clock.now += 20
            health.review(lambda _code: FULL)
            assert health.suspension is not None
            pauses.append(health.suspension.retry_at - clock.now)
        assert pauses == [2, 4, 8, 16]
        clock.now += 20
        health.review(lambda _code: None)
        assert health.suspension is None
        health.suspend(FULL)
        assert health.suspension is not None
        assert health.suspension.retry_at - clock.now == 32

    def test_is_shared_with_a_forked_process(self) -> None:
        health = MachineHealth()
        child = multiprocessing.get_context("fork").Process(target=health.suspend, args=(FULL,))
        child.start()
        child.join()
        assert health.suspension is not None
        assert health.suspension.message == FULL.message
