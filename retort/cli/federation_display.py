"""Show federations in the terminal, within 80 columns."""

from collections.abc import Iterable, Sequence

import rich.console
import rich.table
import rich.text

from retort import types
from retort.cli import display

_NAME_WIDTH = 18


def federations(console: rich.console.Console, shown: Iterable[types.Federation]) -> None:
    """Print a list of federations."""
    display.table(
        console,
        ("id", "method", "state", "round", "joined", "age"),
        (
            (
                one.id,
                one.method,
                one.state,
                f"{one.round}/{one.rounds}",
                f"{one.joined}/{one.invited}",
                display.age(one.created_at),
            )
            for one in shown
        ),
    )


def whole(shown: types.Federation, clients: Sequence[types.FederationClient]) -> rich.console.Group:
    """Return a federation with a row for each client, by name."""
    head = rich.text.Text(line(shown, clients))
    grid = rich.table.Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    grid.add_column("CLIENT", max_width=_NAME_WIDTH, no_wrap=True, overflow="ellipsis")
    grid.add_column("STATE", no_wrap=True)
    for name in ("SAMPLES", "ROUND", "UP", "DOWN", "ACCURACY", "LATE"):
        grid.add_column(name, justify="right", no_wrap=True)
    for one in sorted(clients, key=lambda client: client.name):
        grid.add_row(
            rich.text.Text(one.name),
            one.state,
            "-" if one.samples is None else f"{one.samples:,}",
            "-" if one.last_round is None else str(one.last_round),
            display.size(one.bytes_up),
            display.size(one.bytes_down),
            _accuracy(one),
            str(one.late + one.refused) if one.late + one.refused else "-",
        )
    return rich.console.Group(head, grid)


def line(shown: types.Federation, clients: Sequence[types.FederationClient]) -> str:
    """Return the state of a federation in one line."""
    scores = [one.metrics["accuracy"] for one in clients if "accuracy" in one.metrics]
    words = [
        f"{shown.state}: {shown.method}, round {shown.round} of {shown.rounds}",
        f"{shown.joined} of {shown.invited} clients joined (a round needs {shown.min_clients})",
    ]
    if scores:
        words.append(f"mean client accuracy {sum(scores) / len(scores):.3f}")
    if shown.is_final and shown.state_message:
        words.append(shown.state_message)
    return "; ".join(words)


def rounds(console: rich.console.Console, shown: Iterable[types.FederationRound]) -> None:
    """Print the rounds of a federation."""
    display.table(
        console,
        ("round", "state", "replies", "up", "down each", "seconds"),
        (
            (
                one.number,
                one.state,
                one.replies,
                display.size(one.bytes_up),
                "-" if one.bytes_down is None else display.size(one.bytes_down),
                _seconds(one),
            )
            for one in shown
        ),
    )


def invited(console: rich.console.Console, shown: Iterable[types.InvitedClient]) -> None:
    """Print the keys of new clients, whole: they are not shown again."""
    for one in shown:
        console.print(f"{one.name}  {one.client_key}", soft_wrap=True)


def _accuracy(one: types.FederationClient) -> str:
    return f"{one.metrics['accuracy']:.3f}" if "accuracy" in one.metrics else "-"


def _seconds(one: types.FederationRound) -> str:
    if one.opened_at is None or one.published_at is None:
        return "-"
    return f"{(one.published_at - one.opened_at).total_seconds():.1f}"
