"""Commands that change who may do what, and what there is: keys, deletion, aliases."""

from typing import Annotated, Literal

import typer

from retort import errors
from retort.cli import shell

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
    what: Annotated[
        str,
        typer.Argument(
            metavar="JOB|STUDY|UPLOAD|MODEL[@V]",
            help="Id of a job, study or upload, or a model or one version of it.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete a job, a study, an upload, a model or one version of a model."""
    if not yes:
        typer.confirm(f"Delete {what}? This cannot be undone.", abort=True, err=True)
    client = retort.client
    if what.startswith("job_"):
        client.jobs.delete(what)
    elif what.startswith("stu_"):
        client.studies.delete(what)
    elif what.startswith("upl_"):
        client.uploads.discard(what)
    else:
        name, at, version = what.partition("@")
        if at and not version.isdecimal():
            raise errors.BadOption(
                f"{what}: a version is deleted by its number, as in {name}@1; an alias stays"
            )
        client.models.delete(name, int(version) if at else None)
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
