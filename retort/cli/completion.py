"""Completes names and ids on the command line by asking the server.

A shell waits for this while somebody types: the server gets a second, and whatever goes wrong
completes nothing, since an error would be printed into the line that is being typed.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

import typer

from retort import errors

if TYPE_CHECKING:
    from retort import client

_SECONDS = 1.0
_MOST = 100
# What is offered: a word, and what a shell that shows help shows beside it.
Offer = tuple[str, str]


def jobs(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return ids of jobs."""
    return _matching(ctx, incomplete, _jobs)


def studies(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return ids of studies."""
    return _matching(ctx, incomplete, _studies)


def jobs_and_studies(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return ids of jobs and of studies."""
    return _matching(ctx, incomplete, _jobs, _studies)


def methods(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return names of methods."""
    return _matching(ctx, incomplete, lambda c: ((m.name, m.title) for m in c.offers.methods()))


def networks(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return names of networks."""
    return _matching(
        ctx,
        incomplete,
        lambda c: (
            (n.name, n.description or "") for n in c.offers.networks(search=incomplete or None)
        ),
    )


def models(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return names of models, and of the versions of one whose name is there."""
    return _matching(ctx, incomplete, _models(incomplete))


def datasets(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return names of data sets, and of the versions of one whose name is there."""
    return _matching(ctx, incomplete, _datasets(incomplete))


def models_and_datasets(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return names of models and of data sets."""
    return _matching(ctx, incomplete, _models(incomplete), _datasets(incomplete))


def things(ctx: typer.Context, incomplete: str) -> list[Offer]:
    """Return what can be downloaded or deleted: jobs, studies, models, data sets."""
    kind = (ctx.params.get("words") or [None])[0]
    if kind == "dataset":
        return datasets(ctx, incomplete)
    if kind == "model":
        return models(ctx, incomplete)
    return _matching(ctx, incomplete, _jobs, _studies, _models(incomplete))


def _jobs(retort: "client.Client") -> Iterator[Offer]:
    return ((job.id, f"{job.name or ''} ({job.state})") for job in retort.jobs.list())


def _studies(retort: "client.Client") -> Iterator[Offer]:
    return ((study.id, f"{study.name or ''} ({study.state})") for study in retort.studies.list())


def _models(incomplete: str) -> "Callable[[client.Client], Iterator[Offer]]":
    name, at, _ = incomplete.partition("@")
    if at:
        return lambda c: ((v.reference, v.state) for v in c.models.versions(name))
    return lambda c: ((model.name, "model") for model in c.models.list())


def _datasets(incomplete: str) -> "Callable[[client.Client], Iterator[Offer]]":
    name, at, _ = incomplete.partition("@")
    if at:
        return lambda c: ((v.reference, v.state) for v in c.datasets.versions(name))
    return lambda c: ((dataset.name, "data set") for dataset in c.datasets.list())


def _matching(
    ctx: typer.Context,
    incomplete: str,
    *sources: "Callable[[client.Client], Iterable[Offer]]",
) -> list[Offer]:
    import httpx

    from retort import client, config

    def given(option: str) -> str | None:
        return ctx.params.get(option) or ctx.find_root().params.get(option)

    found: list[Offer] = []
    try:
        server = config.find(given("url"), given("api_key"))
        with client.Client(server.url, server.api_key, timeout=_SECONDS, attempts=1) as retort:
            for source in sources:
                offered = (offer for offer in source(retort) if offer[0].startswith(incomplete))
                found += islice(offered, _MOST)
    except (errors.RetortError, httpx.HTTPError):
        pass  # see above
    return found
