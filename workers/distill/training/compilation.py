"""Compiling networks: when it is worth its time, and a trial before it is relied on."""

import torch
import torch._functorch.config as functorch_config
from torch import Tensor

from workers.distill.config.training import Training
from workers.distill.networks.interface import Network, Observe
from workers.distill.runtime.precision import Precision

COMPILE_STEPS = 5_000
"""Compiling takes about a minute; a shorter run does not earn that back."""


def choose_compile(training: Training, device: torch.device, steps: int) -> bool:
    """Resolve `auto`: compile on CUDA when the run is long enough to earn it back."""
    if training.compile == "auto":
        # Compiled code frees its saved tensors after one backward pass; DOT makes two.
        twice = training.optimizer.name == "dot"
        return device.type == "cuda" and steps >= COMPILE_STEPS and not twice
    return training.compile == "on"


def allow_several_backward_passes() -> None:
    """Have networks that are compiled from now on keep what a second backward pass needs.

    Compiled code reuses the memory of saved tensors otherwise. It is set for the whole process,
    and read again at each backward pass.
    """
    functorch_config.donated_buffer = False


def compile_network(network: Network, example: Tensor, precision: Precision) -> Observe:
    """Return a compiled `observe`, tried once forwards and backwards; raises what that raises.

    Weights, statistics and random numbers are the same afterwards.
    """
    observe: Observe = torch.compile(network.observe, dynamic=False)
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    devices = [precision.device] if precision.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        learns = any(parameter.requires_grad for parameter in network.parameters())
        with torch.set_grad_enabled(learns), precision.autocast():
            logits = observe(example).logits
        if learns:
            logits.float().sum().backward()  # type: ignore[no-untyped-call]  # torch's stub
    network.load_state_dict(kept)
    network.zero_grad(set_to_none=True)
    return observe
