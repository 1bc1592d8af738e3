"""Write a network's weights under plain names, alone or as the files of a Hugging Face repository.

A network of timm is described as timm does it, so that
`timm.create_model("local-dir:FOLDER", pretrained=True)` builds and loads it. Other networks have
our own `config.json`, and where it can be written their source in `model.py`.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.config.job import Input, Task
from workers.distill.export import half_precision, standalone
from workers.distill.export.source_modules import CannotBundleError
from workers.distill.files import tensorfile
from workers.distill.networks.interface import Network

STATE_DICT_FILE = "model.pth"
WEIGHTS_FILE = "model.safetensors"
TIMM = "timm.create_model"
PIPELINES: dict[Task, str] = {
    "classification": "image-classification",
    "segmentation": "image-segmentation",
    "detection": "object-detection",
}
_BILINEAR = 2  # as Pillow counts its filters


def _tensors(network: Network, *, half: bool) -> tuple[dict[str, Tensor], list[str]]:
    """Return a network's tensors by name, and what their user should know of them."""
    return half_precision.rounded(network) if half else (network.state_dict(), [])


def write_state_dict(network: Network, path: Path, *, half: bool) -> list[str]:
    """Write a file for `torch.load(path, weights_only=True)` with tensors by name, and no more.

    Returns: what its user should know.
    """
    tensors, notes = _tensors(network, half=half)
    torch.save(tensors, path)
    return notes


def write(
    network: Network,
    folder: Path,
    *,
    task: Task,
    classes: Sequence[str],
    expected: Input,
    preprocessing: Mapping[str, Any],
    card: str,
    name: str,
    half: bool,
) -> list[str]:
    """Write the files of a repository into `folder`, and return what their user should know."""
    tensors, notes = _tensors(network, half=half)
    tensorfile.write(folder / WEIGHTS_FILE, tensors, {"format": "pt"})
    _json(
        folder / "config.json", _config(network, task, classes, expected, preprocessing["crop_pct"])
    )
    _json(folder / "preprocessor_config.json", _preprocessor(preprocessing))
    (folder / "README.md").write_text(_readme(card, name, task, network), encoding="utf-8")
    if network.library_call is not None:
        return notes
    try:
        if (reason := standalone.why_not(network.reference, network.arguments)) is None:
            written = standalone.write(network)
            (folder / standalone.FILE).write_text(written.text, encoding="utf-8")
            return notes
    except CannotBundleError as error:
        reason = str(error)
    return [*notes, f"there is no {standalone.FILE} that builds the network: {reason}"]


def _config(
    network: Network, task: Task, classes: Sequence[str], expected: Input, crop_pct: float
) -> dict[str, Any]:
    labels = {
        "id2label": {str(number): label for number, label in enumerate(classes)},
        "label2id": {label: number for number, label in enumerate(classes)},
    }
    if is_of_timm(network):
        return {**_timm_config(network, classes, expected, crop_pct), **labels}
    return {
        "model_type": "retort",
        "network": network.reference,
        "arguments": dict(network.arguments),
        "task": task,
        "classes": list(classes),
        "input": expected.model_dump(mode="json"),
        "library_call": network.library_call and dataclasses.asdict(network.library_call),
        **labels,
    }


def is_of_timm(network: Network) -> bool:
    """Return whether timm alone builds the network, as it stands."""
    call = network.library_call
    return call is not None and call.function == TIMM and not call.replaced


def _timm_config(
    network: Network, classes: Sequence[str], expected: Input, crop_pct: float
) -> dict[str, Any]:
    call = network.library_call
    if call is None:
        raise errors.NotExportable(f"{network.reference} is no network of timm")
    size = [expected.channels, expected.height, expected.width]
    keywords = {
        key: value
        for key, value in call.keywords.items()
        if key not in ("pretrained", "num_classes")
    }
    own: Any = network
    described = dict(getattr(own, "pretrained_cfg", None) or {})
    return {
        "architecture": call.name,
        "num_classes": len(classes),
        "num_features": network.pooled_width,
        "label_names": list(classes),
        "model_args": keywords,
        "pretrained_cfg": {
            "custom_load": False,
            "input_size": size,
            "fixed_input_size": bool(described.get("fixed_input_size", False)),
            "interpolation": "bilinear",
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": list(expected.mean),
            "std": list(expected.std),
            "num_classes": len(classes),
            "pool_size": None,
            # Named ones would be adapted to the number of channels and classes, which fit already.
            "first_conv": None,
            "classifier": described.get("classifier"),
        },
    }


def _preprocessor(preprocessing: Mapping[str, Any]) -> dict[str, Any]:
    height, width = preprocessing["picture_size"]
    _, tall, wide = preprocessing["input_size"]
    return {
        "do_resize": True,
        "size": {"height": height, "width": width},
        "crop_mode": preprocessing["crop_mode"],
        "crop_pct": preprocessing["crop_pct"],
        "resample": _BILINEAR,
        "input_size": {"height": tall, "width": wide},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": preprocessing["mean"],
        "image_std": preprocessing["std"],
    }


def _readme(card: str, name: str, task: Task, network: Network) -> str:
    """Return the model's own card, with a YAML header where it has none."""
    if card.startswith("---\n"):
        return card
    fields = {
        "library_name": "timm" if is_of_timm(network) else "pytorch",
        "pipeline_tag": PIPELINES[task],
        "tags": [PIPELINES[task]],
    }
    header = "\n".join(f"{key}: {json.dumps(value)}" for key, value in fields.items())
    text = card or f"# {name}\n\n`{network.reference}`, exported from a registry of models.\n"
    return f"---\n{header}\n---\n\n{text}"


def _json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
