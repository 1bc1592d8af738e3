"""Reads a pickle without importing or calling anything that it names.

The instructions are executed here, on plain containers. Every name becomes a `Name`; an instruction
that would call one (REDUCE, BUILD, NEWOBJ, NEWOBJ_EX, INST, OBJ) makes a `StandIn` that keeps what
it was given, unless a caller's table rebuilds that name as inert data. Extension codes and
persistent ids are data too. So the worst that a file can do is to be refused.
"""

import pickletools
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

MOST_INSTRUCTIONS = 50_000_000
"""Some minutes of work; a checkpoint of many thousand tensors has a million."""


class Unreadable(Exception):
    """The pickle is damaged, or uses what no writer of checkpoints uses."""


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle refers to, such as `collections.OrderedDict`."""

    module: str
    name: str

    def __str__(self) -> str:
        """Return the name as it is written in a program."""
        return f"{self.module}.{self.name}"


@dataclass(eq=False)
class StandIn:
    """What stands for an object whose class was not loaded: its class, and what it was given."""

    made_by: Any  # Any: a name, or another stand-in that the pickle calls
    arguments: Any = ()
    state: Any = None
    items: list[Any] = field(default_factory=list)


class PlainDict(dict[Any, Any]):
    """A dictionary of a class that keeps nothing but its items, such as OrderedDict."""


class Stream(Protocol):
    """What is read of a file: an open binary file, or a memory map."""

    def read(self, count: int = ..., /) -> bytes:
        """Return the next bytes."""
        ...

    def readline(self) -> bytes:
        """Return the next line."""
        ...

    def tell(self) -> int:
        """Return the position."""
        ...


# Any: the values of a pickle.
Rebuild = Callable[..., Any]


def read(
    stream: Stream,
    *,
    rebuild: Mapping[str, Rebuild],
    persistent: Callable[[Any], Any],
    names: set[str],
) -> Any:
    """Return the next object of a stream.

    `rebuild` says, by full name, how arguments become data; `persistent` does so for persistent
    ids. All names that the pickle refers to are added to `names`, also when it turns out damaged.
    Raises `Unreadable`.
    """
    machine = _Machine(rebuild, persistent, names)
    try:
        # It is declared to need a whole file, and reads, nothing else.
        operations = pickletools.genops(stream)  # type: ignore[arg-type]
        for count, (operation, value, _) in enumerate(operations):
            if count > MOST_INSTRUCTIONS:
                raise Unreadable(f"it has more than {MOST_INSTRUCTIONS} instructions")
            if operation.name == "STOP":
                return machine.pop()
            machine.execute(operation.name, value)
    except Unreadable:
        raise
    # Damage shows wherever it lies: a stack that is too short, a key that cannot be one.
    except (
        ArithmeticError,
        AssertionError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as error:
        raise Unreadable(str(error) or type(error).__name__) from error
    raise Unreadable("it has no end")


CONTAINERS: dict[str, Rebuild] = {
    "collections.OrderedDict": lambda *items: PlainDict(*items[:1]),
    "collections.defaultdict": lambda *_: PlainDict(),
    "collections.Counter": lambda *items: PlainDict(*items[:1]),
    "builtins.dict": lambda *items: PlainDict(*items[:1]),
    "__builtin__.dict": lambda *items: PlainDict(*items[:1]),
    "builtins.list": lambda *items: list(*items[:1]),
    "__builtin__.list": lambda *items: list(*items[:1]),
    # Sets, as lists: nothing looks for a member, and a member need not be hashable.
    "builtins.set": lambda *items: list(*items[:1]),
    "__builtin__.set": lambda *items: list(*items[:1]),
    "builtins.frozenset": lambda *items: list(*items[:1]),
    "_codecs.encode": lambda text, *_: text.encode("latin-1"),
}
"""Plain containers, and the bytes of older protocols; their contents are kept."""

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_DICT": PlainDict,
    "EMPTY_SET": list,
}
_IGNORED = frozenset({"PROTO", "FRAME"})
_MARK: Any = object()


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(
        self, rebuild: Mapping[str, Rebuild], persistent: Callable[[Any], Any], names: set[str]
    ) -> None:
        self._rebuild = {**CONTAINERS, **rebuild}
        self._persistent = persistent
        self._names = names
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        """Return the topmost value."""
        value = self._stack.pop()
        if value is _MARK:
            raise Unreadable("a mark stands where a value is expected")
        return value

    def execute(self, name: str, value: Any) -> None:
        """Execute one instruction."""
        if name in _IGNORED:
            return
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            self._stack.append(_EMPTY[name]())
        elif (step := _STEPS.get(name)) is not None:
            step(self, value)
        elif name in _LITERALS:
            self._stack.append(value)
        else:
            raise Unreadable(f"it has the instruction {name}, which no checkpoint needs")

    # -- plain values --------------------------------------------------------------------------

    def mark(self, _: Any) -> None:
        self._stack.append(_MARK)

    def drop(self, _: Any) -> None:
        self._stack.pop()

    def drop_to_mark(self, _: Any) -> None:
        self._above_mark()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def list_of(self, _: Any) -> None:
        self._stack.append(self._above_mark())

    def tuple_of(self, _: Any) -> None:
        self._stack.append(tuple(self._above_mark()))

    def tuple_of_1(self, _: Any) -> None:
        self._stack.append((self.pop(),))

    def tuple_of_2(self, _: Any) -> None:
        second, first = self.pop(), self.pop()
        self._stack.append((first, second))

    def tuple_of_3(self, _: Any) -> None:
        third, second, first = self.pop(), self.pop(), self.pop()
        self._stack.append((first, second, third))

    def dictionary(self, _: Any) -> None:
        content = PlainDict()
        self._put_items(content, self._above_mark())
        self._stack.append(content)

    def append(self, _: Any) -> None:
        value = self.pop()
        self._add(self._stack[-1], [value])

    def append_all(self, _: Any) -> None:
        values = self._above_mark()
        self._add(self._stack[-1], values)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self._put_items(self._stack[-1], [key, value])

    def set_items(self, _: Any) -> None:
        values = self._above_mark()
        self._put_items(self._stack[-1], values)

    # -- the memo ------------------------------------------------------------------------------

    def remember(self, index: Any) -> None:
        self._memo[int(index)] = self._stack[-1]

    def remember_next(self, _: Any) -> None:
        self._memo[len(self._memo)] = self._stack[-1]

    def recall(self, index: Any) -> None:
        self._stack.append(self._memo[int(index)])

    # -- names and calls -----------------------------------------------------------------------

    def global_name(self, value: Any) -> None:
        module, _, name = str(value).partition(" ")
        self._stack.append(self._named(module, name))

    def global_from_stack(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise Unreadable("a name is not a text")
        self._stack.append(self._named(module, name))

    def extension(self, code: Any) -> None:
        # A registered code would stand for a name, perhaps for an object loaded before.
        self._stack.append(self._named("copyreg", f"extension_{int(code)}"))

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        self._stack.append(self._made(function, arguments))

    def new_object(self, _: Any) -> None:
        arguments, kind = self.pop(), self.pop()
        self._stack.append(self._made(kind, arguments))

    def new_object_with_keywords(self, _: Any) -> None:
        keywords, arguments, kind = self.pop(), self.pop(), self.pop()
        made = self._made(kind, arguments)
        if isinstance(made, StandIn) and keywords:
            made.state = keywords
        self._stack.append(made)

    def instance(self, value: Any) -> None:
        module, _, name = str(value).partition(" ")
        arguments = tuple(self._above_mark())
        self._stack.append(self._made(self._named(module, name), arguments))

    def object_of_class(self, _: Any) -> None:
        kind, *arguments = self._above_mark()
        self._stack.append(self._made(kind, tuple(arguments)))

    def build(self, _: Any) -> None:
        state = self.pop()
        target = self._stack[-1]
        if hasattr(target, "take_state"):
            target.take_state(state)
        elif isinstance(target, StandIn):
            target.state = state
        elif not isinstance(target, PlainDict | list | Name):
            raise Unreadable(f"it gives a state to a {type(target).__name__}")

    def persistent_id(self, value: Any) -> None:
        self._stack.append(self._persistent(value))

    def persistent_id_from_stack(self, _: Any) -> None:
        self._stack.append(self._persistent(self.pop()))

    # -- parts ---------------------------------------------------------------------------------

    def _named(self, module: str, name: str) -> Name:
        found = Name(module, name)
        self._names.add(str(found))
        return found

    def _made(self, kind: Any, arguments: Any) -> Any:
        if not isinstance(arguments, tuple):
            raise Unreadable("a call has no tuple of arguments")
        rebuild = self._rebuild.get(str(kind)) if isinstance(kind, Name) else None
        return StandIn(kind, arguments) if rebuild is None else rebuild(*arguments)

    def _above_mark(self) -> list[Any]:
        place = len(self._stack)
        while self._stack[place - 1] is not _MARK:
            place -= 1
            if place == 0:
                raise Unreadable("a mark is missing")
        values = self._stack[place:]
        del self._stack[place - 1 :]
        return values

    def _add(self, target: Any, values: list[Any]) -> None:
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, StandIn):
            target.items.extend(values)
        else:
            raise Unreadable(f"it appends to a {type(target).__name__}")

    def _put_items(self, target: Any, values: list[Any]) -> None:
        if len(values) % 2:
            raise Unreadable("a key has no value")
        if isinstance(target, PlainDict):
            for key, value in zip(values[::2], values[1::2], strict=True):
                target[_key(key)] = value
        elif isinstance(target, StandIn):
            target.items.extend(values[1::2])
        else:
            raise Unreadable(f"it sets items of a {type(target).__name__}")


def _key(key: Any) -> Hashable:
    """Return a key that is cheap to hash: a nested tuple can stand for more than any memory."""
    if key is None or isinstance(key, str | int | float | bytes | Name | StandIn):
        return key
    return StandIn(type(key).__name__)


_LITERALS = frozenset(
    operation.name
    for operation in pickletools.opcodes
    if operation.arg is not None
    and operation.stack_after
    and operation.name
    not in {"GLOBAL", "INST", "PERSID", "GET", "BINGET", "LONG_BINGET", "EXT1", "EXT2", "EXT4"}
)
"""Instructions that carry the value that they push: numbers, texts, bytes."""

_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.drop,
    "POP_MARK": _Machine.drop_to_mark,
    "DUP": _Machine.duplicate,
    "LIST": _Machine.list_of,
    "FROZENSET": _Machine.list_of,
    "TUPLE": _Machine.tuple_of,
    "TUPLE1": _Machine.tuple_of_1,
    "TUPLE2": _Machine.tuple_of_2,
    "TUPLE3": _Machine.tuple_of_3,
    "DICT": _Machine.dictionary,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.append_all,
    "ADDITEMS": _Machine.append_all,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "PUT": _Machine.remember,
    "BINPUT": _Machine.remember,
    "LONG_BINPUT": _Machine.remember,
    "MEMOIZE": _Machine.remember_next,
    "GET": _Machine.recall,
    "BINGET": _Machine.recall,
    "LONG_BINGET": _Machine.recall,
    "GLOBAL": _Machine.global_name,
    "STACK_GLOBAL": _Machine.global_from_stack,
    "EXT1": _Machine.extension,
    "EXT2": _Machine.extension,
    "EXT4": _Machine.extension,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.new_object,
    "NEWOBJ_EX": _Machine.new_object_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_of_class,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent_id,
    "BINPERSID": _Machine.persistent_id_from_stack,
}
