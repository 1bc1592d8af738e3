"""Commands for what a server offers: methods, networks, workers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort import errors
from retort.cli import completion, shell

if TYPE_CHECKING:
    from retort import types

app = typer.Typer()


@app.command("methods")
@shell.connected
def list_methods(
    retort: shell.Shell,
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="One method.", autocompletion=completion.methods),
    ] = None,
    spec_file: Annotated[
        Path | None,
        typer.Option(
            "--for",
            metavar="JOB.yaml",
            help="Rank the methods that fit this job's networks, data and task.",
        ),
    ] = None,
) -> None:
    """List the methods, rank those that fit a job, or show one with its hyper-parameters."""
    from retort.cli import display

    if name and spec_file:
        raise errors.BadOption(
            f"methods takes either a NAME ({name}) or --for {spec_file}; leave one out"
        )
    if spec_file:
        from retort import specs

        ranking = retort.client.offers.methods_for(specs.load(spec_file, ()))
        retort.show(ranking, display.method_ranking)
        return
    if name:
        retort.show(retort.client.offers.method(name), display.method)
        return
    methods = list(retort.client.offers.methods())
    if retort.json:
        retort.emit(methods)
    else:
        rows = ((m.name, m.family, _across(m.across_devices), m.title) for m in methods)
        heads = ("name", "family", "devices", "title")
        display.table(retort.out, heads, rows)


def _across(choice: str | None) -> str:
    """Return how a method uses several devices, in a word or two."""
    return {"one": "one", "gathers": "several", "slices": "several"}.get(choice or "", "")


@app.command("networks")
@shell.connected
def list_networks(
    retort: shell.Shell,
    wanted: Annotated[
        str, typer.Option("--filter", metavar="TEXT", help="Only names that contain this.")
    ] = "",
) -> None:
    """List the networks that teachers and students can have."""
    networks = list(retort.client.offers.networks(search=wanted or None))
    if retort.json:
        retort.emit(networks)
        return
    from retort.cli import display

    rows = ((n.name, n.family, display.count(n.parameters_100), n.description) for n in networks)
    display.table(retort.out, ("name", "family", "parameters (100 classes)", "about"), rows)


@app.command("recipes")
@shell.connected
def list_recipes(
    retort: shell.Shell,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One recipe.")] = None,
) -> None:
    """List the training recipes, or show all fields of one."""
    from retort.cli import display

    recipes = retort.client.offers.recipes().data
    if name:
        recipes = [recipe for recipe in recipes if recipe.name == name]
        if not recipes:
            raise errors.BadOption(f"there is no recipe {name!r}: see `retort recipes`")
    if retort.json:
        retort.emit(recipes)
    elif name:
        fields = recipes[0].training.items()
        display.card(
            retort.out,
            [
                (field, value if isinstance(value, (str, int, float)) else display.compact(value))
                for field, value in fields
            ],
        )
    else:
        rows = ((r.name, *map(display.compact, _recipe_facts(r.training))) for r in recipes)
        heads = ("recipe", "epochs", "batch", "optimizer", "rate", "schedule", "augmentation")
        display.table(retort.out, heads, rows, whole=("recipe",))


def _recipe_facts(training: "types.Json") -> tuple[object, ...]:
    optimizer, schedule = training.get("optimizer") or {}, training.get("schedule") or {}
    return (
        training.get("epochs"),
        training.get("batch_size"),
        optimizer.get("name"),
        optimizer.get("learning_rate"),
        schedule.get("name"),
        training.get("augmentation"),
    )


@app.command("formats")
@shell.connected
def list_formats(retort: shell.Shell) -> None:
    """List the formats that a data set may be uploaded in."""
    from retort import formats
    from retort.cli import display

    rows = list(formats.FORMATS.items())
    if retort.json:
        retort.emit(formats.FORMATS)
    else:
        display.table(retort.out, ("format", "what it is"), rows, folds=("what it is",))


@app.command("workers")
@shell.connected
def list_workers(retort: shell.Shell) -> None:
    """List the workers that run jobs."""
    workers = list(retort.client.offers.workers())
    if retort.json:
        retort.emit(workers)
        return
    from retort.cli import display

    rows = (
        (
            w.name or w.id,
            w.state if w.fault is None else f"{w.state} ({w.fault.get('code')})",
            w.device,
            w.offered_devices,
            w.slots,
            ",".join(w.queues),
            ",".join(w.job_ids),
            display.age(w.last_seen_at),
        )
        for w in workers
    )
    display.table(
        retort.out,
        ("name", "state", "device", "devices a job", "slots", "queues", "jobs", "seen"),
        rows,
    )
