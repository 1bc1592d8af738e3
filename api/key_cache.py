"""Callers of API keys that were looked up a moment ago, so that not every request asks for them."""

import hashlib
import threading
import time
from dataclasses import dataclass

from models_registry.access import keys

_MOST_KNOWN = 10_000


@dataclass(frozen=True)
class _Known:
    caller: keys.Caller
    until: float  # by the monotonic clock


class KeyCache:
    """The callers of keys, each known for some seconds and never beyond the end of its key.

    A key that is revoked or rotated through this process is forgotten at once; through another
    process it opens for at most `seconds` more. With 0 seconds nothing is kept.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._known: dict[bytes, _Known] = {}
        self._generation = 0
        self._lock = threading.Lock()

    @property
    def generation(self) -> int:
        """Return how often keys were forgotten; `keep` wants that of before the look-up."""
        return self._generation

    def find(self, text: str) -> keys.Caller | None:
        """Return who presents the key `text`, if that is known."""
        with self._lock:
            known = self._known.get(_digest(text))
        return known.caller if known is not None and time.monotonic() < known.until else None

    def keep(self, text: str, known: keys.Authentication, *, generation: int) -> None:
        """Remember who presents a key, unless one was forgotten since `generation`."""
        seconds = min(self._seconds, known.valid_seconds)
        if seconds <= 0:
            return
        with self._lock:
            if generation != self._generation:
                return  # what was read may be what has just changed
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            self._known[_digest(text)] = _Known(known.caller, time.monotonic() + seconds)

    def forget(self, key_id: str) -> None:
        """Look a key up again, since it was changed here."""
        with self._lock:
            self._generation += 1
            self._known = {
                digest: known
                for digest, known in self._known.items()
                if known.caller.key_id != key_id
            }


def _digest(text: str) -> bytes:
    # The memory of a process is no place for secrets that the database does not have either.
    return hashlib.sha256(text.encode()).digest()
