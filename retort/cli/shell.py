"""What every command of the command line shares: options, consoles, exit codes, one-line errors."""

import contextlib
import enum
import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Concatenate, ParamSpec, TypeVar

import typer
import typer.core

from retort import errors

if TYPE_CHECKING:  # imported where used: `retort --help` needs neither
    import pydantic
    import rich.console

    from retort import client, watching

P = ParamSpec("P")
Shown = TypeVar(
    "Shown", bound="pydantic.BaseModel | Iterable[pydantic.BaseModel] | Mapping[str, object]"
)
# Piped tables must not be folded at the 80 columns that rich assumes without a terminal.
PIPED_WIDTH = 200
# The base of typer's own usage errors, under a name that is public in every version of typer.
Misuse: Any = typer.BadParameter.__mro__[2]  # a class that typer's stubs do not export

UrlOption = Annotated[
    str | None, typer.Option("--url", metavar="URL", help="Address of the server.")
]
KeyOption = Annotated[str | None, typer.Option("--api-key", metavar="KEY", help="API key for it.")]
ChangesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY.PATH=VALUE", help="Change one value of the spec."),
]
LimitOption = Annotated[int, typer.Option(min=1, help="At most this many, newest first.")]
JsonOption = Annotated[
    bool, typer.Option("--json", help="Print JSON for programs, and nothing else, on stdout.")
]


_PREFIXES = {"job_": "job", "stu_": "study", "upl_": "upload"}


def thing(words: list[str], *, kinds: tuple[str, ...]) -> tuple[str, str]:
    """Return kind and name of what `[KIND] WHAT` means; without KIND, a name is a model's.

    Raises: errors.BadOption.
    """
    *before, what = words
    if len(before) > 1 or (before and before[0] not in kinds):
        raise errors.BadOption(
            f"{' '.join(words)}: expected WHAT, or KIND WHAT with a KIND of {', '.join(kinds)}"
        )
    of_id = next((kind for prefix, kind in _PREFIXES.items() if what.startswith(prefix)), None)
    kind = before[0] if before else of_id or "model"
    ids = set(_PREFIXES.values())
    if kind not in kinds or (kind in ids and of_id != kind):
        raise errors.BadOption(f"{what} is not the id of a {before[0] if before else kinds[0]}")
    return kind, what


@contextlib.contextmanager
def or_dataset(retort: "Shell", words: list[str], command: str) -> Iterator[None]:
    """Where a name that stands alone is no model's but a data set's, say how to mean that."""
    try:
        yield
    except errors.ProblemError as error:
        name = words[-1].partition("@")[0]
        if error.status != 404 or len(words) > 1:
            raise
        if not any(known.name == name for known in retort.client.datasets.list()):
            raise
        raise errors.BadOption(
            f"no model is called {name}, but a data set is: retort {command} dataset {words[-1]}"
        ) from error


class Code(enum.IntEnum):
    """Exit codes, as the help text states them."""

    OK = 0
    JOB_FAILED = 1
    USAGE = 2
    REFUSED = 3
    UNREACHABLE = 4
    LOCAL = 5
    DEFECT = 70
    INTERRUPTED = 130


EXIT_CODES = (
    "Exit codes: 0 done; 1 the job failed or was cancelled; 2 wrong usage or no server configured; "
    "3 refused by the server; 4 the server cannot be reached; 5 a problem on this machine (a file, "
    "a port); 70 a defect of this program; 130 interrupted."
)


@dataclass
class GlobalOptions:
    """Options given before the command's name."""

    url: str | None = None
    api_key: str | None = None
    json: bool = False


class Shell:
    """One command's access to the server, to stdout and to stderr."""

    def __init__(self, given: GlobalOptions) -> None:
        self.given = given
        self.json = given.json
        self._client: client.Client | None = None

    @functools.cached_property
    def out(self) -> "rich.console.Console":
        """Return the console of results."""
        return console(sys.stdout)

    @functools.cached_property
    def err(self) -> "rich.console.Console":
        """Return the console of everything that is not a result."""
        return console(sys.stderr)

    @property
    def client(self) -> "client.Client":
        """Return the connection to the server, made when first needed."""
        if self._client is None:
            from retort import client

            self._client = client.connect(self.given.url, self.given.api_key)
        return self._client

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._client is not None:
            self._client.close()

    def emit(
        self, shown: "pydantic.BaseModel | Iterable[pydantic.BaseModel] | Mapping[str, object]"
    ) -> None:
        """Print a result as JSON on stdout."""
        emit(shown)

    def show(
        self, shown: Shown, display: "Callable[[rich.console.Console, Shown], object]"
    ) -> None:
        """Print a result: as JSON with --json, otherwise with `display`."""
        if self.json:
            emit(shown)
        else:
            display(self.out, shown)

    def note(self, text: str) -> None:
        """Print a message on stderr."""
        say(text)

    @contextlib.contextmanager
    def following(self, resource_id: str, command: str) -> Iterator["watching.View"]:
        """Yield a view of a job or study; Ctrl-C ends the view, not what it shows.

        `command` is what shows it again.
        """
        from retort import watching

        view = watching.view(self.err, resource_id)
        try:
            yield view
        except KeyboardInterrupt:
            view.close()
            self.note(f"stopped watching; {resource_id} continues: {command} {resource_id}")
            raise typer.Exit(Code.INTERRUPTED) from None
        finally:
            view.close()


def emit(shown: "pydantic.BaseModel | Iterable[pydantic.BaseModel] | Mapping[str, object]") -> None:
    """Print a body, several bodies or plain JSON on stdout."""
    sys.stdout.write(json.dumps(_plain(shown), indent=2, ensure_ascii=False) + "\n")


def say(text: str) -> None:
    """Print one line on stderr, whatever it contains."""
    sys.stderr.write(errors.one_line(text) + "\n")
    sys.stderr.flush()


def code_of(error: errors.RetortError) -> Code:
    """Return the exit code that stands for an error."""
    if isinstance(error, errors.JobFailed):
        return Code.JOB_FAILED
    if isinstance(error, (errors.LocalFileProblem, errors.CannotStart, errors.TrainingFailed)):
        return Code.LOCAL
    if isinstance(error, (errors.ProblemError, errors.Rejected, errors.PushRefused)):
        return Code.REFUSED
    if isinstance(error, (errors.NotConfigured, errors.BadOption)):
        return Code.USAGE
    return Code.UNREACHABLE


def connected(function: Callable[Concatenate[Shell, P], None]) -> Callable[..., None]:
    """Make a command of a function that takes a `Shell`: adds --url, --api-key and --json."""

    @functools.wraps(function)
    def command(ctx: typer.Context, **values: Any) -> None:  # values are checked by typer
        given = ctx.find_object(GlobalOptions) or GlobalOptions()
        shell = Shell(
            GlobalOptions(
                values.pop("url") or given.url,
                values.pop("api_key") or given.api_key,
                values.pop("as_json") or given.json,
            )
        )
        try:
            function(shell, **values)  # type: ignore[call-arg]  # P cannot be built from a dict
        except KeyboardInterrupt:
            say("interrupted")
            raise typer.Exit(Code.INTERRUPTED) from None
        finally:
            shell.close()

    _, *own = inspect.signature(function).parameters.values()
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # read by typer
        [
            _parameter("ctx", typer.Context),
            *(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own),
            _parameter("url", UrlOption, None),
            _parameter("api_key", KeyOption, None),
            _parameter("as_json", JsonOption, False),
        ]
    )
    return command


class OneLineErrors(typer.core.TyperGroup):
    """A command group whose every failure is one line on stderr and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run the command line and leave the process with the exit code."""
        arguments = options.get("args") or (args[0] if args else sys.argv) or ()
        debug, as_json = "--debug" in arguments, "--json" in arguments
        options["standalone_mode"] = False
        try:
            code = super().main(*args, **options)
        except Misuse as error:
            sentence = f"{error.format_message()} (see `{_command_path(error)} --help`)"
            code = Code.USAGE
            _tell("Usage", sentence, code, as_json=as_json)
        except typer.Abort:
            code = Code.INTERRUPTED
            _tell("Stopped", "stopped, nothing was done", code, as_json=as_json)
        except errors.RetortError as error:
            code = code_of(error)
            _tell(type(error).__name__, str(error), code, as_json=as_json, facts=_facts(error))
        except Exception as error:  # the last resort of a program that shows no tracebacks
            if debug:
                raise
            sentence = f"{type(error).__name__}: {error} (a defect: see `retort --debug ...`)"
            code = Code.DEFECT
            _tell("Defect", sentence, code, as_json=as_json)
        sys.exit(int(code or 0))


def _tell(
    kind: str,
    sentence: str,
    code: Code,
    *,
    as_json: bool,
    facts: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Print an error: as one line for people, with --json as one object."""
    if not as_json:
        say(f"error: {sentence}")
        return
    body = {"error": kind, "detail": errors.one_line(sentence), **facts, "exit_code": code}
    sys.stderr.write(json.dumps(body, ensure_ascii=False) + "\n")


def _facts(error: errors.RetortError) -> dict[str, object]:
    """Return what a program wants to know of an error beside its sentence."""
    if not isinstance(error, errors.ProblemError):
        return {}
    faults = [asdict(fault) for fault in error.errors]
    uses = {"uses": list(error.uses)} if error.uses else {}
    return {"status": error.status, "code": error.code, "errors": faults, **uses}


def _parameter(
    name: str, annotation: Any, default: Any = inspect.Parameter.empty
) -> inspect.Parameter:
    # Any: annotations and defaults are whatever inspect takes.
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default
    )


def _command_path(error: Any) -> str:  # Any: see Misuse
    context = getattr(error, "ctx", None)
    return str(context.command_path) if context is not None else "retort"


def console(stream: Any) -> "rich.console.Console":  # Any: sys.stdout may be replaced in tests
    """Return a console that prints text as it is, as wide as it comes unless on a terminal."""
    import rich.console

    made = rich.console.Console(file=stream, highlight=False, markup=False)
    if not made.is_terminal:
        # Who sets COLUMNS says how wide a page is.
        from retort import config

        width = config.Environment().page_width or PIPED_WIDTH
        made = rich.console.Console(
            file=stream, highlight=False, markup=False, width=width, color_system=None
        )
    return made


def _plain(shown: Any) -> object:  # Any: bodies, lists of them and plain JSON
    if hasattr(shown, "model_dump"):
        return json.loads(shown.model_dump_json())
    if isinstance(shown, Mapping):
        return dict(shown)
    return [_plain(item) for item in shown]
