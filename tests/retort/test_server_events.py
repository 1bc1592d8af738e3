import pytest
from hypothesis import given
from hypothesis import strategies as st

from retort import server_events
from retort.server_events import ServerEvent

SAMPLE = (
    ": ping\n\nid: 1\nevent: job.queued\ndata: {}\n\n"
    "data: one\ndata:two\ndata\n\nretry: 2000\n\nid: 9\n"
    "data: naïve \u2028 text\r\rdata: x\r\n\r\n"
)


def parsed(text: str, size: int = 1 << 20) -> list[ServerEvent]:
    raw = text.encode()
    chunks = [raw[start : start + size] for start in range(0, len(raw), size)]
    return list(server_events.parse(server_events.lines(chunks)))


class TestLines:
    def test_end_at_cr_lf_or_both_and_nowhere_else(self):
        chunks = [b"a\nb\rc\r", b"\nd\r\n\xc2", b"\x85e\xe2\x80\xa8f\n"]
        assert list(server_events.lines(chunks)) == ["a", "b", "c", "d", "\x85e\u2028f"]

    def test_drop_an_unfinished_last_line(self):
        assert list(server_events.lines([b"a\nb"])) == ["a"]

    @given(st.integers(1, 40))
    def test_are_the_same_however_the_bytes_are_cut(self, size):
        assert parsed(SAMPLE, size) == parsed(SAMPLE)


class TestParse:
    def test_reads_fields_comments_and_several_lines_of_data(self):
        assert parsed(SAMPLE) == [
            ServerEvent("job.queued", "{}", "1"),
            ServerEvent("message", "one\ntwo\n", "1"),
            ServerEvent("message", "", "1", 2.0),
            ServerEvent("message", "naïve \u2028 text", "9"),
            ServerEvent("message", "x", "9"),
        ]

    def test_drops_an_event_cut_off_by_the_end(self):
        assert parsed("data: whole\n\ndata: half\n") == [ServerEvent("message", "whole")]

    @pytest.mark.parametrize("line", ["retry: soon", "retry: -1", "retry: ²", "id: a\0b", "x: y"])
    def test_ignores_fields_that_mean_nothing(self, line):
        assert parsed(f"{line}\ndata: a\n\n") == [ServerEvent("message", "a")]
