"""How failures leave the engine: one line each, and a failure of one student stays its own."""

import contextlib
import errno
import logging
from collections.abc import Iterator

import torch

from workers.distill import errors
from workers.distill.config.job import JobConfig
from workers.distill.runtime import events

LOG = logging.getLogger(__name__)
# What one member meets here, the others meet as well.
_OF_ALL = (errors.OutOfMemory.code, errors.HostOutOfMemory.code, errors.MachineFailed.code)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_DISK_FAILED = (errno.EIO, errno.EROFS, errno.ESTALE)
# Of what CUDA says of a card that is gone or broken; other errors may be a network's.
_NO_DEVICE = (
    "no CUDA-capable device",
    "CUDA driver initialization failed",
    "busy or unavailable",
    "uncorrectable ECC error",
)


class Failures:
    """Reports the failures of members, each on its own line; a failure of all is raised."""

    def __init__(self, *, alone: bool) -> None:
        self._alone = alone
        self.count = 0

    @contextlib.contextmanager
    def isolate(self, config: JobConfig, reporter: events.Reporter) -> Iterator[None]:
        """Report what a member's part of the work raises; raise what concerns all members."""
        try:
            yield
        except errors.Interrupted:
            raise
        except Exception as error:  # what one member meets must not reach the others
            failure = translate(error, batch_size=config.training.batch_size)
            if self._alone or failure.code in _OF_ALL:
                raise
            LOG.exception("a member of the group failed")
            self.count += 1
            report(reporter, failure)


def report(reporter: events.Reporter, failure: errors.DistillError) -> None:
    """Write the last line of what failed."""
    reporter.failure(
        failure.code, failure.message, retryable=failure.retryable, details=failure.details
    )


def translate(error: Exception, *, batch_size: int | None = None) -> errors.DistillError:
    """Return the failure that a caller should get for an exception."""
    if isinstance(error, errors.UnknownNetwork):
        return errors.IncompatibleNetworks(error.message, **error.details)
    if isinstance(error, errors.DistillError) and error.code in errors.RUN_CODES:
        return error
    message = str(error)
    size = f" with batch_size {batch_size}" if batch_size else ""
    if isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in message:
        return errors.OutOfMemory(
            f"the device ran out of memory{size}; lower training.batch_size, choose precision "
            "bfloat16, or use a smaller network",
            batch_size=batch_size,
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in message:
        return errors.HostOutOfMemory(
            f"the machine ran out of memory{size}; lower training.batch_size, or use a machine "
            "with more memory",
            batch_size=batch_size,
        )
    if isinstance(error, OSError) and error.errno in (*_NO_ROOM, *_DISK_FAILED):
        return errors.MachineFailed(
            f"the machine's disk failed: {error.strerror}",
            fault="no_disk" if error.errno in _NO_ROOM else "disk_failed",
        )
    if isinstance(error, RuntimeError) and any(words in message for words in _NO_DEVICE):
        first = message.splitlines()[0][:500]
        return errors.MachineFailed(f"the machine's CUDA device failed: {first}", fault="no_device")
    return errors.DistillError(
        f"an unexpected {type(error).__name__} ended the job: {message[:500]}"
    )
