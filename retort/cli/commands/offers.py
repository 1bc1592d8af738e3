"""Commands for what a server offers: methods, networks, workers."""

from typing import Annotated

import typer

from retort.cli import shell

app = typer.Typer()


@app.command("methods")
@shell.connected
def list_methods(
    retort: shell.Shell,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One method.")] = None,
) -> None:
    """List the methods, or show one with its hyper-parameters."""
    from retort.cli import display

    if name:
        retort.show(retort.client.offers.method(name), display.method)
        return
    methods = list(retort.client.offers.methods())
    if retort.json:
        retort.emit(methods)
    else:
        rows = ((m.name, m.family, m.title) for m in methods)
        display.table(retort.out, ("name", "family", "title"), rows)


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
            w.state,
            w.device,
            ",".join(w.queues),
            w.job_id,
            display.age(w.last_seen_at),
        )
        for w in workers
    )
    display.table(retort.out, ("name", "state", "device", "queues", "job", "seen"), rows)
