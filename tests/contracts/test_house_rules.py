"""House rules that a machine can check; each rule is also shown a breach that it must notice.

A rule yields one line per breach. Sizes are advice and are not checked.
"""

import ast
import io
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.contracts import source

Nodes = Sequence[ast.AST]
Rule = Callable[[Path, Nodes], Iterator[str]]

SERVICE = ("api", "models_registry", "retort", "workers", "migrations")
CODE = (*SERVICE, "tests", "benchmarks", "examples")

FORBIDDEN_NAMES = {"utils", "common", "misc", "manager", "handler", "data", "info"}
# A folder of loaders and partitions inside the engine, named so by the tree in the style guide.
ALLOWED_FOLDERS = {Path("workers/distill/data"), Path("tests/distill/data")}

MAY_READ_ENVIRONMENT = {
    "models_registry/settings.py": "the settings of every process",
    "workers/isolated_process.py": "lets an engine read the libraries that its own names",
    "retort/cli/up.py": "hands its own environment to the processes that it starts",
    "workers/engine_launcher.py": "picks the few variables that an engine may see",
    "workers/engine_server.py": "gives each fork the variables that its engine may see",
    "workers/distill/runtime/ranks.py": "tells NCCL and gloo to use the loopback interface alone",
}
MAY_CATCH_EVERYTHING = {
    "api/errors.py": "the API's last handler",
    "api/readiness.py": "hands what a check raised to whoever waits for it",
    "workers/runner.py": "the supervisor's own failure, which its jobs must be told of",
    "workers/maintenance.py": "one search that fails in any way, which its study is told of",
    "workers/student_files.py": "a model card is never worth a student",
    "retort/cli/shell.py": "the command line's last resort: a sentence, not a traceback",
    "workers/distill/run/run.py": "top of the engine",
    "workers/distill/run/client_process.py": "top of a client of a federation",
    "workers/distill/run/failures.py": "what one member of a group meets stays its own",
    "workers/distill/run/build.py": "a compiler that fails in any way",
    "workers/distill/run/finish.py": "a drawing library that fails in any way",
    "workers/distill/networks/graphs/onnx_file.py": "compiled libraries may raise anything",
    "workers/distill/training/checkpoint.py": "a damaged file: the one before is tried",
    "workers/distill/inspection/uploads.py": "top of the inspection of uploads",
    "workers/distill/export/program.py": "top of an export",
    "workers/distill/export/predict.py": "top of a prediction",
    "workers/distill/inspection/samples.py": "top of a sample sheet",
    "workers/engine_server.py": "whatever an import raises: it is told, and engines start cold",
}
MAY_WRITE_JOB_STATE = {"models_registry/jobs/transitions.py"}
# The client names what it receives as the server names what it sends, so it is a world of its own.
WORLDS = (("api", "models_registry", "workers", "migrations"), ("retort",))
SHARED_CLASS_NAMES = {
    "Arguments": "the keyword arguments of one network, which the table of networks collects",
    "WideArguments": "the same, with factors of width",
    "Block": "the residual block of one architecture, under the name that all papers give it",
    "DOT": "the settings of this optimizer, and the optimizer",
    "LAMB": "the settings of this optimizer, and the optimizer",
}


def at(path: Path, node: ast.AST, what: str) -> str:
    """Return one breach as `file:line: what`."""
    return f"{path}:{getattr(node, 'lineno', 1)}: {what}"


def no_print(path: Path, nodes: Nodes) -> Iterator[str]:
    """Forbid `print`: processes log, the engine reports, the command line has its console."""
    for node in nodes:
        match node:
            case ast.Call(func=ast.Name(id="print" | "pprint")):
                yield at(path, node, "print")


def no_environment(path: Path, nodes: Nodes) -> Iterator[str]:
    """Forbid reading the environment anywhere but in settings."""
    if str(path) in MAY_READ_ENVIRONMENT:
        return
    for node in nodes:
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr="environ" | "environb" | "getenv"):
                yield at(path, node, f"os.{node.attr}")
            case ast.ImportFrom(module="os", names=names):
                yield from (
                    at(path, node, f"from os import {name.name}")
                    for name in names
                    if name.name in {"environ", "environb", "getenv"}
                )


def no_empty_names(path: Path, nodes: Nodes) -> Iterator[str]:
    """Forbid names that do not say what they hold; fields of bodies are the contract's own."""
    for part in (path, *path.parents):
        if part.stem.removeprefix("test_") in FORBIDDEN_NAMES and part not in ALLOWED_FOLDERS:
            yield at(path, nodes[0], f"file or folder {part.name}")
    fields = fields_of(nodes)
    for node in nodes:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                pass
            case ast.ClassDef(name=name) | ast.arg(arg=name):
                pass
            case ast.Name(id=name, ctx=ast.Store()) if node not in fields:
                pass
            case _:
                continue
        if name.lower() in FORBIDDEN_NAMES:
            yield at(path, node, f"name {name}")


def fields_of(nodes: Nodes) -> set[ast.expr]:
    """Return the names that are annotated directly in a class's body."""
    return {
        statement.target
        for node in nodes
        if isinstance(node, ast.ClassDef)
        for statement in node.body
        if isinstance(statement, ast.AnnAssign)
    }


def no_broad_except(path: Path, nodes: Nodes) -> Iterator[str]:
    """Forbid swallowing everything, but at the top of a task, of the API and of the engine.

    Cleaning up and raising again swallows nothing.
    """
    if str(path) in MAY_CATCH_EVERYTHING:
        return
    for node in nodes:
        if not isinstance(node, ast.ExceptHandler):
            continue
        if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None:
            continue
        caught = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
        for kind in caught:
            match kind:
                case None:
                    yield at(path, node, "bare except")
                case ast.Name(id="Exception" | "BaseException"):
                    yield at(path, node, f"except {kind.id}")


def no_state_write(path: Path, nodes: Nodes) -> Iterator[str]:
    """Forbid writing a job's state outside the one door for it."""
    if str(path) in MAY_WRITE_JOB_STATE:
        return
    for node in nodes:
        match node:
            case ast.Attribute(attr="state", ctx=ast.Store()) if names_a_job(node.value):
                yield at(path, node, ast.unparse(node) + " =")
            case ast.Call(func=ast.Name(id="setattr"), args=[owner, ast.Constant("state"), *_]):
                if names_a_job(owner):
                    yield at(path, node, ast.unparse(node))
            case ast.Call(func=ast.Attribute(attr="values", value=statement), keywords=keywords):
                of_jobs = re.search(r"update\((\w+\.)*Job(Row)?\)", ast.unparse(statement))
                if of_jobs and any(keyword.arg == "state" for keyword in keywords):
                    yield at(path, node, "update(Job) ... values(state=...)")


def names_a_job(owner: ast.expr) -> bool:
    """Tell whether an expression reads like a job: `job`, `self.job`, `queued_job`."""
    last = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
    return last == "job" or last.endswith("_job")


def no_assert(path: Path, nodes: Nodes) -> Iterator[str]:
    """Forbid `assert` outside tests: callers get named errors."""
    for node in nodes:
        if isinstance(node, ast.Assert):
            yield at(path, node, "assert")


def no_clock_bound(path: Path, nodes: Nodes) -> Iterator[str]:
    """Forbid that a test falls because a machine stood still: see tests/waiting.py."""
    for node in nodes:
        if not isinstance(node, ast.Assert):
            continue
        for part in ast.walk(node.test):
            if (
                isinstance(part, ast.BinOp)
                and isinstance(part.op, ast.Sub)
                and re.search(r"\b(monotonic|perf_counter|time)\(\)$", ast.unparse(part.left))
                and re.search(re.escape(ast.unparse(part)) + r" <", ast.unparse(node.test))
            ):
                yield at(path, node, "time that has passed is less than something")


# Files without these words are not cut into tokens, which takes longer than all the rules.
MAY_BE_SILENCE = re.compile(r"noqa|type:\s*ignore|TO" + r"DO|FIX" + r"ME", re.IGNORECASE)


def classes_named_twice(modules: dict[Path, ast.Module]) -> Iterator[tuple[str, str]]:
    """Yield class names that several modules define at their top, each with the modules."""
    places: dict[str, list[str]] = {}
    for path, module in modules.items():
        for node in module.body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path))
    for name, paths in sorted(places.items()):
        if len(paths) > 1:
            yield name, f"class {name}: {', '.join(paths)}"


def silences(path: Path, lines: io.StringIO) -> Iterator[str]:
    """Yield the comments that silence a tool without a code or a reason, or postpone work.

    The reason stands behind the code, or in a comment of its own on the line before.
    """
    above = -1
    for token in tokenize.generate_tokens(lines.readline):
        if token.type != tokenize.COMMENT:
            continue
        reason = r"" if above == token.start[0] - 1 else r"( -|:| +#)? +\S.{7,}"
        explained = r"[A-Z]+\d+(, ?[A-Z]+\d+)*" + reason
        ignored = r"\[[a-z-]+(, ?[a-z-]+)*\]" + reason
        above = token.start[0] if token.line.lstrip().startswith("#") else -1
        where = f"{path}:{token.start[0]}: "
        noqa = re.search(r"#\s*noqa\b:? ?(.*)", token.string, re.IGNORECASE)
        if noqa and not re.match(explained, noqa[1]):
            yield where + "noqa without code and reason"
        ignore = re.search(r"#\s*type:\s*ignore(.*)", token.string)
        if ignore and not re.match(ignored, ignore[1]):
            yield where + "type: ignore without code and reason"
        if re.search(r"\b(TO" + r"DO|FIX" + r"ME)\b", token.string):
            yield where + "postponed work belongs in an issue"


RULES: list[tuple[Rule, tuple[str, ...], str]] = [
    (no_print, SERVICE, "print('x')"),
    (no_environment, SERVICE, "import os\nx = os.environ['A']"),
    (no_environment, SERVICE, "from os import getenv"),
    (no_empty_names, CODE, "def handler(): ..."),
    (no_empty_names, CODE, "class Manager: ..."),
    (no_empty_names, CODE, "def read(data): ..."),
    (no_empty_names, CODE, "info = 1"),
    (no_broad_except, SERVICE, "try: ...\nexcept Exception: ..."),
    (no_broad_except, SERVICE, "try: ...\nexcept (OSError, BaseException): ..."),
    (no_broad_except, SERVICE, "try: ...\nexcept: ..."),
    (no_state_write, CODE, "self.job.state = 'failed'"),
    (no_state_write, CODE, "setattr(job, 'state', 'failed')"),
    (no_state_write, CODE, "sa.update(tables.JobRow).where(x).values(state='failed')"),
    (no_assert, SERVICE, "assert x"),
    (no_clock_bound, ("tests",), "assert time.monotonic() - began < 5"),
    (no_clock_bound, ("tests",), "assert 1 <= time.monotonic() - began <= 5"),
]


@pytest.fixture(scope="module")
def breaches() -> dict[str, list[str]]:
    """The breaches of each rule and of silence: every file is read and walked through once."""
    tops_of = {rule: tops for rule, tops, _ in RULES}
    found: dict[str, list[str]] = {rule.__name__: [] for rule in tops_of}
    found["silences"] = []
    for path in source.python_files(*CODE):
        nodes = list(ast.walk(source.tree(path)))
        for rule, tops in tops_of.items():
            if path.parts[0] in tops:
                found[rule.__name__] += rule(path, nodes)
        text = source.text(path)
        if MAY_BE_SILENCE.search(text):
            found["silences"] += silences(path, io.StringIO(text))
    return found


class TestCode:
    @pytest.mark.parametrize("rule", dict.fromkeys(rule.__name__ for rule, _, _ in RULES))
    def test_keeps(self, breaches: dict[str, list[str]], rule: str) -> None:
        assert not breaches[rule], "\n" + "\n".join(breaches[rule])

    @pytest.mark.parametrize(("rule", "breach"), [(rule, breach) for rule, _, breach in RULES])
    def test_would_be_caught_breaking(self, rule: Rule, breach: str) -> None:
        assert list(rule(Path("api/example.py"), list(ast.walk(ast.parse(breach))))) != []

    def test_explains_every_silence_and_postpones_nothing(
        self, breaches: dict[str, list[str]]
    ) -> None:
        assert not breaches["silences"], "\n" + "\n".join(breaches["silences"])

    @pytest.mark.parametrize(
        "comment",
        [
            "# no" + "qa",
            "# no" + "qa: E501",
            "# type: " + "ignore",
            "# type: " + "ignore[arg-type]",
            "# TO" + "DO: later",
        ],
    )
    def test_would_be_caught_silencing(self, comment: str) -> None:
        assert MAY_BE_SILENCE.search(comment)
        assert list(silences(Path("x.py"), io.StringIO(f"x = 1  {comment}\n"))) != []

    @pytest.mark.parametrize(
        "comment",
        [
            "# no" + "qa: S603 - the command is ours",
            "# type: " + "ignore[misc]  # the library has no types",
            "\n# The library has no types.\nx = 1  # type: " + "ignore[misc]",
        ],
    )
    def test_may_silence_with_a_reason(self, comment: str) -> None:
        assert list(silences(Path("x.py"), io.StringIO(f"x = 1  {comment}\n"))) == []

    def test_may_name_a_field_as_the_contract_does(self) -> None:
        body = textwrap.dedent(
            """
            class Page:
                data: list[int]
            """
        )
        assert list(no_empty_names(Path("api/example.py"), list(ast.walk(ast.parse(body))))) == []

    def test_exceptions_to_the_rules_are_still_needed(self) -> None:
        """A line in a list of exceptions that its file does not use any more must go."""
        unused = [
            path
            for path in MAY_CATCH_EVERYTHING
            if not re.search(r"except (Base)?Exception\b", source.text(Path(path)))
        ]
        unused += [
            path
            for path in MAY_READ_ENVIRONMENT.keys() - {"models_registry/settings.py"}
            if "os.environ" not in source.text(Path(path))
        ]
        assert unused == []


class TestClassNames:
    @pytest.mark.parametrize("tops", WORLDS, ids=lambda tops: tops[0])
    def test_mean_one_class(self, tops: tuple[str, ...]) -> None:
        modules = {path: source.tree(path) for path in source.python_files(*tops)}
        breaches = [
            line for name, line in classes_named_twice(modules) if name not in SHARED_CLASS_NAMES
        ]
        assert not breaches, "\n" + "\n".join(breaches)

    def test_would_be_caught_meaning_two(self) -> None:
        module = ast.parse("class Answer: ...")
        assert list(classes_named_twice({Path("a.py"): module, Path("b.py"): module})) != []


class TestMirror:
    def test_every_method_has_a_test_of_the_same_name(self) -> None:
        methods = [
            path.relative_to("workers/distill")
            for path in source.python_files("workers")
            if path.match("workers/distill/methods/*/*.py")
            and path.name not in ("__init__.py", "base.py")
        ]
        expected = {Path("tests/distill", path).with_name(f"test_{path.name}") for path in methods}
        assert expected - set(source.files()) == set()


class TestFiles:
    def texts(self) -> Iterator[tuple[Path, str]]:
        for path in source.files():
            content = (source.ROOT / path).read_bytes()
            if b"\0" not in content[:4096]:
                yield path, content.decode()

    def test_name_no_machine(self) -> None:
        """A path below somebody's home or work folder exists on one machine only."""
        place = re.compile(r"(?<![\w.~/-])/(home|Users|root|work)/\w")
        breaches = [
            f"{path}: {found[0]}"
            for path, content in self.texts()
            for found in place.finditer(content)
        ]
        assert not breaches, "\n" + "\n".join(breaches)

    def test_name_no_package_registry(self) -> None:
        """Where packages come from is the machine's own setting."""
        hosts = [
            "py" + "pi.org",
            "python" + "hosted.org",
            "download.py" + "torch.org",
            "registry.npm" + "js.org",
            "deb.deb" + "ian.org",
        ]
        breaches = [
            f"{path}: {host}" for path, content in self.texts() for host in hosts if host in content
        ]
        assert not breaches, "\n" + "\n".join(breaches)

    def test_constraints_pin_versions_and_nothing_else(self) -> None:
        lines = source.text(Path("constraints.txt")).splitlines()
        assert [line for line in lines if not re.fullmatch(r"[a-z0-9.-]+==[\w.]+", line)] == []
