"""Commands for webhooks: who is told of a project's events, and what became of each delivery."""

from typing import TYPE_CHECKING, Annotated

import typer

from retort.cli import shell

if TYPE_CHECKING:
    from retort import types

app = typer.Typer(help="Webhooks: addresses that are told of the project's events.")

Endpoint = Annotated[str, typer.Argument(metavar="ENDPOINT", help="Id of the endpoint: whe_...")]


@app.command("create")
@shell.connected
def create(
    retort: shell.Shell,
    address: Annotated[str, typer.Argument(metavar="URL", help="https:// and a public host.")],
    events: Annotated[
        list[str] | None,
        typer.Option("--event", metavar="TYPE", help="Only these, such as job.succeeded."),
    ] = None,
    description: Annotated[str, typer.Option(help="What the endpoint is for.")] = "",
) -> None:
    """Create an endpoint and print its secret: it is never shown again."""
    _show_secret(
        retort, retort.client.webhooks.create(address, events=events, description=description)
    )


@app.command("list")
@shell.connected
def list_endpoints(retort: shell.Shell) -> None:
    """List the endpoints."""
    from retort.cli import display

    endpoints = list(retort.client.webhooks.list())
    if retort.json:
        retort.emit(endpoints)
        return
    display.table(
        retort.out,
        ("id", "url", "events", "state", "last delivered"),
        (
            (
                one.id,
                one.url,
                "all" if one.events is None else ", ".join(one.events),
                _state(one),
                display.age(one.last_delivered_at) or "never",
            )
            for one in endpoints
        ),
        whole=("id", "state"),
        drops=("events", "last delivered"),
    )


@app.command("enable")
@shell.connected
def enable(retort: shell.Shell, endpoint: Endpoint) -> None:
    """Enable a disabled endpoint; what waits for it is sent."""
    _changed(retort, retort.client.webhooks.change(endpoint, enabled=True))


@app.command("disable")
@shell.connected
def disable(retort: shell.Shell, endpoint: Endpoint) -> None:
    """Disable an endpoint; what happens meanwhile is not kept for it."""
    _changed(retort, retort.client.webhooks.change(endpoint, enabled=False))


@app.command("rotate")
@shell.connected
def rotate(retort: shell.Shell, endpoint: Endpoint) -> None:
    """Replace the secret and print the new one; the former one is in force for a day too."""
    _show_secret(retort, retort.client.webhooks.rotate_secret(endpoint))


@app.command("delete")
@shell.connected
def delete(retort: shell.Shell, endpoint: Endpoint) -> None:
    """Delete an endpoint with the log of its deliveries."""
    retort.client.webhooks.delete(endpoint)
    if retort.json:
        retort.emit({"deleted": endpoint})
    else:
        retort.out.print(f"{endpoint} is deleted")


@app.command("deliveries")
@shell.connected
def deliveries(
    retort: shell.Shell,
    endpoint: Endpoint,
    limit: shell.LimitOption = 20,
    state: Annotated[
        str | None, typer.Option(help="Only pending, delivered or failed ones.")
    ] = None,
) -> None:
    """List the deliveries of an endpoint, with what the last attempt of each said."""
    import itertools

    from retort.cli import display

    found = retort.client.webhooks.deliveries(endpoint, state=state, page_size=min(limit, 100))
    shown = list(itertools.islice(found, limit))
    if retort.json:
        retort.emit(shown)
        return
    display.table(
        retort.out,
        ("id", "event", "state", "attempts", "last answer", "age"),
        (
            (
                one.id,
                one.type,
                one.state,
                len(one.attempts),
                _said(one),
                display.age(one.created_at),
            )
            for one in shown
        ),
        whole=("id", "state"),
        folds=("last answer",),
        drops=("age",),
    )


@app.command("redeliver")
@shell.connected
def redeliver(
    retort: shell.Shell,
    endpoint: Endpoint,
    delivery: Annotated[
        str, typer.Argument(metavar="DELIVERY", help="Id of the delivery: whd_...")
    ],
) -> None:
    """Send a delivery again now, under the same id."""
    again = retort.client.webhooks.redeliver(endpoint, delivery)
    if retort.json:
        retort.emit(again)
    else:
        retort.out.print(f"{again.id} ({again.type}) is {again.state}")


def _show_secret(retort: shell.Shell, made: "types.NewWebhookEndpoint") -> None:
    if retort.json:
        retort.emit(made)
        return
    retort.out.print(made.secret, soft_wrap=True)
    retort.note(f"{made.id} for {made.url}: keep the secret, it is not shown again")


def _changed(retort: shell.Shell, endpoint: "types.WebhookEndpoint") -> None:
    if retort.json:
        retort.emit(endpoint)
    else:
        retort.out.print(f"{endpoint.id} is {_state(endpoint)}")


def _state(endpoint: "types.WebhookEndpoint") -> str:
    if not endpoint.enabled:
        return f"disabled ({endpoint.disabled_reason})"
    return "failing" if endpoint.failing_since else "enabled"


def _said(delivery: "types.WebhookDelivery") -> str:
    if not delivery.attempts:
        return ""
    last = delivery.attempts[-1]
    return last.error or str(last.status or "no answer yet")
