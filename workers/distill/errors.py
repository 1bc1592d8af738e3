"""What can go wrong inside the engine, each with the code that a caller sees.

DistillError
├── BadRecipe             the recipe itself cannot be carried out
├── UnknownNetwork        no network of that name
├── IncompatibleNetworks  teacher, student and method do not fit together
├── BadDataset            the prepared data set cannot be read or is empty
├── TeacherLoad           the teacher's weights do not fit its network
├── InitialLoad           the student's start weights do not fit its network
├── KeysMismatch          a file of weights and a network differ in names or shapes
├── Diverged              a loss or weight stopped being finite
├── OutOfMemory           the device ran out of memory
├── HostOutOfMemory       the machine ran out of memory
├── MachineFailed         the machine has no room on its disk, or no device
├── RankLost              one of several processes of the job ended, or could not be reached
├── BadMessage            a message between clients and server cannot be read
├── TooFewClients         remote clients did not join or answer in time
├── NotExportable         no exporter can write a network in the form that was asked for
└── UploadRefused         an uploaded file cannot become a model or a data set
"""

import errno
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

from workers.distill.config.rules import Violation

RUN_CODES = (
    "diverged",
    "out_of_memory",
    "host_out_of_memory",
    "incompatible_networks",
    "bad_dataset",
    "bad_recipe",
    "teacher_load",
    "initial_load",
    "bad_message",
    "too_few_clients",
    "worker_failed",
    "rank_lost",
    "internal_error",
)
"""Every code with which a distillation can fail; the list is closed."""


class DistillError(Exception):
    """A failure with a stable code, a sentence for people, and facts for programs."""

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


def failure_line(error: Exception) -> dict[str, Any]:  # Any: JSON
    """Return the fields of the line that tells a failure: an own one, or one nobody foresaw."""
    if isinstance(error, DistillError):
        return {
            "code": error.code,
            "message": error.message,
            "retryable": error.retryable,
            "details": error.details,
        }
    is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
    message = "the disk is full" if is_full else f"{type(error).__name__}: {error}"
    return {"code": DistillError.code, "message": message, "retryable": is_full, "details": {}}


class BadRecipe(DistillError):
    """The recipe itself cannot be carried out."""

    code = "bad_recipe"


class IncompatibleNetworks(DistillError):
    """Teacher, student, data set and method do not fit together."""

    code = "incompatible_networks"


class UnknownNetwork(IncompatibleNetworks):
    """No network of that name exists, or its arguments are not accepted."""

    code = "bad_network"


def refuse(
    faults: Iterable[Violation], kind: type[DistillError] = BadRecipe, **details: Any
) -> None:
    """Raise the first of some faults, with its field and its sentence; do nothing without any."""
    for fault in faults:
        raise kind(fault.message, field=fault.field, **details)


class BadDataset(DistillError):
    """The prepared data set cannot be read, or holds nothing to learn from."""

    code = "bad_dataset"


class TeacherLoad(DistillError):
    """The teacher's weights do not fit its network."""

    code = "teacher_load"


class InitialLoad(DistillError):
    """The student's start weights do not fit its network."""

    code = "initial_load"


class KeysMismatch(DistillError):
    """A file of weights and a network differ in the names or shapes of their tensors."""

    code = "keys_mismatch"

    def __init__(
        self,
        message: str,
        *,
        missing_keys: Sequence[str],
        unexpected_keys: Sequence[str],
        shape_mismatches: Sequence[Mapping[str, Any]],
    ) -> None:
        super().__init__(
            message,
            missing_keys=list(missing_keys),
            unexpected_keys=list(unexpected_keys),
            shape_mismatches=[dict(mismatch) for mismatch in shape_mismatches],
        )
        self.missing_keys = list(missing_keys)
        self.unexpected_keys = list(unexpected_keys)
        self.shape_mismatches = [dict(mismatch) for mismatch in shape_mismatches]


class Diverged(DistillError):
    """A loss stopped being finite."""

    code = "diverged"


class OutOfMemory(DistillError):
    """The device ran out of memory."""

    code = "out_of_memory"


class HostOutOfMemory(DistillError):
    """The machine, not the device, ran out of memory; another machine may have more."""

    code = "host_out_of_memory"
    retryable = True


class MachineFailed(DistillError):
    """The machine cannot run the job, whatever the job is: `fault` says what it lacks.

    `fault` is `no_disk`, `disk_failed` or `no_device`.
    """

    code = "worker_failed"
    retryable = True

    def __init__(self, message: str, *, fault: str) -> None:
        super().__init__(message, fault=fault)


class RankLost(DistillError):
    """One of the processes of a job on several devices has ended, or could not be reached."""

    code = "rank_lost"
    retryable = True


class BadMessage(DistillError):
    """What a client or the server of a federation sent cannot be read."""

    code = "bad_message"


class TooFewClients(DistillError):
    """Fewer remote clients than a round needs have joined, or answered in time."""

    code = "too_few_clients"


class NotExportable(DistillError):
    """No exporter can write a network in the form that was asked for."""

    code = "not_exportable"


class UploadRefused(DistillError):
    """An uploaded file cannot become a model or a data set; `code` says why."""

    def __init__(self, code: str, message: str, **details: Any) -> None:
        super().__init__(message, **details)
        self.refusal = code


class Interrupted(Exception):
    """The process was asked to stop; the state at hand can be written and continued later."""
