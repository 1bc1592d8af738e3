"""What of an engine's log is shipped: whole lines, in bounded slices, the newest first of all."""

from pathlib import Path

from models_registry.jobs import logs
from workers import log_shipping


def test_ships_whole_lines_and_at_the_end_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes("step 1\nst\u00e9p 2\nhal".encode())
    [first] = log_shipping.read(path, 0, to_the_end=False)
    assert first.text == "step 1\nst\u00e9p 2\n"
    assert log_shipping.read(path, first.end, to_the_end=False) == []
    [last] = log_shipping.read(path, first.end, to_the_end=True)
    assert (last.text, last.end) == ("hal", path.stat().st_size)


def test_cuts_a_long_log_between_lines_and_a_long_line_somewhere(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    lines = b"".join(b"%06d\n" % number for number in range(20_000))
    path.write_bytes(lines + b"x" * 2 * logs.SLICE_BYTES)
    slices = log_shipping.read(path, 0, to_the_end=True)
    assert all(0 < one.end - one.start <= logs.SLICE_BYTES for one in slices)
    assert slices[0].text.endswith("\n")
    assert "".join(one.text for one in slices).encode() == path.read_bytes()


def test_skips_what_would_be_dropped_at_once(tmp_path: Path) -> None:
    path = tmp_path / "engine.log"
    path.write_bytes(b"".join(b"%06d\n" % number for number in range(200_000)) + b"\x00\xff\n")
    slices = log_shipping.read(path, 7, to_the_end=False)
    assert slices[-1].end == path.stat().st_size
    assert slices[-1].text.endswith("199999\n\ufffd\n")
    assert slices[-1].end - slices[0].start <= logs.KEPT_BYTES
    assert slices[0].start % 7 == 0
