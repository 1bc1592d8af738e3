"""How busy this machine's graphics cards are, as NVIDIA's own program says."""

import shutil
import subprocess

import structlog

log = structlog.get_logger()

_PROGRAM = "nvidia-smi"
_SECONDS = 5.0


def read() -> float | None:
    """Return the mean utilisation of the cards that this process sees, 0 to 1; None without any.

    It is the share of the last moment in which a kernel ran, not of the possible arithmetic.
    """
    if shutil.which(_PROGRAM) is None:
        return None
    command = [_PROGRAM, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    try:
        ended = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=_SECONDS
        )
        shares = [float(line) / 100 for line in ended.stdout.split()]
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        log.warning("gpu_utilisation_unknown", reason=f"{type(error).__name__}: {error}")
        return None
    return sum(shares) / len(shares) if shares else None
