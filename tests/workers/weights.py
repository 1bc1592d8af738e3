"""Weights of the tiny network, without training it."""

import tempfile
from pathlib import Path

import torch

from tests.workers import scenes
from workers.distill.networks import catalog, weights
from workers.distill.networks.interface import Network


def tiny_network() -> Network:
    """Return an untrained network that fits the digits, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return catalog.build(
            scenes.TINY["network"],
            classes=10,
            channels=1,
            height=8,
            width=8,
            arguments=scenes.TINY["arguments"],
        )


def tiny_safetensors() -> bytes:
    """Return the file of its weights."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        weights.save_student(path, tiny_network(), {"format": "pt"})
        return path.read_bytes()
