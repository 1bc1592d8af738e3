"""A process that may take only so much memory, and errors that say that it has none left."""

import errno
import subprocess
import sys

import pytest

from workers.distill.runtime import memory

PROGRAM = """
from workers.distill.runtime import memory
memory.limit(64 << 20)
bytearray(16 << 20)
try:
    bytearray(256 << 20)
except MemoryError:
    print("refused")
"""


def test_an_allocation_beyond_the_limit_fails_on_linux() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout == ("refused\n" if sys.platform == "linux" else "")


@pytest.mark.parametrize(
    ("error", "is_exhausted"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), True),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (ValueError("std::bad_alloc"), False),
        (RuntimeError("sizes of tensors must match"), False),
    ],
)
def test_is_recognised_by_what_libraries_say(error: Exception, is_exhausted: bool) -> None:
    assert memory.is_exhausted(error) == is_exhausted
    outer = RuntimeError("the picture was refused")
    outer.__cause__ = error
    assert memory.is_exhausted(outer) == is_exhausted
