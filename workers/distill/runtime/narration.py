"""What the engine reports, in lines that people read: they stand in its log beside what it prints.

Of metrics, a line for each epoch that was validated, and else one in ten seconds.
"""

import math
import os
import time
from collections.abc import Mapping
from typing import Any

METRICS_SECONDS = 10.0


class Narrator:
    """Writes lines to a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._metrics_at: dict[str, float] = {}

    def tell(self, kind: str, facts: Mapping[str, Any]) -> None:
        """Write a report as a line, if it is one that people want to read."""
        member = str(facts.get("member", ""))
        if kind == "metrics":
            is_validated = any("validation/" in point["key"] for point in facts["points"])
            since = time.monotonic() - self._metrics_at.get(member, -math.inf)
            if not is_validated and since < METRICS_SECONDS:
                return
            self._metrics_at[member] = time.monotonic()
        sentence = sentence_of(kind, facts)
        if sentence is None:
            return
        whose = f"{member} " if member else ""
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        rest = f"{moment} {whose}{sentence}\n".encode(errors="replace")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


def sentence_of(kind: str, facts: Mapping[str, Any]) -> str | None:
    """Return a report as a sentence; None for one that is for programs alone."""
    match kind:
        case "started":
            step = facts.get("resumed_from_step")
            where = f", from the checkpoint of step {step}" if step else ""
            return f"started on {facts.get('device')}{where}"
        case "metrics":
            newest = {point["key"]: point for point in facts["points"]}
            last = facts["points"][-1]
            values = ", ".join(f"{key} {point['value']:.4g}" for key, point in newest.items())
            return f"epoch {last['epoch']}, step {last['step']}: {values}"
        case "checkpoint":
            return f"checkpoint of step {facts['step']} written, {facts['size_bytes']:,} bytes"
        case "warning":
            return f"warning: {facts['message']} ({facts['code']})"
        case "result":
            return "finished"
        case "failure":
            return f"failed: {facts['message']} ({facts['code']})"
    return None
