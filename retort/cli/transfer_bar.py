"""Show the progress of a transfer: a bar on a terminal, a line every few seconds elsewhere."""

import contextlib
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

from retort.cli import display

LINE_SECONDS = 5.0


@contextlib.contextmanager
def shown(console: rich.console.Console, title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Yield a callback that takes (bytes so far, total bytes) and shows them."""
    if not console.is_terminal:
        yield _lines(console, title)
        return
    columns = (
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(bar_width=30),
        rich.progress.DownloadColumn(binary_units=True),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    with rich.progress.Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _lines(console: rich.console.Console, title: str) -> Callable[[int, int | None], None]:
    last = time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_SECONDS:
            last = time.monotonic()
            of = f" of {display.size(total)}" if total else ""
            console.print(f"{title}: {display.size(done)}{of}", soft_wrap=True)

    return show
