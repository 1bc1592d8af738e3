"""Print exports: what there is, and how each compares with the original."""

from collections.abc import Iterable, Sequence

import rich.console

from retort import types
from retort.cli import display


def export(console: rich.console.Console, shown: types.Export) -> None:
    """Print everything about one export."""
    checks, latency = shown.checks or {}, shown.latency or {}
    failure = shown.failure
    display.card(
        console,
        [
            ("export", shown.id),
            ("model", shown.model),
            ("format", _form(shown)),
            ("state", shown.state),
            ("because", f"{failure.message} ({failure.code})" if failure else None),
            *(("note", note) for note in shown.notes),
            ("compared on", f"{checks['images']:,} images" if checks else None),
            ("equal decisions", _equal(checks)),
            ("largest difference", f"{checks['largest_logit_difference']:.3g}" if checks else None),
            (str(checks.get("metric") or "metric"), _metric(checks)),
            ("latency", _latency(latency)),
            ("opset", None if shown.opset is None else str(shown.opset)),
            ("written with", _versions(shown)),
            ("created", display.moment(shown.created_at)),
            *(("file", f"{f.path}  {display.size(f.size_bytes)}") for f in shown.files),
        ],
    )


def exports(console: rich.console.Console, shown: Iterable[types.Export]) -> None:
    """Print a table of exports."""
    display.table(
        console,
        ("export", "format", "state", "metric", "equal", "latency", "size"),
        [
            (
                each.id,
                _form(each),
                each.state,
                _metric(each.checks or {}),
                _equal(each.checks or {}),
                _latency(each.latency or {}),
                display.size(sum(file.size_bytes for file in each.files)) if each.files else None,
            )
            for each in shown
        ],
        whole=("export",),
        drops=("latency", "equal"),
    )


def prediction(
    console: rich.console.Console, names: Sequence[str], shown: types.Prediction
) -> None:
    """Print what a model says of each picture, the likeliest first."""
    display.table(
        console,
        ("picture", "class", "value", "box"),
        [
            (name, str(one["class"]), _value(one), _box(one))
            for name, answer in zip(names, shown.answers or [], strict=True)
            for one in _told(answer)
        ],
        folds=("picture",),
    )


def _told(answer: types.Json) -> list[types.Json]:
    """Return classes, shares or boxes, whichever the model gives."""
    return answer.get("classes") or answer.get("shares") or answer.get("boxes") or []


def _value(one: types.Json) -> str:
    value = next(one[key] for key in ("probability", "share", "score") if key in one)
    return f"{value:.4f}"


def _box(one: types.Json) -> str | None:
    return ", ".join(f"{side:.1f}" for side in one["box"]) if "box" in one else None


def _form(shown: types.Export) -> str:
    inside = ", with preprocessing" if shown.include_preprocessing else ""
    return f"{shown.format} {shown.precision}{inside}"


def _equal(checks: types.Json) -> str | None:
    if not checks:
        return None
    return f"{checks['decisions_equal']:,} of {checks['decisions']:,} {checks['decisions_of']}"


def _metric(checks: types.Json) -> str | None:
    if checks.get("accuracy") is None:
        return None
    return f"{checks['accuracy']:.4f} (original {checks['original_accuracy']:.4f})"


def _latency(latency: types.Json) -> str | None:
    if not latency:
        return None
    return f"{latency['ms']:.3g} ms (original {latency['original_ms']:.3g} ms)"


def _versions(shown: types.Export) -> str | None:
    listed = ", ".join(f"{name} {version}" for name, version in shown.library_versions.items())
    return listed or None
