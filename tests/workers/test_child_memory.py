"""What a process holds, seen from outside."""

import mmap
import os

from workers import child_memory


def test_shared_memory_counts_and_a_process_that_is_gone_holds_nothing() -> None:
    before = child_memory.held_bytes(os.getpid())
    held = mmap.mmap(-1, 64 << 20)  # shared, which the kernel's limit does not count
    for page in range(0, len(held), mmap.PAGESIZE):
        held[page] = 1
    assert child_memory.held_bytes(os.getpid()) - before >= 60 << 20
    held.close()
    assert child_memory.held_bytes(2**22 + 1) == 0, "no process has such a number"
