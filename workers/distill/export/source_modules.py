"""Read modules of ours as text: their top-level statements, and what those mention.

What `source_bundle` copies from.
"""

import ast
import functools
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TypeAlias

PACKAGE = "workers"
Function: TypeAlias = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension: TypeAlias = ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)


class CannotBundleError(Exception):
    """Code uses something that has no place in a file of its own; the message says what."""


@dataclass(frozen=True)
class Library:
    """A name that comes from a library."""

    module: str
    name: str | None
    alias: str


@dataclass(frozen=True)
class Own:
    """A top-level name of one of our modules; without `name`, the module."""

    module: str
    name: str | None = None


Meaning: TypeAlias = Own | Library


@dataclass(frozen=True)
class Mention:
    """A place in a module's text that means a top-level name."""

    node: ast.expr
    target: Meaning
    within: ast.JoinedStr | None = None
    """The f-string around it, whose parts have no reliable places."""


@dataclass(eq=False)
class Unit:
    """A statement at the top of a module: what is kept or left out."""

    module: "SourceModule"
    node: ast.stmt
    names: tuple[str, ...]
    remark: ast.stmt | None = None
    """The string below a constant that says what it is."""

    def __post_init__(self) -> None:
        node = self.node
        if isinstance(node, ast.ClassDef):
            self.head = ast.ClassDef(node.name, node.bases, node.keywords, [], node.decorator_list)
            """A class without its body: bases and decorators."""


@dataclass
class Scan:
    """What some code mentions."""

    references: list[Mention] = field(default_factory=list)
    attributes: set[str] = field(default_factory=set)
    annotations: list[tuple[ast.AST, ast.expr]] = field(default_factory=list)
    """With what they belong to: an argument, a function (its result) or an assignment."""
    bound: set[str] = field(default_factory=set)
    """Names of local variables."""


class SourceModule:
    """A module of ours: its text, its top-level statements, and what its names mean."""

    def __init__(self, name: str) -> None:
        self.name = name
        source = inspect.getsource(importlib.import_module(name))
        self.text = source.encode()
        self.units: list[Unit] = []
        self.imports: dict[str, Meaning] = {}
        self._starts = [0]
        for line in self.text.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        for node in ast.parse(source).body:
            self._add(node)
        self.by_name = {name: unit for unit in self.units for name in unit.names}

    def meaning(self, name: str) -> Meaning | None:
        """Return what a top-level name means; None for one that the module does not define."""
        return Own(self.name, name) if name in self.by_name else self.imports.get(name)

    def span(self, node: ast.AST) -> tuple[int, int]:
        """Return where a node's text begins and ends, in bytes."""
        start, end = self._starts[node.lineno - 1], self._starts[node.end_lineno - 1]  # type: ignore[attr-defined]  # every statement and expression has a place
        return start + node.col_offset, end + node.end_col_offset  # type: ignore[attr-defined]  # the same

    def lines(self, node: ast.stmt) -> tuple[int, int]:
        """Return where a statement's lines begin and end, decorators included."""
        first = min(line.lineno for line in (node, *getattr(node, "decorator_list", ())))
        last = node.end_lineno or node.lineno
        return self._starts[first - 1], self._starts[last]

    def _add(self, node: ast.stmt) -> None:
        match node:
            case ast.Import():
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    library = alias.name if alias.asname else name
                    self.imports[name] = Library(library, None, name)
            case ast.ImportFrom():
                for alias in node.names:
                    name = alias.asname or alias.name
                    self.imports[name] = _imported(node.module or "", alias.name, name)
            case ast.FunctionDef() | ast.ClassDef():
                self.units.append(Unit(self, node, (node.name,)))
            case ast.Assign() | ast.AnnAssign():
                self.units.append(Unit(self, node, tuple(stored_names(node))))
            case ast.Expr(ast.Constant(str())) if self.units:
                self.units[-1].remark = node
            case _:
                pass  # the docstring; imports for type checkers alone


@functools.cache
def read(name: str) -> SourceModule:
    """Return a module by its whole name."""
    return SourceModule(name)


def _imported(module: str, name: str, alias: str) -> Meaning:
    if module.partition(".")[0] != PACKAGE:
        return Library(module, name, alias)
    is_package = hasattr(importlib.import_module(module), "__path__")
    inner = f"{module}.{name}"
    if is_package and importlib.util.find_spec(inner) is not None:
        return Own(inner)
    return Own(module, name)


def stored_names(node: ast.AST) -> Iterator[str]:
    """Yield the names that code binds in its own scope."""
    for child in ast.iter_child_nodes(node):
        match child:
            case ast.Name(ctx=ast.Store()):
                yield child.id
            case ast.FunctionDef() | ast.ClassDef():
                yield child.name
                continue
            case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)):
                yield name
            case ast.MatchStar(name=str(name)):
                yield name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in child.names)
        if not isinstance(child, (*SCOPES, *COMPREHENSIONS)):
            yield from stored_names(child)


Resolve: TypeAlias = Callable[[Meaning | None], Meaning | None]
"""Follows a name to the module that defines it."""


def scan(module: SourceModule, parts: Iterable[ast.AST], resolve: Resolve) -> Scan:
    """Return what parts of a module mention, with regard to local variables.

    Raises `CannotBundleError` where a module of ours is handed on as a value.
    """
    scanner = _Scanner(module, resolve)
    for part in parts:
        scanner.visit(part)
    return scanner.found


class _Scanner(ast.NodeVisitor):
    """Find what code of a module mentions, with regard to local variables."""

    def __init__(self, module: SourceModule, resolve: Resolve) -> None:
        self.found = Scan()
        self._module, self._resolve = module, resolve
        self._scopes: list[set[str]] = []
        self._string: ast.JoinedStr | None = None

    # The names of these methods are the library's.

    def visit_Name(self, node: ast.Name) -> None:
        target = self._target(node)
        if isinstance(target, Own) and target.name is None:
            raise CannotBundleError(f"{self._module.name} hands on the module {node.id}")
        if target is not None:
            self.found.references.append(Mention(node, target, self._string))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        target = self._target(node)
        if target is not None:
            self.found.references.append(Mention(node, target, self._string))
            return
        self.found.attributes.add(node.attr)
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        match node:
            case ast.Call(func=ast.Name("getattr"), args=[_, ast.Constant(str(name)), *_]):
                self.found.attributes.add(name)
        self.generic_visit(node)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        outer, self._string = self._string, self._string or node
        self.generic_visit(node)
        self._string = outer

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.found.annotations.append((node, node.annotation))
        for part in (node.target, node.value):
            if part is not None:
                self.visit(part)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        for decorator in node.decorator_list:
            self.visit(decorator)
        if node.returns is not None:
            self.found.annotations.append((node, node.returns))
        self._function(node, node.body)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._function(node, [node.body])

    def visit_ListComp(self, node: Comprehension) -> None:
        self.visit(node.generators[0].iter)
        bound = set[str]()
        for generator in node.generators:
            bound.update(stored_names(generator))
        self._within(bound, (part for part in ast.iter_child_nodes(node)))

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp  # noqa: N815 - the same

    def _function(self, node: Function, body: Iterable[ast.AST]) -> None:
        given = node.args
        for default in (*given.defaults, *given.kw_defaults):
            if default is not None:
                self.visit(default)
        arguments = [*given.posonlyargs, *given.args, *given.kwonlyargs]
        arguments += [one for one in (given.vararg, given.kwarg) if one is not None]
        for one in arguments:
            if one.annotation is not None:
                self.found.annotations.append((one, one.annotation))
        self._within({one.arg for one in arguments} | set(stored_names(node)), body)

    def _within(self, bound: set[str], parts: Iterable[ast.AST]) -> None:
        self.found.bound |= bound
        self._scopes.append(bound)
        for part in parts:
            self.visit(part)
        self._scopes.pop()

    def _target(self, node: ast.expr) -> Meaning | None:
        """Return what a name, or a name of a module of ours, means; None for what is local."""
        match node:
            case ast.Name():
                if any(node.id in scope for scope in self._scopes):
                    return None
                return self._resolve(self._module.meaning(node.id))
            case ast.Attribute(value=value):
                module = self._target(value)
                if isinstance(module, Own) and module.name is None:
                    return self._resolve(Own(module.module, node.attr))
        return None
