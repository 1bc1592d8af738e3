"""Ids: a prefix that names the kind, and a time-ordered 128-bit value in lower-case base32."""

import secrets
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford: no i, l, o, u to misread
_LENGTH = 26


def new(prefix: str) -> str:
    """Return a new id such as `job_01k...`: 48 bits of milliseconds, then 80 random bits.

    Ids of one process and millisecond are not ordered among themselves; queries that need a
    total order sort by time first and id second.
    """
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    digits = [_ALPHABET[(value >> (5 * place)) & 31] for place in reversed(range(_LENGTH))]
    return f"{prefix}_{''.join(digits)}"
