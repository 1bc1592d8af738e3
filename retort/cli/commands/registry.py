"""Commands for the registry: models and data sets."""

import json
from pathlib import Path
from typing import Annotated

import typer

from retort.cli import completion, shell

app = typer.Typer()
dataset_app = typer.Typer(help="Make a data set from what the server has; erase one.")


@app.command("models")
@shell.connected
def list_models(retort: shell.Shell) -> None:
    """List models."""
    models = list(retort.client.models.list())
    if retort.json:
        retort.emit(models)
        return
    from retort.cli import display

    display.models(retort.out, models)


@app.command("model")
@shell.connected
def show_model(
    retort: shell.Shell,
    reference: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@V]", help="A model or a version.", autocompletion=completion.models
        ),
    ],
) -> None:
    """Show the versions of a model, or one version with its lineage."""
    from retort.cli import display

    if "@" in reference:
        retort.show(retort.client.models.resolve(reference), display.version)
        return
    model = retort.client.models.get(reference)
    versions = list(retort.client.models.versions(reference))
    if retort.json:
        bodies = [json.loads(v.model_dump_json()) for v in versions]
        retort.emit({**json.loads(model.model_dump_json()), "versions": bodies})
        return
    display.model_versions(retort.out, versions)


@app.command("datasets")
@shell.connected
def list_datasets(
    retort: shell.Shell,
    reference: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME[@V]]",
            help="A data set or a version.",
            autocompletion=completion.datasets,
        ),
    ] = None,
) -> None:
    """List data sets and their versions with sizes, those of one, or one version with its notes."""
    from retort.cli import display

    datasets = retort.client.datasets
    if reference is not None and "@" in reference:
        retort.show(datasets.resolve(reference), display.dataset_version)
        return
    names = [d.name for d in datasets.list()] if reference is None else [reference]
    versions = [v for name in names for v in datasets.versions(name)]
    if retort.json:
        retort.emit(versions)
        return
    display.dataset_versions(retort.out, versions)


@dataset_app.command("from-job")
@shell.connected
def dataset_from_job(
    retort: shell.Shell,
    job_id: Annotated[
        str,
        typer.Argument(
            metavar="JOB",
            help="A data-free job that succeeded.",
            autocompletion=completion.jobs,
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the data set in the registry.")],
    card: Annotated[str, typer.Option(help="A description, in Markdown.")] = "",
) -> None:
    """Register the synthetic images of a data-free job as a data set for other jobs."""
    version = retort.client.datasets.register_job(name, job_id, card=card)
    if retort.json:
        retort.emit(version)
        return
    retort.out.print(version.reference)
    splits = ", ".join(f"{count:,} {split}" for split, count in version.splits.items())
    retort.note(f"{version.state}: {splits}; see it with: retort datasets")


@app.command()
@shell.connected
def download(
    retort: shell.Shell,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[KIND] WHAT",
            help="JOB: its student; STUDY: the best one; NAME[@V]: a model version; "
            "`dataset NAME[@V]`: the archive as it was uploaded.",
            autocompletion=completion.things,
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File, or folder, to write to.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All files of the version, config.json included.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Download a student, any model or a data set; an interrupted download is resumed."""
    from retort import fetching

    kind, what = shell.thing(words, kinds=("job", "study", "model", "dataset"))
    if kind == "dataset":
        saved = fetching.dataset(retort, what, output, force=force)
    else:
        with shell.or_dataset(retort, words, "download"):
            saved = fetching.fetch(retort, what, output, everything=everything, force=force)
    if retort.json:
        retort.emit({"files": [str(path) for path in saved]})
    else:
        for path in saved:
            retort.out.print(str(path), soft_wrap=True)
