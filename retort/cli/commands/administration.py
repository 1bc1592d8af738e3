"""Commands that change who may do what, and what there is: keys, deletion, aliases."""

from typing import Annotated, Literal

import typer

from retort import errors
from retort.cli import completion, shell

app = typer.Typer(help="API keys of the project; for administrators.")


@app.command("create")
@shell.connected
def create_key(
    retort: shell.Shell,
    name: Annotated[str, typer.Argument(metavar="NAME", help="What the key is for.")],
    role: Annotated[
        Literal["viewer", "editor", "admin"], typer.Option(help="What it may do.")
    ] = "editor",
) -> None:
    """Create a key and print it: it is never shown again."""
    created = retort.client.keys.create(name, role=role)
    if retort.json:
        retort.emit(created)
        return
    retort.out.print(created.api_key, soft_wrap=True)
    retort.note(f"{created.id} for {created.name} ({created.role}): keep it, it is not shown again")


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
