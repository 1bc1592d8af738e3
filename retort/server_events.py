"""Parse a `text/event-stream` as the HTML standard defines it.

Lines end at CR, LF or CRLF and nowhere else: `str.splitlines` would also cut JSON text at U+2028.
"""

import codecs
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

LINE_END = re.compile(r"\r\n|\n|\r")


@dataclass(frozen=True)
class ServerEvent:
    """One event as sent; `retry_seconds` is how long to wait before a reconnection."""

    event: str = "message"
    data: str = ""
    id: str | None = None
    retry_seconds: float | None = None


def lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Cut a stream of bytes into lines; an unfinished last line is dropped."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    for chunk in chunks:
        rest += decoder.decode(chunk)
        # A CR at the very end may be half of a CRLF: leave it for the next chunk.
        held = "\r" if rest.endswith("\r") else ""
        *whole, rest = LINE_END.split(rest[: len(rest) - len(held)])
        rest += held
        yield from whole


def parse(stream: Iterable[str]) -> Iterator[ServerEvent]:
    """Gather lines into events; comments are skipped, an event cut off by the end is dropped."""
    event, text = "message", list[str]()
    identity: str | None = None
    retry: float | None = None
    for line in stream:
        if not line:
            if text or retry is not None:
                yield ServerEvent(event, "\n".join(text), identity, retry)
            event, text, retry = "message", [], None
            continue
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            event = value
        elif field == "data":
            text.append(value)
        elif field == "id" and "\0" not in value:
            identity = value
        elif field == "retry" and value.isascii() and value.isdigit():
            retry = int(value) / 1000
