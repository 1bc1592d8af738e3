"""Kinds of teachers: weights of a network, a graph, or stored predictions; alone or several.

A graph and a table of predictions are registered as versions of models like any other, under a
network of their own (`GRAPH`, `PREDICTIONS`). Both only teach: nothing can be trained or delivered
as one.
"""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

GRAPH = "retort/onnx"
"""Network of a model that is a graph in an ONNX file."""
PREDICTIONS = "retort/predictions"
"""Network of a model that is a table of predictions for the images of a data set."""
ONLY_TEACHERS = frozenset({GRAPH, PREDICTIONS})

Kind: TypeAlias = Literal["weights", "graph", "predictions"]
KINDS: dict[Kind, str] = {
    "weights": "a network with its weights",
    "graph": "an ONNX graph",
    "predictions": "stored predictions",
}
"""Each kind in words."""

WEIGHTS_FILE = "model.safetensors"
GRAPH_FILE = "model.onnx"
PREDICTIONS_FILE = "predictions.safetensors"
FILES = (WEIGHTS_FILE, GRAPH_FILE, PREDICTIONS_FILE)
"""The file that gives a model its digest is one of these."""

MOST_TEACHERS = 8
"""Of one job; all of them are held in memory and run in every step."""

SEVERAL_LIMITS = "several teachers have logits in common, and no features"
"""Why several teachers show less than one, to end a sentence with."""

Weighting: TypeAlias = Literal["probabilities", "logits", "confidence"]
WEIGHTING = (
    "How several teachers become one. probabilities: the mean of their probabilities; logits: the "
    "mean of their logits; confidence: the mean of their probabilities, image by image weighted "
    "by the inverse of each teacher's entropy (Kwon et al., Adaptive Knowledge Distillation Based "
    "on Entropy, ICASSP 2020). Null takes probabilities."
)


ROLE = "teacher "
"""What one of several teachers is called, before its number from 1."""


def role_of(place: int, count: int) -> str:
    """Return what one of a job's teachers is called in messages: `teacher`, or `teacher 2`."""
    return "teacher" if count == 1 else f"{ROLE}{place + 1}"


def kind_of(network: str) -> Kind:
    """Return what kind of teacher a model with this network is."""
    if network == GRAPH:
        return "graph"
    return "predictions" if network == PREDICTIONS else "weights"


def file_of(network: str) -> str:
    """Return the name of the file that a model with this network is kept in."""
    return {GRAPH: GRAPH_FILE, PREDICTIONS: PREDICTIONS_FILE}.get(network, WEIGHTS_FILE)


def folder_of(place: int, count: int) -> str:
    """Return the folder below the working folder with the file of one of a job's teachers."""
    return "teacher" if count == 1 else f"teacher-{place + 1}"


def arguments_of_views(arguments: dict[str, Any]) -> tuple[int, int | None, str | None]:
    """Return views an image, and the seed and the augmentation by which they were made."""
    return arguments.get("views", 1), arguments.get("seed"), arguments.get("augmentation")


def in_words(kinds: Sequence[Kind]) -> str:
    """Return what taught, such as `an ONNX graph` or `2 teachers: an ONNX graph, ...`."""
    if len(kinds) == 1:
        return KINDS[kinds[0]]
    return f"{len(kinds)} teachers: {', '.join(KINDS[kind] for kind in kinds)}"
