"""Nothing that a pickle names is imported or called, whichever instruction asks for it."""

import copyreg
import io
import os
import pickle
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from workers.distill.files import pickle_reader
from workers.distill.files.pickle_reader import Name, StandIn, Unreadable

EXTENSION = 0x7A


def read(content: bytes) -> tuple[Any, set[str]]:
    names: set[str] = set()
    found = pickle_reader.read(
        io.BytesIO(content), rebuild={}, persistent=lambda given: ("outside", given), names=names
    )
    return found, names


@pytest.fixture
def registered_extension() -> Iterator[None]:
    """An extension code that stands for a function, which pickle would call."""
    copyreg.add_extension("os", "mknod", EXTENSION)
    yield
    copyreg.remove_extension("os", "mknod", EXTENSION)


@pytest.mark.usefixtures("registered_extension")
class TestCalls:
    def programs(self, path: Path) -> dict[str, bytes]:
        """Return pickles that would create a file, by the instruction that calls."""
        text = str(path).encode()
        arguments = b"X" + len(text).to_bytes(4, "little") + text
        name = b"cos\nmknod\n"
        stacked = b"\x8c\x02os\x8c\x05mknod\x93"
        tuple_of_1 = arguments + b"\x85"
        return {
            "REDUCE": name + tuple_of_1 + b"R.",
            "STACK_GLOBAL": stacked + tuple_of_1 + b"R.",
            "INST": b"(" + arguments + b"ios\nmknod\n.",
            "OBJ": b"(" + name + arguments + b"o.",
            "NEWOBJ": name + tuple_of_1 + b"\x81.",
            "NEWOBJ_EX": name + tuple_of_1 + b"}\x92.",
            "BUILD": name + b"(" + b"tR" + arguments + b"b.",
            "EXT1": b"\x82" + bytes([EXTENSION]) + tuple_of_1 + b"R.",
            "EXT2": b"\x83" + EXTENSION.to_bytes(2, "little") + tuple_of_1 + b"R.",
            "EXT4": b"\x84" + EXTENSION.to_bytes(4, "little") + tuple_of_1 + b"R.",
            "PERSID": b"P" + text + b"\n.",
            "BINPERSID": name + tuple_of_1 + b"\x86Q.",
            "a call of what a call gave": name + tuple_of_1 + b"R" + tuple_of_1 + b"R.",
        }

    def test_none_is_made(self, tmp_path: Path) -> None:
        marker = tmp_path / "marker"
        for instruction, program in self.programs(marker).items():
            read(program)
            assert not marker.exists(), instruction

    def test_the_programs_would_work(self, tmp_path: Path) -> None:
        # Else the test above would hold for programs that are merely damaged.
        for place, instruction in enumerate(("REDUCE", "STACK_GLOBAL", "INST", "OBJ", "EXT1")):
            marker = tmp_path / str(place)
            pickle.loads(self.programs(marker)[instruction])
            assert marker.exists(), instruction

    def test_names_are_told(self, tmp_path: Path) -> None:
        for instruction, program in self.programs(tmp_path / "marker").items():
            if instruction not in ("EXT1", "EXT2", "EXT4", "PERSID"):
                assert read(program)[1] == {"os.mknod"}, instruction

    def test_nothing_is_imported(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "evil_module.py").write_text(f"open({str(tmp_path / 'marker')!r}, 'w')")
        monkeypatch.syspath_prepend(str(tmp_path))
        found, _ = read(b"cevil_module\nThing\n)R.")
        assert isinstance(found, StandIn)
        assert not (tmp_path / "marker").exists()
        assert "evil_module" not in sys.modules

    def test_methods_of_ours_are_out_of_reach(self) -> None:
        # A state is kept by stand-ins and by records, and refused by all else.
        for target in (b"K\x01", b"X\x01\x00\x00\x00a"):
            with pytest.raises(Unreadable):
                read(target + b"}b.")


class Point:
    """A class whose objects have a state."""

    def __init__(self) -> None:
        self.x = [1, 2]


class TestValues:
    @pytest.mark.parametrize("protocol", range(6))
    def test_plain_ones_are_read_as_they_are(self, protocol: int) -> None:
        value = {
            "text": "é",
            "bytes": b"\x00\xff",
            "numbers": [1, -1, 2**70, 1.5, True, None],
            "nested": ({"a": [()]}, [[[]]]),
            7: OrderedDict(a=1),
            "default": defaultdict(list, a=[1]),
        }
        assert read(pickle.dumps(value, protocol=protocol))[0] == value

    def test_objects_keep_their_class_and_state(self) -> None:
        found, names = read(pickle.dumps({"p": Point()}))
        assert found["p"].made_by == Name(__name__, "Point")
        assert found["p"].state == {"x": [1, 2]}
        assert names == {f"{__name__}.Point"}

    def test_sets_and_paths_do_no_harm(self, tmp_path: Path) -> None:
        value = {"set": {1, 2}, "frozen": frozenset({3}), "path": tmp_path, ("a", 1): os.getcwd}
        found, _ = read(pickle.dumps(value))
        assert sorted(found["set"]) == [1, 2]
        assert isinstance(found["path"], StandIn)

    @pytest.mark.parametrize(
        "content", [b"", b".", b"hello", b"(.", b"K\x01", b"]h\x05.", b"(K\x01u.", b"\x97.", b"a."]
    )
    def test_damage_is_one_error(self, content: bytes) -> None:
        with pytest.raises(Unreadable):
            read(content)

    def test_a_small_file_cannot_stand_for_more_than_memory(self) -> None:
        # Each tuple holds the one before twice; hashed or printed, that takes for ever.
        doubled = b")" + b"2\x86" * 60
        found, _ = read(b"}" + doubled + b"K\x01s.")
        assert len(found) == 1
