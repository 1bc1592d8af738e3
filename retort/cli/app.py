"""The command line: `retort`.

Commands import what they need when they run, so that `retort --help` is fast and nothing here ever
loads an engine.
"""

import importlib.metadata
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

import retort
from retort import errors
from retort.cli import shell
from retort.cli.commands import (
    administration,
    exports,
    federations,
    jobs,
    offers,
    pushes,
    registry,
    retention,
    studies,
    uploads,
    usage,
    webhooks,
)

app = typer.Typer(
    cls=shell.OneLineErrors,
    help="Distil large networks into small ones, on a Retort server.",
    epilog=shell.EXIT_CODES,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(jobs.app)
app.add_typer(studies.app, name="study")
app.add_typer(federations.app, name="federation")
app.add_typer(federations.client_app, name="client")
app.add_typer(registry.app)
app.add_typer(exports.app)
app.add_typer(pushes.app, name="push")
app.add_typer(registry.dataset_app, name="dataset")
app.add_typer(uploads.app, name="upload")
app.add_typer(offers.app)
app.add_typer(administration.app, name="key")
app.add_typer(webhooks.app, name="webhooks")
app.command("usage")(usage.usage)
app.command("quota")(usage.quota)
app.command("alias")(administration.alias)
app.command("delete")(administration.delete)
app.add_typer(retention.app, name="retention")
app.command("audit")(retention.audit)
registry.dataset_app.command("erase")(retention.erase)

DataDirOption = Annotated[
    Path, typer.Option(envvar="RETORT_DATA_DIR", help="Folder that holds everything.")
]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="Where jobs run.")]


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    url: shell.UrlOption = None,
    api_key: shell.KeyOption = None,
    as_json: shell.JsonOption = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of a defect.")] = False,
) -> None:
    """Distil large networks into small ones, on a Retort server."""
    del debug  # read by OneLineErrors, which must know it even if this never runs
    ctx.obj = shell.GlobalOptions(url, api_key, as_json)
    if version:
        typer.echo(f"retort {importlib.metadata.version(retort.DISTRIBUTION)}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


@app.command()
def up(
    data_dir: DataDirOption = Path("retort-data"),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=1, max=65535, envvar="RETORT_PORT", help="Port to listen on.")
    ] = 8765,
    workers: Annotated[int, typer.Option(min=1, help="Jobs that run at a time.")] = 1,
    device: DeviceOption = "auto",
    detach: Annotated[
        bool, typer.Option("--detach", help="Return when it is ready; `retort down` stops it.")
    ] = False,
) -> None:
    """Run the whole service on this machine: server, worker, queue and storage."""
    from retort.cli import detached
    from retort.cli import up as service

    if detach:
        options = {"host": host, "port": port, "workers": workers, "device": device}
        said = detached.start(data_dir, [f"--{name}={value}" for name, value in options.items()])
        for line in (*said.splitlines(), "Stop it with: retort down"):
            shell.say(line)
        return
    try:
        service.run(data_dir=data_dir, host=host, port=port, workers=workers, device=device)
    except service.UpFailed as error:
        raise errors.CannotStart(str(error)) from error


@app.command()
def down(
    data_dir: Annotated[
        Path | None,
        typer.Option(
            envvar="RETORT_DATA_DIR",
            help="Its data folder; else retort-data, or that of the service of this user.",
        ),
    ] = None,
) -> None:
    """Stop `retort up`, from any folder; its data is kept for the next start."""
    from retort.cli import detached

    stopped = detached.stop(data_dir or detached.running())
    shell.say(f"stopped; its data stays in {stopped}")


@app.command()
def demo(
    data_dir: Annotated[Path, typer.Option(help="Folder of its data.")] = Path("demo-data"),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8766,
) -> None:
    """Train a teacher on handwritten digits, distil it, and show the students."""
    from retort.cli import demo as demonstration

    demonstration.run(data_dir=data_dir, port=port)


@app.command()
def completion(
    ctx: typer.Context,
    shell_name: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(metavar="bash|zsh|fish")],
) -> None:
    """Print what makes a shell complete commands, and the names and ids that a server has.

    For bash: `retort completion bash >> ~/.bashrc`; zsh: `>> ~/.zshrc`; fish:
    `> ~/.config/fish/completions/retort.fish`. `retort --install-completion` does that for you.
    """
    from typer.completion import get_completion_script  # type: ignore[attr-defined]  # imported there, not declared as public

    name = ctx.find_root().info_name or "retort"
    variable = f"_{name.replace('-', '_').upper()}_COMPLETE"
    typer.echo(get_completion_script(prog_name=name, complete_var=variable, shell=shell_name))


@app.command()
def login(
    ctx: typer.Context,
    url: shell.UrlOption = None,
    key: Annotated[
        str | None,
        typer.Option("--api-key", "--key", metavar="KEY", help="Prompted for if left out."),
    ] = None,
) -> None:
    """Check an address and key, and save them for this user."""
    from retort import client, config

    given: shell.GlobalOptions = ctx.obj
    address = url or given.url
    if not address:
        raise errors.BadOption("login: name the server, as in `retort login --url https://HOST`")
    secret = (key or given.api_key or _asked_key()).strip()
    if not secret:
        raise errors.BadOption("login: no key came; send one through the pipe, or --api-key KEY")
    with client.Client(address, secret) as retort:
        next(retort.jobs.list(page_size=1), None)
        path = config.save(retort.url, secret)
    shell.say(f"{retort.url} answers; its key is kept in {path}")


def _asked_key() -> str:
    """Return the key that is typed unseen, or sent through a pipe."""
    if not sys.stdin.isatty():
        return sys.stdin.readline()
    answer: str = typer.prompt("API key", hide_input=True, err=True)
    return answer


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
