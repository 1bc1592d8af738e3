"""Tables in Markdown, as docs/measurements.md has them."""

import statistics
from collections.abc import Mapping, Sequence


def of_rounds(
    found: Mapping[str, Sequence[Mapping[str, float]]], columns: Sequence[str], corner: str
) -> str:
    """Return one row for each thing measured: medians of its rounds, with lowest and highest."""
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, rounds in found.items():
        cells = []
        for column in columns:
            values = [one[column] for one in rounds]
            cells.append(
                f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
            )
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
