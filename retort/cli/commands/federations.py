"""Commands for federations: `retort federation ...`, for owners, and `retort client ...`."""

import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from retort import errors
from retort.cli import shell

if TYPE_CHECKING:
    from retort import types

app = typer.Typer(help="Follow federated jobs whose clients are elsewhere, and invite clients.")
client_app = typer.Typer(help="Take part in a federation with data that stays on this machine.")

FederationArgument = Annotated[
    str, typer.Argument(metavar="FEDERATION", help="Id of the federation, or of its job.")
]
WATCH_SECONDS = 2.0


@app.command("list")
@shell.connected
def list_federations(retort: shell.Shell, limit: shell.LimitOption = 20) -> None:
    """List federations."""
    pages = retort.client.federations.list(page_size=min(limit, 100))
    found = list(itertools.islice(pages, limit))
    from retort.cli import federation_display

    retort.show(found, federation_display.federations)


@app.command()
@shell.connected
def show(retort: shell.Shell, federation_id: FederationArgument) -> None:
    """Show a federation, with a row for each client."""
    found = _find(retort, federation_id)
    clients = list(retort.client.federations.clients(found.id))
    if retort.json:
        plain = [client.model_dump(mode="json") for client in clients]
        retort.emit({**found.model_dump(mode="json"), "clients": plain})
        return
    from retort.cli import federation_display

    retort.out.print(federation_display.whole(found, clients))


@app.command()
@shell.connected
def rounds(retort: shell.Shell, federation_id: FederationArgument) -> None:
    """List the rounds of a federation: replies, bytes and times."""
    found = _find(retort, federation_id)
    shown = list(retort.client.federations.rounds(found.id))
    from retort.cli import federation_display

    retort.show(shown, federation_display.rounds)


@app.command()
@shell.connected
def watch(retort: shell.Shell, federation_id: FederationArgument) -> None:
    """Follow a federation to its end; exit with 1 unless its job succeeded."""
    import rich.live

    from retort.cli import federation_display

    found = _find(retort, federation_id)
    seen: tuple[str, int] | None = None
    try:
        with rich.live.Live(console=retort.err, auto_refresh=False, transient=True) as live:
            while True:
                found = retort.client.federations.get(found.id)
                clients = list(retort.client.federations.clients(found.id))
                if retort.err.is_terminal:
                    live.update(federation_display.whole(found, clients), refresh=True)
                elif seen != (found.state, found.round):
                    seen = (found.state, found.round)
                    retort.note(federation_display.line(found, clients))
                if found.is_final:
                    break
                time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        retort.note(f"stopped watching; {found.id} continues: retort federation watch {found.id}")
        raise typer.Exit(shell.Code.INTERRUPTED) from None
    if retort.json:
        retort.emit(found)
    else:
        retort.out.print(federation_display.whole(found, clients))
    if found.state != "succeeded":
        retort.note(f"error: {found.id} {found.state}: {found.state_message or 'no reason'}")
        raise typer.Exit(shell.Code.JOB_FAILED)


@app.command()
@shell.connected
def invite(
    retort: shell.Shell,
    federation_id: FederationArgument,
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names of the parties.")],
) -> None:
    """Add clients, and print the key of each: it is shown only now."""
    found = _find(retort, federation_id)
    invited = [retort.client.federations.invite(found.id, name) for name in names]
    from retort.cli import federation_display

    retort.show(invited, federation_display.invited)
    if not retort.json:
        retort.note(
            f"each party joins with: RETORT_CLIENT_KEY=ck_... retort client join {found.id} "
            f"--url {retort.client.url} --data DIR"
        )


@app.command()
@shell.connected
def revoke(
    retort: shell.Shell,
    federation_id: FederationArgument,
    client: Annotated[str, typer.Argument(metavar="CLIENT", help="Id or name of the client.")],
) -> None:
    """Revoke a client's key immediately; rounds no longer wait for it."""
    found = _find(retort, federation_id)
    for known in retort.client.federations.clients(found.id):
        if client in (known.id, known.name):
            retort.client.federations.revoke(found.id, known.id)
            retort.note(f"the key of {known.name!r} is revoked")
            return
    raise errors.BadOption(f"{found.id} has no client {client!r}")


@client_app.command()
def join(
    ctx: typer.Context,
    federation_id: Annotated[
        str, typer.Argument(metavar="FEDERATION", help="Id of the federation: fed_...")
    ],
    images: Annotated[
        Path,
        typer.Option(
            "--data",
            metavar="DIR",
            help="Your images: a folder of pictures for each class, an NPZ file, or a prepared "
            "data set. They stay where they are.",
        ),
    ],
    client_key: Annotated[
        str,
        typer.Option(
            envvar="RETORT_CLIENT_KEY",
            metavar="KEY",
            prompt="Client key",
            hide_input=True,
            help="Key that the federation's owner gave you: ck_...",
        ),
    ],
    folder: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Where the client keeps its model; retort-client/FEDERATION."
        ),
    ] = None,
    device: Annotated[Literal["any", "cpu", "cuda"], typer.Option(help="Where to train.")] = "any",
    send_accuracy: Annotated[
        bool, typer.Option(help="Tell the owner the accuracy on your validation images.")
    ] = True,
    patience: Annotated[
        float, typer.Option(min=0, help="Seconds to go on while the server cannot be reached.")
    ] = 3600.0,
    url: shell.UrlOption = None,
    as_json: shell.JsonOption = False,
) -> None:
    """Train on your own images in a federation, and send only what its method sends.

    It may be stopped and started again: it goes on where it was.
    """
    from retort import client_program, config, federation, transport

    given = ctx.find_object(shell.GlobalOptions) or shell.GlobalOptions()
    address = config.address(url or given.url)
    http = transport.Transport(address, client_key.strip())
    options = client_program.Options(
        data=images,
        folder=folder or Path("retort-client") / federation_id,
        accelerator=device,
        sends_metrics=send_accuracy,
    )
    try:
        with federation.Member(
            http, federation_id, patience_seconds=patience, say=shell.say
        ) as member:
            done = client_program.run(member, options, shell.say)
    except KeyboardInterrupt:
        shell.say("stopped; the same command goes on")
        raise typer.Exit(shell.Code.INTERRUPTED) from None
    if as_json or given.json:
        shell.emit(done)
    else:
        typer.echo(done["model"])


def _find(retort: shell.Shell, given: str) -> "types.Federation":
    """Return the federation of this id, or of the job of this id."""
    if not given.startswith("job_"):
        return retort.client.federations.get(given)
    found = next(retort.client.federations.list(job=given), None)
    if found is None:
        raise errors.BadOption(
            f"job {given} has no federation: only jobs with method.federation.clients 'remote' do"
        )
    return found
