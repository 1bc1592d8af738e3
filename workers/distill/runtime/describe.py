"""Prints this machine's devices and library versions as one JSON line."""

import json
import os
import platform
import sys
from importlib import metadata

import torch


def describe() -> dict[str, object]:
    """Return the devices (kind, name, memory in bytes) and the versions of the libraries."""
    devices: list[dict[str, object]] = [
        {
            "kind": "cuda",
            "name": torch.cuda.get_device_name(index),
            "memory_bytes": torch.cuda.get_device_properties(index).total_memory,
        }
        for index in range(torch.cuda.device_count())
    ]
    devices.append({"kind": "cpu", "name": platform.machine(), "cores": _cores()})
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        # Not imported: loading it takes longer than torch itself.
        "torchvision": metadata.version("torchvision"),
    }
    return {"devices": devices, "versions": versions}


def _cores() -> int:
    """Return how many cores this process may use; only Linux distinguishes them from all cores."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


if __name__ == "__main__":
    sys.stdout.write(json.dumps(describe()) + "\n")
