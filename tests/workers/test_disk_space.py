"""Room beside a slot that still fetches its inputs; `test_outages.py` has the rest."""

import dataclasses
import subprocess
import sys

from tests.databases import SQLITE_ONLY
from tests.workers import scenes
from workers import device_pool, disk_space, machine_health
from workers.context import Context
from workers.device_pool import DevicePool

# Another slot: it has the first device, and has promised its job so much room.
OTHER = """
import fcntl, os, sys
file, size, promised = map(int, sys.argv[1:])
fcntl.lockf(file, fcntl.LOCK_EX, size, size)
os.pwrite(file, promised.to_bytes(size, sys.byteorder), size)
print("held", flush=True)
sys.stdin.read()
"""
RECORD_BYTES = device_pool._RECORD.size


@SQLITE_ONLY
def test_is_what_other_slots_leave(context: Context) -> None:
    job_id = scenes.submit(context, scenes.project(context))
    pool = DevicePool()
    pool.offer(2)
    slot = dataclasses.replace(context, device_pool=pool)
    promised = 2 * machine_health.free_bytes(context.settings.data_dir)
    with subprocess.Popen(
        [sys.executable, "-c", OTHER, *map(str, (pool._file, RECORD_BYTES, promised))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[pool._file],
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        shortfall = disk_space.make_room(slot, job_id)
        assert f"those of jobs beside it {machine_health.gibibytes(promised)}" in str(shortfall)
        other.kill()
    assert disk_space.make_room(slot, job_id) is None  # what a dead slot promised is nobody's
