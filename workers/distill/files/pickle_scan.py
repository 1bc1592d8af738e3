"""Lists the code that a pickle names from its instructions, without executing any."""

import io
import pickletools
from collections.abc import Collection

MOST_PICKLES = 8
"""An old file of torch.save is several pickles in a row."""
PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})


def foreign_name(content: bytes, harmless: Collection[str]) -> str:
    """Return the first name from a package that is not harmless, or None.

    Returns None where the content is no pickle.
    """
    stream = io.BytesIO(content)
    for _ in range(MOST_PICKLES):
        try:
            for module, name in _globals(stream):
                if module.split(".")[0] not in harmless:
                    return f"{module}.{name}"
        except (ValueError, IndexError, OverflowError):
            return ""
    return ""


def _globals(stream: io.BytesIO) -> list[tuple[str, str]]:
    """Return every pair of module and name in the next pickle of the stream."""
    names: list[tuple[str, str]] = []
    memo: dict[int, str] = {}
    pushed: list[str] = ["", ""]
    for operation, value, _place in pickletools.genops(stream):
        kind = operation.name
        if kind in ("GLOBAL", "INST"):
            module, _, name = str(value).partition(" ")
            names.append((module, name))
        elif kind == "STACK_GLOBAL":
            # Both names are strings pushed just before, perhaps fetched from the memo.
            names.append((pushed[-2], pushed[-1]))
        elif kind == "MEMOIZE":
            memo[len(memo)] = pushed[-1]
            continue
        elif kind in PUTS:
            memo[_number(value)] = pushed[-1]
            continue
        text = memo.get(_number(value), "") if kind in GETS else value
        pushed = [pushed[-1], text if isinstance(text, str) else ""]
    return names


def _number(value: object) -> int:
    return int(value) if isinstance(value, (int, str)) else -1
