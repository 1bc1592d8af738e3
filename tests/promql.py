"""Evaluates the part of PromQL that our alerts and dashboard use, over scraped samples.

The expressions are read by the parser of the `promql-parser` package; what is not written here
raises. Not as Prometheus does it: the window of a rate is taken to be full, so nothing is
extrapolated to its ends.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import promql_parser
from prometheus_client.parser import text_string_to_metric_families

Labels = tuple[tuple[str, str], ...]
Vector = dict[Labels, float]
STALE_SECONDS = 300.0
COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
}
COMPUTE: dict[str, Callable[[float, float], float]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b if b else math.nan,
}
FOLD: dict[str, Callable[[list[float]], float]] = {"sum": sum, "max": max, "min": min}


@dataclass
class History:
    """Samples by series, each with its times in seconds."""

    series: dict[Labels, list[tuple[float, float]]] = field(default_factory=dict)

    def scrape(self, text: str | None, *, at: float, **target: str) -> None:
        """Add what a target answered, None where it did not answer, and its `up`."""
        self._add({"__name__": "up", **target}, at, float(text is not None))
        for family in text_string_to_metric_families(text or ""):
            for sample in family.samples:
                self._add({"__name__": sample.name, **sample.labels, **target}, at, sample.value)

    def _add(self, labels: dict[str, str], at: float, value: float) -> None:
        self.series.setdefault(tuple(sorted(labels.items())), []).append((at, value))


def names(expression: str) -> set[str]:
    """Return the names of the metrics that an expression reads."""
    return {node.name for node in _walk(promql_parser.parse(expression)) if _is_vector(node)}


def evaluate(expression: str, history: History, *, at: float) -> Vector | float:
    """Return the value of an expression at a time."""
    return _value(promql_parser.parse(expression), history, at)


def _is_vector(node: Any) -> bool:
    return isinstance(node, promql_parser.VectorSelector)


# Any: nodes of the parser, which has no types.
def _walk(node: Any) -> Iterator[Any]:
    yield node
    for name in ("expr", "lhs", "rhs", "vector_selector"):
        if getattr(node, name, None) is not None:
            yield from _walk(getattr(node, name))
    for argument in getattr(node, "args", []):
        yield from _walk(argument)


def _value(node: Any, history: History, at: float) -> Any:
    match type(node).__name__:
        case "NumberLiteral":
            return node.val
        case "ParenExpr":
            return _value(node.expr, history, at)
        case "VectorSelector":
            found = _select(node, history, at - STALE_SECONDS, at)
            return {_unnamed(labels): points[-1][1] for labels, points in found.items()}
        case "Call":
            return _call(node, history, at)
        case "AggregateExpr":
            return _aggregate(node, _value(node.expr, history, at))
        case "BinaryExpr":
            return _binary(node, _value(node.lhs, history, at), _value(node.rhs, history, at))
    raise NotImplementedError(type(node).__name__)


def _select(
    node: Any, history: History, after: float, until: float
) -> dict[Labels, list[tuple[float, float]]]:
    found = {}
    for labels, points in history.series.items():
        given = dict(labels)
        if node.name is not None and given["__name__"] != node.name:
            continue
        if all(_fits(matcher, given.get(matcher.name, "")) for matcher in node.matchers.matchers):
            inside = [(at, value) for at, value in points if after < at <= until]
            if inside:
                found[labels] = inside
    return found


def _fits(matcher: Any, value: str) -> bool:
    match str(matcher.op).rpartition(".")[2]:
        case "Equal":
            return bool(value == matcher.value)
        case "NotEqual":
            return bool(value != matcher.value)
        case "Re":
            return re.fullmatch(matcher.value, value) is not None
        case "NotRe":
            return re.fullmatch(matcher.value, value) is None
    raise NotImplementedError(str(matcher.op))


def _call(node: Any, history: History, at: float) -> Vector:
    name = node.func.name
    if name == "absent":
        return {} if _value(node.args[0], history, at) else {(): 1.0}
    if name == "histogram_quantile":
        return _quantile(node.args[0].val, _value(node.args[1], history, at))
    if name not in ("rate", "increase", "delta"):
        raise NotImplementedError(name)
    window: timedelta = node.args[0].range
    seconds = window.total_seconds()
    found = _select(node.args[0].vector_selector, history, at - seconds, at)
    per_second = {
        _unnamed(labels): _rise(points, resets=name != "delta") / (points[-1][0] - points[0][0])
        for labels, points in found.items()
        if len(points) > 1
    }
    factor = 1.0 if name == "rate" else seconds
    return {labels: value * factor for labels, value in per_second.items()}


def _rise(points: list[tuple[float, float]], *, resets: bool) -> float:
    total = 0.0
    for (_, before), (_, after) in itertools.pairwise(points):
        total += after if resets and after < before else after - before
    return total


def _quantile(share: float, buckets: Vector) -> Vector:
    grouped: dict[Labels, list[tuple[float, float]]] = {}
    for labels, value in buckets.items():
        rest = tuple(pair for pair in labels if pair[0] != "le")
        grouped.setdefault(rest, []).append((float(dict(labels)["le"]), value))
    found = {}
    for labels, unsorted in grouped.items():
        edges = sorted(unsorted)
        wanted = share * edges[-1][1]
        below, counted = 0.0, 0.0
        for edge, count in edges:
            if count >= wanted and count > counted:
                width = edge - below
                inside = (wanted - counted) / (count - counted)
                found[labels] = below if math.isinf(edge) else below + width * inside
                break
            below, counted = edge, count
    return found


def _aggregate(node: Any, vector: Vector) -> Vector:
    modifier = node.modifier
    if modifier is not None and not str(modifier.type).endswith("By"):
        raise NotImplementedError(str(modifier.type))
    kept = set(modifier.labels) if modifier is not None else set()
    grouped: dict[Labels, list[float]] = {}
    for labels, value in vector.items():
        group = tuple(pair for pair in labels if pair[0] in kept)
        grouped.setdefault(group, []).append(value)
    return {group: FOLD[str(node.op)](values) for group, values in grouped.items()}


def _binary(node: Any, left: Any, right: Any) -> Any:
    operator = str(node.op)
    if operator in ("and", "or", "unless"):
        return _set_operation(operator, node.modifier, left, right)
    if isinstance(left, float) and isinstance(right, float):
        return COMPUTE[operator](left, right)
    pairs: list[tuple[Labels, float, float]]
    if isinstance(right, float):
        pairs = [(labels, value, right) for labels, value in left.items()]
    elif isinstance(left, float):
        pairs = [(labels, left, value) for labels, value in right.items()]
    else:
        others = {_key(node.modifier, labels): value for labels, value in right.items()}
        pairs = [
            (labels, value, others[_key(node.modifier, labels)])
            for labels, value in left.items()
            if _key(node.modifier, labels) in others
        ]
    if operator in COMPARE:
        return {labels: a for labels, a, b in pairs if COMPARE[operator](a, b)}
    return {labels: COMPUTE[operator](a, b) for labels, a, b in pairs}


def _set_operation(operator: str, modifier: Any, left: Vector, right: Vector) -> Vector:
    theirs = {_key(modifier, labels) for labels in right}
    if operator == "or":
        ours = {_key(modifier, labels) for labels in left}
        return left | {k: v for k, v in right.items() if _key(modifier, k) not in ours}
    wanted = operator == "and"
    return {k: v for k, v in left.items() if (_key(modifier, k) in theirs) is wanted}


def _key(modifier: Any, labels: Labels) -> Labels:
    if modifier is None or modifier.matching is None:
        return labels
    if not str(modifier.matching.type).endswith(("On", "Include")):
        raise NotImplementedError(str(modifier.matching.type))
    return tuple(pair for pair in labels if pair[0] in modifier.matching.labels)


def _unnamed(labels: Labels) -> Labels:
    return tuple(pair for pair in labels if pair[0] != "__name__")
