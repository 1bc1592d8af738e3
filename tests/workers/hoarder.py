"""A child that takes shared memory, which no limit of the kernel counts, and keeps it."""

import mmap
import time

HOARD_BYTES = 300 << 20

if __name__ == "__main__":
    hoard = mmap.mmap(-1, HOARD_BYTES)
    for page in range(0, HOARD_BYTES, mmap.PAGESIZE):
        hoard[page] = 1
    time.sleep(600)
