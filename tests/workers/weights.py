"""Weights of the tiny network, without training it."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from tests.workers import scenes
from workers.distill.networks import catalog, weights
from workers.distill.networks.interface import Network


def tiny_network(widths: Sequence[int] = scenes.TINY["arguments"]["widths"]) -> Network:
    """Return an untrained network that fits the digits, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return catalog.build(
            scenes.TINY["network"],
            classes=10,
            channels=1,
            height=8,
            width=8,
            arguments={"widths": list(widths)},
        )


def tiny_safetensors(widths: Sequence[int] = scenes.TINY["arguments"]["widths"]) -> bytes:
    """Return the file of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        weights.save_student(path, tiny_network(widths), {"format": "pt"})
        return path.read_bytes()
