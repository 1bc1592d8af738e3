"""Collect definitions from our modules, with all that they use, in the text of one file.

The text is that of the modules, so it cannot drift from them. What no kept code mentions is left
out: functions, constants, and methods of classes, by their names. Names of other modules of ours
lose their prefix (`interface.Network` becomes `Network`), and get one with `_` where two would be
equal. Annotations that name something left out are dropped, and shapes become plain tensors.
"""

import ast
import builtins
import copy
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

from workers.distill.export import source_modules
from workers.distill.export.source_modules import (
    CannotBundleError,
    Library,
    Own,
    Scan,
    SourceModule,
    Unit,
)

SHAPES = "jaxtyping"
"""Its annotations are tensors with a shape in words."""
IGNORED = re.compile(rb"  # (?:type: ignore|noqa)[^\n]*")


class Bundle:
    """Definitions of our modules and all that they use, as the text of one file."""

    def __init__(self, reserved: Iterable[str] = (), imports: Iterable[Library] = ()) -> None:
        """Give none of the names that are reserved; have some imports in any case."""
        self._modules: dict[str, SourceModule] = {}
        self._reserved = {*reserved, *dir(builtins)}
        self._imports = {library.alias: library for library in imports}
        self._kept: dict[Unit, Scan] = {}
        self._parts: dict[Unit, list[ast.stmt]] = {}
        self._attributes: set[str] = set()

    def add(self, module: str, name: str) -> None:
        """Keep a definition, with all that it uses.

        Raises `CannotBundleError` for what cannot stand in a file of its own.
        """
        self._keep([Own(module, name)])

    def name_of(self, module: str, name: str) -> str:
        """Return what a kept definition is called in the text."""
        return self._names()[Own(module, name)]

    def resolve(self, meaning: source_modules.Meaning | None) -> source_modules.Meaning | None:
        """Follow a name to the module that defines it."""
        while isinstance(meaning, Own) and meaning.name is not None:
            module = self._module(meaning.module)
            if meaning.name in module.by_name:
                return meaning
            further = module.meaning(meaning.name)
            if further is None:
                raise CannotBundleError(f"{meaning.module} does not define {meaning.name}")
            meaning = further
        return meaning

    def text(self) -> str:
        """Return imports and definitions, each after what it needs when it is executed."""
        names = self._names()

        def named(meaning: Own) -> str | None:
            found = self.resolve(meaning)
            return names.get(found) if isinstance(found, Own) else None

        parts = [
            _text(unit, self._parts[unit], self._kept[unit], names, named)
            for module in self._in_order()
            for unit in module.units
            if unit in self._kept
        ]
        return "\n".join(self._import_lines()) + "\n\n\n" + "\n\n".join(parts)

    def _module(self, name: str) -> SourceModule:
        if name not in self._modules:
            self._modules[name] = source_modules.read(name)
        return self._modules[name]

    def _keep(self, wanted: list[Own]) -> None:
        """Keep units until nothing more is mentioned: each may bring methods of others to life."""
        while wanted:
            for target in wanted:
                unit = self._unit(target)
                if unit not in self._kept:
                    self._kept[unit] = Scan()
                    self._parts[unit] = []
            wanted = []
            for unit in list(self._kept):
                parts = list(_needed(unit, self._attributes))
                if parts == self._parts[unit]:
                    continue
                found = source_modules.scan(unit.module, parts, self.resolve)
                self._parts[unit], self._kept[unit] = parts, found
                self._attributes |= found.attributes
                wanted += [one.target for one in found.references if isinstance(one.target, Own)]
                # Once more, with the attributes that were found just now.
                wanted.append(Own(unit.module.name, unit.names[0]))

    def _unit(self, target: Own) -> Unit:
        unit = self._module(target.module).by_name.get(target.name or "")
        if unit is None:
            raise CannotBundleError(f"{target.module} has no {target.name} at its top level")
        # Our checks of arguments are made before, where they can be refused.
        if isinstance(unit.node, ast.ClassDef) and "pydantic" in ast.unparse(unit.node):
            raise CannotBundleError(f"{target.module}.{target.name} needs pydantic")
        return unit

    def _in_order(self) -> list[SourceModule]:
        """Return the modules, each after those that it imports."""
        ordered: dict[str, SourceModule] = {}

        def visit(module: SourceModule) -> None:
            for meaning in module.imports.values():
                if isinstance(meaning, Own) and meaning.module in self._modules:
                    visit(self._modules[meaning.module])
            ordered.setdefault(module.name, module)

        for module in list(self._modules.values()):
            visit(module)
        return list(ordered.values())

    def _libraries(self) -> dict[str, Library]:
        """Return what is imported from libraries, by the name that it has in the text."""
        found = {**self._imports, "Tensor": Library("torch", "Tensor", "Tensor")}
        for unit, scan in self._kept.items():
            mentioned = [one.target for one in scan.references]
            for _, annotation in scan.annotations:
                mentioned += [
                    meaning
                    for node in ast.walk(annotation)
                    if isinstance(node, ast.Name)
                    and (meaning := unit.module.meaning(node.id)) is not None
                ]
            for target in mentioned:
                if not isinstance(target, Library) or target.module == SHAPES:
                    continue
                if found.setdefault(target.alias, target) != target:
                    raise CannotBundleError(f"{target.alias} means two things")
        return found

    def _import_lines(self) -> Iterator[str]:
        """Yield the imports, those of the language first."""
        plain, named = set[tuple[bool, str]](), dict[str, set[str]]()
        for one in self._libraries().values():
            renamed = f" as {one.alias}" if one.alias != (one.name or one.module) else ""
            if one.name is None:
                plain.add((_is_foreign(one.module), f"import {one.module}{renamed}"))
            else:
                named.setdefault(one.module, set()).add(f"{one.name}{renamed}")
        lines = plain | {
            (_is_foreign(module), f"from {module} import {', '.join(sorted(names))}")
            for module, names in named.items()
        }
        for is_foreign in (False, True):
            if is_foreign:
                yield ""
            of_kind = [line for kind, line in lines if kind is is_foreign]
            yield from sorted(of_kind, key=lambda line: (line.startswith("from"), line))

    def _names(self) -> dict[Own, str]:
        """Return what each kept definition is called: as it was, where that is unequivocal."""
        taken = {*self._reserved, *self._libraries()}
        for scan in self._kept.values():
            taken |= scan.bound
        all_names = [name for unit in self._kept for name in unit.names]
        modules = {unit.module.name for unit in self._kept}
        return {
            Own(unit.module.name, name): (
                name
                if name not in taken and all_names.count(name) == 1
                else f"{_label(unit.module.name, modules)}_{name.lstrip('_')}"
            )
            for unit in self._kept
            for name in unit.names
        }


def _is_foreign(module: str) -> bool:
    return module.partition(".")[0] not in sys.stdlib_module_names


def _label(module: str, others: Iterable[str]) -> str:
    """Return the last part of a module's name, or the last two where others end in the same."""
    *_, folder, last = module.split(".")
    is_alone = sum(other.rpartition(".")[2] == last for other in others) == 1
    return last if is_alone else f"{folder}_{last}"


def _needed(unit: Unit, attributes: set[str]) -> Iterator[ast.stmt]:
    """Yield the parts of a statement that are kept where such attributes are mentioned."""
    node = unit.node
    if not isinstance(node, ast.ClassDef):
        yield node
        return
    # Fields of data, and protocols, by whose members objects are told apart, are kept whole.
    marks = {ast.unparse(one).partition("(")[0] for one in (*node.decorator_list, *node.bases)}
    is_whole = bool(marks & {"dataclass", "Protocol"})
    yield unit.head
    for member in node.body:
        match member:
            case ast.FunctionDef(name=name):
                is_special = name == "forward" or name.startswith("__")
                is_kept = is_special or name in attributes or "Protocol" in marks
            case ast.AnnAssign(target=ast.Name(id=name)):
                is_kept = is_whole or (name in attributes and member.value is not None)
            case ast.Assign():
                names = source_modules.stored_names(member)
                is_kept = is_whole or any(name in attributes for name in names)
            case _:
                is_kept = False
        if is_kept:
            yield member


_Meanings: TypeAlias = Callable[[Own], str | None]
"""Returns what a name of ours is called in the text; None for what is left out."""


def _text(
    unit: Unit,
    parts: Sequence[ast.stmt],
    scan: Scan,
    names: dict[Own, str],
    named: _Meanings,
) -> str:
    """Return the text of a kept statement with its names and annotations replaced."""
    module, node = unit.module, unit.node
    edits = [*_left_out(unit, parts), *_renamed(module, scan, names)]
    for owner, annotation in scan.annotations:
        edits += _retyped(unit, owner, annotation, named)
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        edits += _retitled(module, node, names[Own(module.name, node.name)])
    if isinstance(node, ast.Assign | ast.AnnAssign):
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            for one in ast.walk(target):
                if isinstance(one, ast.Name):
                    edits.append((*module.span(one), names[Own(module.name, one.id)]))
    start, end = module.lines(node)
    if unit.remark is not None:
        end = module.lines(unit.remark)[1]
    text = bytearray(module.text[start:end])
    for first, last, replacement in sorted(set(edits), reverse=True):
        text[first - start : last - start] = replacement.encode()
    plain = IGNORED.sub(b"", bytes(text)).decode()
    return re.sub(r"\n{3,}", "\n\n", plain).rstrip() + "\n"


Edit: TypeAlias = tuple[int, int, str]


def _left_out(unit: Unit, parts: Sequence[ast.stmt]) -> Iterator[Edit]:
    node, module = unit.node, unit.module
    if not isinstance(node, ast.ClassDef):
        return
    first = node.body[0]
    was_kept = isinstance(first, ast.Expr)  # the docstring
    for member in node.body:
        if isinstance(member, ast.Expr):
            # The docstring of the class, or a remark on the member before it.
            is_kept = was_kept
        else:
            is_kept = was_kept = member in parts
        if not is_kept:
            yield (*module.lines(member), "")
    if not ast.get_docstring(node) and not any(member in parts for member in node.body):
        yield (module.lines(node)[1], module.lines(node)[1], "    pass\n")


def _renamed(module: SourceModule, scan: Scan, names: dict[Own, str]) -> Iterator[Edit]:
    for reference in scan.references:
        if not isinstance(reference.target, Own):
            continue
        name = names[reference.target]
        if reference.within is None:
            yield (*module.span(reference.node), name)
        elif ast.unparse(reference.node) != name:
            given = {
                ast.dump(one.node): names[one.target]
                for one in scan.references
                if one.within is reference.within and isinstance(one.target, Own)
            }
            changed = _Renamer(given).visit(copy.deepcopy(reference.within))
            yield (*module.span(reference.within), ast.unparse(changed))


class _Renamer(ast.NodeTransformer):
    def __init__(self, names: dict[str, str]) -> None:
        self._names = names

    def visit(self, node: ast.AST) -> ast.AST:
        """Return the node, or the name that is to stand in its place."""
        name = self._names.get(ast.dump(node))
        if name is not None:
            return ast.Name(name, ast.Load())
        changed: ast.AST = self.generic_visit(node)
        return changed


def _retitled(
    module: SourceModule, node: ast.FunctionDef | ast.ClassDef, name: str
) -> Iterator[Edit]:
    word = b"class " if isinstance(node, ast.ClassDef) else b"def "
    start = module.text.index(word, module.span(node)[0]) + len(word)
    yield (start, start + len(node.name.encode()), name)


def _retyped(
    unit: Unit, owner: ast.AST, annotation: ast.expr, meanings: _Meanings
) -> Iterator[Edit]:
    """Yield how an annotation is replaced: by one without shapes, or by nothing."""
    module = unit.module
    start, end = module.span(annotation)
    try:
        yield (
            start,
            end,
            ast.unparse(_Annotation(module, meanings).visit(copy.deepcopy(annotation))),
        )
    except _LeftOutError:
        match owner:
            case ast.FunctionDef():
                yield (module.text.rindex(b" ->", 0, start), end, "")
            case ast.AnnAssign() if owner.value is None or owner in _body(unit.node):
                yield (start, end, "object")  # a field needs an annotation
            case ast.AnnAssign():
                yield (module.span(owner.target)[1], end, "")
            case _:
                yield (module.text.rindex(b":", 0, start), end, "")


def _body(node: ast.stmt) -> list[ast.stmt]:
    return node.body if isinstance(node, ast.ClassDef) else []


class _LeftOutError(Exception):
    """An annotation names something that is not in the text."""


class _Annotation(ast.NodeTransformer):
    """Say an annotation in names of the text: `Float[Tensor, "N C"]` as `Tensor`."""

    def __init__(self, module: SourceModule, meanings: _Meanings) -> None:
        self._module, self._meanings = module, meanings

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        if isinstance(node.value, ast.Name):
            meaning = self._module.meaning(node.value.id)
            if isinstance(meaning, Library) and meaning.module == SHAPES:
                return ast.Name("Tensor", ast.Load())
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if not isinstance(node.value, str):
            return node
        # A name in quotes, of what is defined further down.
        inner: ast.AST = self.visit(ast.parse(node.value, mode="eval").body)
        return inner

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        match node.value:
            case ast.Name(id=name):
                outer = self._module.meaning(name)
                if isinstance(outer, Library):
                    return node
                if isinstance(outer, Own) and outer.name is None:
                    return self._own(Own(outer.module, node.attr))
        raise _LeftOutError

    def visit_Name(self, node: ast.Name) -> ast.AST:
        meaning = self._module.meaning(node.id)
        if isinstance(meaning, Own):
            return self._own(meaning)
        if meaning is None and node.id not in dir(builtins):
            raise _LeftOutError
        return node

    def _own(self, meaning: Own) -> ast.AST:
        name = self._meanings(meaning)
        if name is None:
            raise _LeftOutError
        return ast.Name(name, ast.Load())
