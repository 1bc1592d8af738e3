"""Shared state goes on whichever process is killed, wherever it is."""

import contextlib
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from tests import waiting
from workers.forked_state import ForkedBytes, ForkedFlag

MOST = 4096
FORK = multiprocessing.get_context("fork")


@contextlib.contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """Run some work in a forked process, which is killed at the end; yield its id."""
    child = FORK.Process(target=work)
    child.start()
    assert child.pid is not None
    try:
        yield child.pid
    finally:
        child.kill()
        child.join()


def ends_well(work: Callable[[], object]) -> bool:
    child = FORK.Process(target=work)
    child.start()
    child.join()
    return child.exitcode == 0


class TestForkedFlag:
    def test_is_seen_by_whoever_was_forked_before_it_was_set(self) -> None:
        flag = ForkedFlag()
        child = FORK.Process(target=flag.wait)
        child.start()
        assert (flag.is_set(), flag.wait(0.01), child.is_alive()) == (False, False, True)
        flag.set()
        child.join()
        assert (flag.is_set(), flag.wait(), child.exitcode) == (True, True, 0)

    def test_is_set_by_a_child(self) -> None:
        flag = ForkedFlag()
        assert ends_well(flag.set)
        assert flag.is_set()

    def test_waits_for_nobody_who_was_killed_while_waiting(self) -> None:
        flag, begun = ForkedFlag(), ForkedFlag()

        def wait() -> None:
            begun.set()
            flag.wait()

        with forked(wait) as process_id:
            begun.wait()
            waiting.until(lambda: sleeps(process_id), "it waits")
        flag.set()
        assert ends_well(flag.wait)

    def test_may_be_set_as_often_as_one_likes(self) -> None:
        flag = ForkedFlag()
        for _ in range(70_000):  # more than a pipe holds
            flag.set()
        assert flag.is_set()


class TestForkedBytes:
    def test_are_those_that_any_process_wrote_last(self) -> None:
        shared = ForkedBytes(MOST)
        assert shared.get() == b""
        shared.put(b"first")
        assert ends_well(lambda: shared.put(b"second, and longer"))
        assert shared.get() == b"second, and longer"
        shared.put(b"")
        assert shared.get() == b""

    def test_have_a_bound(self) -> None:
        shared = ForkedBytes(3)
        shared.put(b"abc")
        with pytest.raises(ValueError, match="4 bytes, and there is room for 3"):
            shared.put(b"abcd")
        assert shared.get() == b"abc"

    def test_are_whole_whenever_a_writer_is_killed(self) -> None:
        shared = ForkedBytes(MOST)
        shared.put(b"a" * MOST)

        def write() -> None:
            while True:
                for letter in (b"b", b"c"):
                    shared.put(letter * MOST)

        for _ in range(20):
            with forked(write) as process_id:
                time.sleep(0.002)
                os.kill(process_id, signal.SIGKILL)
            found = shared.get()
            assert found in (b"a" * MOST, b"b" * MOST, b"c" * MOST)
            shared.put(b"a" * MOST)
            assert shared.get() == b"a" * MOST


def sleeps(process_id: int) -> bool:
    return psutil.Process(process_id).status() == psutil.STATUS_SLEEPING
