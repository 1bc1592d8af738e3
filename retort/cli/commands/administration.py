"""Commands that change who may do what, and what there is: keys, deletion, aliases."""

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from retort import errors
from retort.cli import completion, shell

if TYPE_CHECKING:
    from retort import types

app = typer.Typer(help="API keys of the project; for administrators.")


@app.command("create")
@shell.connected
def create_key(
    retort: shell.Shell,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    role: Annotated[
        Literal["viewer", "editor", "admin"], typer.Option(help="What it may do.")
    ] = "editor",
    scope: Annotated[
        list[str] | None,
        typer.Option(help="What it may touch, such as jobs:write; may be repeated. Else: all."),
    ] = None,
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires.")] = None,
) -> None:
    """Create a key and print it: it is never shown again."""
    expires_at = datetime.now(UTC) + timedelta(days=days) if days is not None else None
    created = retort.client.keys.create(name, role=role, expires_at=expires_at, scopes=scope)
    _show_key(retort, created, "keep it, it is not shown again")


@app.command("rotate")
@shell.connected
def rotate_key(
    retort: shell.Shell,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key: key_...")],
    overlap_hours: Annotated[
        float, typer.Option(min=0, max=720, help="For how long the old text opens the same.")
    ] = 24,
) -> None:
    """Give a key a new text, and print it; the old one holds for a while."""
    rotated = retort.client.keys.rotate(key_id, overlap_seconds=round(overlap_hours * 3600))
    _show_key(retort, rotated, f"the old text opens the same for {overlap_hours:g} hours")


def _show_key(retort: shell.Shell, key: "types.NewApiKey", remark: str) -> None:
    if retort.json:
        retort.emit(key)
        return
    retort.out.print(key.api_key, soft_wrap=True)
    limits = f", {' '.join(key.scopes)}" if key.scopes is not None else ""
    retort.note(f"{key.id} for {key.name} ({key.role}{limits}): {remark}")


@app.command("list")
@shell.connected
def list_keys(retort: shell.Shell) -> None:
    """List the keys, without their text."""
    from retort.cli import display

    retort.show(list(retort.client.keys.list()), display.keys)


@app.command("revoke")
@shell.connected
def revoke_key(
    retort: shell.Shell,
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key: key_...")],
) -> None:
    """Revoke a key at once."""
    retort.client.keys.revoke(key_id)
    _say_done(retort, f"{key_id} is revoked", revoked=key_id)


@shell.connected
def delete(
    retort: shell.Shell,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] WHAT",
            help="Id of a job, study or upload; a model, or one version of it as NAME@1; "
            "`dataset NAME` or `dataset NAME@1`. KIND may be named for all of them.",
            autocompletion=completion.things,
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a job, study or upload, a model, a data set, or one version of these.

    What is in use is not deleted: the error names what uses it.
    """
    kind, what = shell.thing(words, kinds=("job", "study", "upload", "model", "dataset"))
    client = retort.client
    name, at, version = what.partition("@")
    if kind in ("model", "dataset") and at and not version.isdecimal():
        raise errors.BadOption(
            f"{what}: a version is deleted by its number, as in {name}@1; an alias stays"
        )
    number = int(version) if at else None
    if not yes and retort.json:
        raise errors.BadOption("--json asks nothing: give --yes as well to delete")
    if not yes:
        shown = f"data set {what}" if kind == "dataset" else what
        all_of_it = " with all its versions" if kind in ("model", "dataset") and not at else ""
        typer.confirm(f"Delete {shown}{all_of_it}? This cannot be undone.", abort=True, err=True)
    if kind == "job":
        client.jobs.delete(what)
    elif kind == "study":
        client.studies.delete(what)
    elif kind == "upload":
        client.uploads.discard(what)
    elif kind == "dataset":
        client.datasets.delete(name, number)
    else:
        with shell.or_dataset(retort, words, "delete"):
            client.models.delete(name, number)
    _say_done(retort, f"{what} is deleted", deleted=what)


@shell.connected
def alias(
    retort: shell.Shell,
    version: Annotated[
        str, typer.Argument(metavar="NAME@V", help="The model version it points to.")
    ],
    name: Annotated[str, typer.Argument(metavar="ALIAS", help="Such as `production`.")],
) -> None:
    """Point an alias of a model at a version."""
    found = retort.client.models.resolve(version)
    retort.client.models.set_alias(found.name, name, found.version)
    reference = f"{found.name}@{name}"
    _say_done(
        retort, f"{reference} is now {found.reference}", alias=reference, version=found.reference
    )


def _say_done(retort: shell.Shell, sentence: str, **facts: str) -> None:
    if retort.json:
        retort.emit(facts)
    else:
        retort.out.print(sentence, soft_wrap=True)
