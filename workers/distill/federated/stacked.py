"""Many clients trained at once: their weights stacked, each step one vectorised call.

Clients have the same network, and each step is the one that `client.LocalClient.train` would make:
same batches, same order, same optimizer, whose arithmetic is elementwise. Batches that are shorter
than others are padded and masked; a client that has finished its round leaves the stack. Results
equal those of the loop up to rounding, because sums are made in another order.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int, Real, UInt8
from torch import Tensor, nn
from torch.func import functional_call, grad, stack_module_state, vmap

from workers.distill.config.training import Training
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch
from workers.distill.federated import client as one
from workers.distill.federated.client import ClientContext, LocalClient, LocalOutcome
from workers.distill.methods.base import Terms
from workers.distill.methods.federated.base import LocalStep
from workers.distill.networks.interface import Features, Network
from workers.distill.training.optimizers import make_optimizer
from workers.distill.training.schedules import rate_factor

Stacked: TypeAlias = dict[str, Tensor]
"""Tensors of several clients, one row each."""
LARGEST_EPOCHS_BYTES = 1 << 30
"""Most that the images of a round may take, as bytes and as inputs, which are all held at once."""
PREFIX = "network."


class _Observer(nn.Module):
    """A network whose forward pass returns all features, for `functional_call`."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Features:
        return self.network.observe(images)


def refusal(network: Network, shared: ClientContext) -> str | None:
    """Return why clients with such a network cannot be trained at once, or None if they can."""
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return (
                f"{network.reference} has batch norms ({name}), whose running statistics cannot be "
                "vectorised in training"
            )
        if isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0:
            return f"{network.reference} has dropout ({name}), whose draws would be other ones"
    if shared.training.optimizer.name == "dot":
        return "optimizer dot goes backwards twice through each step"
    if shared.training.optimizer.name == "lamb":
        return "optimizer lamb scales a step by the norm of each client's own weight"
    if shared.precision.name != "float32":
        return f"precision {shared.precision.name} is not float32"
    return _failure(network, shared)


def _failure(network: Network, shared: ClientContext) -> str | None:
    """Return why a vectorised forward and backward pass of two copies fails, or None."""
    pair = StackedNetworks([network, network])
    images = torch.zeros(2, 2, *network.image_shape, device=shared.device)

    def loss(weights: Stacked, buffers: Stacked, inputs: Tensor) -> Tensor:
        return pair.observe(weights, buffers, inputs).logits.sum()

    try:
        vmap(grad(loss))(pair.weights, pair.buffers, images)
    except (RuntimeError, TypeError, ValueError) as error:
        return f"{network.reference} cannot be vectorised ({type(error).__name__}: {error})"[:300]
    return None


class StackedNetworks:
    """Weights and buffers of networks of one architecture, with a leading client axis."""

    def __init__(self, networks: Sequence[Network]) -> None:
        weights, buffers = stack_module_state(list(networks))
        self.weights: Stacked = {name: value.detach() for name, value in weights.items()}
        self.buffers: Stacked = dict(buffers)
        self._observer = _Observer(copy.deepcopy(networks[0]).to("meta"))
        self._observer.network.train(networks[0].training)

    def observe(
        self, weights: Mapping[str, Tensor], buffers: Mapping[str, Tensor], images: Tensor
    ) -> Features:
        """Return the features of one client's network."""
        state = {f"{PREFIX}{name}": value for name, value in {**weights, **buffers}.items()}
        features: Features = functional_call(self._observer, state, (images,))
        return features

    def logits(
        self, preprocess: Callable[[Tensor], Tensor], images: UInt8[Tensor, "N c h w"]
    ) -> Float[Tensor, "K N C"]:
        """Return each network's logits of the same images, in evaluation mode."""
        self._observer.network.eval()

        def forward(weights: Stacked, buffers: Stacked, inputs: Tensor) -> Tensor:
            return self.observe(weights, buffers, inputs).logits.float()

        with torch.no_grad():
            parts = [
                vmap(forward, in_dims=(0, 0, None))(
                    self.weights, self.buffers, preprocess(images[first : first + one.EVALUATED])
                )
                for first in range(0, len(images), one.EVALUATED)
            ]
        return torch.cat(parts, 1)


class StackedOptimizer:
    """An optimizer of stacked weights; clients leave from the end of the stack."""

    def __init__(self, weights: Stacked, training: Training, rate: float) -> None:
        self._training = training
        self._rate = rate
        self._start({name: nn.Parameter(value) for name, value in weights.items()})

    def _start(self, parameters: dict[str, nn.Parameter]) -> None:
        self._parameters = parameters
        self._optimizer = make_optimizer(self._training, list(parameters.values()))
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate

    @property
    def weights(self) -> Stacked:
        """Return the weights as they are."""
        return {name: value.detach() for name, value in self._parameters.items()}

    def step(self, gradients: Stacked) -> None:
        """Update the weights; each client's gradient is clipped on its own."""
        limit = self._training.clip_norm
        if limit is not None:
            gradients = clipped(gradients, limit)
        for name, parameter in self._parameters.items():
            parameter.grad = gradients[name]
        self._optimizer.step()

    def keep_first(self, count: int) -> None:
        """Drop all but the first clients."""
        old, states = self._parameters, dict(self._optimizer.state)
        self._start({name: nn.Parameter(value.detach()[:count]) for name, value in old.items()})
        for name, parameter in self._parameters.items():
            shape = old[name].shape
            self._optimizer.state[parameter] = {
                key: value[:count] if value is not None and value.shape == shape else value
                for key, value in states.get(old[name], {}).items()
            }


def clipped(gradients: Stacked, limit: float) -> Stacked:
    """Return gradients scaled so that each client's norm over all of its tensors is within it."""
    squares = [value.flatten(1).square().sum(1) for value in gradients.values()]
    norms = torch.stack(squares).sum(0).sqrt()
    factors = (limit / (norms + 1e-6)).clamp(max=1.0)  # as the library clips
    return {
        name: value * factors.view(-1, *[1] * (value.dim() - 1))
        for name, value in gradients.items()
    }


@dataclass(frozen=True)
class StackedBatches:
    """Which rows of a common store of images each client sees in each step.

    `images` are channels last: what a network sees of them, or bytes where that would be too large.
    `rows`, `index` and `weights` have a client, a step and a place in the batch; `weights` is 0 in
    padding. `sizes` has the images of a client's step, `steps` the number of steps of each client,
    in falling order.
    """

    images: Real[Tensor, "M h w c"]
    labels: Int[Tensor, " M"]
    rows: Int[Tensor, "K S B"]
    index: Int[Tensor, "K S B"]
    weights: Float[Tensor, "K S B"]
    sizes: Int[Tensor, "K S"]
    steps: list[int]

    def batch(
        self, step: int, clients: int, preprocess: Preprocessor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return inputs, labels, places and weights of the first clients in a step (from 0)."""
        width = int(self.sizes[:clients, step].max())
        rows, index, weights = (
            part[:clients, step, :width] for part in (self.rows, self.index, self.weights)
        )
        # Row by row in memory: many times faster than by `images[rows]`.
        flat = self.images.flatten(1).index_select(0, rows.flatten())
        inputs = flat.view(*rows.shape, *self.images.shape[1:]).permute(0, 1, 4, 2, 3)
        if inputs.dtype == torch.uint8:
            seen = preprocess(inputs.flatten(0, 1))
            inputs = seen.view(*inputs.shape[:2], *seen.shape[1:])
        return inputs, self.labels[rows], index, weights


def epochs_bytes(clients: Sequence[LocalClient]) -> int:
    """Return how many bytes the images of a round of these clients take."""
    loader = clients[0].batches
    passes = 1 if loader.shows_stored else clients[0].shared.federation.local_epochs
    image = loader.images_of(torch.zeros(1, dtype=torch.int64))[0]
    return passes * sum(client.samples for client in clients) * image.nbytes


def plan(clients: Sequence[LocalClient], number: int) -> StackedBatches:
    """Return the batches of a round; the clients must be sorted by their number of steps."""
    contents: list[Batch] = []
    orders: list[Tensor] = []
    """Rows of the store in the order in which they are seen."""
    spans: list[list[tuple[int, int]]] = []
    held = seen = 0
    for client in clients:
        loader = client.batches
        spans.append([])
        for epoch in client.epochs(number):
            if not loader.shows_stored:
                contents.append(loader.whole_epoch(epoch))
                orders.append(held + torch.arange(client.samples))
                held += client.samples
            else:
                orders.append(held + loader.order(epoch))
            spans[-1] += [(seen + start, seen + end) for start, end in loader.bounds]
            seen += client.samples
        if loader.shows_stored:
            contents.append(loader.stored())
            held += client.samples
    steps = [len(own) for own in spans]
    bounds = np.zeros((len(clients), max(steps), 2), dtype=np.int64)  # its calls cost less
    for place, own in enumerate(spans):
        bounds[place, : len(own)] = own
    first, last = torch.from_numpy(bounds).unbind(2)
    sizes = last - first
    offsets = torch.arange(int(sizes.max()))
    shown = offsets < sizes[..., None]
    rows = torch.cat(orders)[torch.where(shown, first[..., None] + offsets, 0)]
    images = torch.cat([content.images for content in contents])
    device = images.device
    return StackedBatches(
        images=_inputs(images, clients[0].shared.preprocess),
        labels=torch.cat([content.labels for content in contents]),
        rows=rows.to(device),
        index=torch.cat([content.index for content in contents])[rows.to(device)],
        weights=shown.float().to(device),
        sizes=sizes,
        steps=steps,
    )


def _inputs(images: UInt8[Tensor, "M c h w"], preprocess: Preprocessor) -> Real[Tensor, "M H W C"]:
    """Return what a network sees of the images, unless that is too large; channels last."""
    one_image = preprocess(images[:1])
    if one_image.nbytes * len(images) > LARGEST_EPOCHS_BYTES:
        return images.permute(0, 2, 3, 1)
    return preprocess(images).permute(0, 2, 3, 1)


def steps_of(client: LocalClient) -> int:
    """Return the number of a client's steps in a round."""
    return client.batches.steps_per_epoch * client.shared.federation.local_epochs


def train(clients: Iterable[LocalClient], number: int) -> dict[str, LocalOutcome]:
    """Train clients with the same network and the same consensus, and return what they record.

    Their networks have the new weights afterwards.
    """
    group = sorted(clients, key=steps_of, reverse=True)  # stable: equal ones keep their order
    for client in group:
        client.start_training()
        client.network.train()
    shared, method = group[0].shared, group[0].shared.method
    batches = plan(group, number)
    stack = StackedNetworks([client.network for client in group])
    rate = shared.training.optimizer.learning_rate * rate_factor(
        shared.training.schedule, shared.moment(number), shared.training.epochs
    )
    optimizer = StackedOptimizer(stack.weights, shared.training, rate)
    buffers = stack.buffers
    memory = _stack([client.memory for client in group])
    received = group[0].received
    record = _stack([client.start_record() for client in group])
    sums: Terms = {}
    outcomes: dict[str, LocalOutcome] = {}

    def loss(
        weights: Stacked,
        buffers: Stacked,
        batch: tuple[Tensor, Tensor, Tensor, Tensor],
        memory: Stacked,
        draws: Stacked,
        record: Stacked,
    ) -> tuple[Tensor, tuple[Terms, Stacked]]:
        inputs, labels, index, shown = batch
        features = stack.observe(weights, buffers, inputs)
        shown_batch = Batch(inputs, labels, index, weights=shown)
        local = LocalStep(memory, received, weights, draws, number)
        terms = method.local_terms(features, shown_batch, local)
        kept = method.record(record, one.detached(features), shown_batch)
        return torch.stack(list(terms.values())).sum(), (terms, kept)

    gradient = vmap(grad(loss, has_aux=True))
    active = len(group)

    def leave(remaining: int) -> None:
        """Write what the clients after the first `remaining` have, and drop them."""
        nonlocal buffers, memory, record, sums, active
        state = {**optimizer.weights, **buffers}
        for place in range(remaining, active):
            client = group[place]
            client.load({name: value[place] for name, value in state.items()})
            outcomes[client.name] = LocalOutcome(
                {name: value[place].clone() for name, value in record.items()},
                {name: value[place] / batches.steps[place] for name, value in sums.items()},
                int(batches.sizes[place].sum()),
            )
        active = remaining
        if remaining:
            optimizer.keep_first(remaining)
            buffers, memory, record, sums = (
                {name: value[:remaining] for name, value in held.items()}
                for held in (buffers, memory, record, sums)
            )

    for step in range(batches.steps[0]):
        finished = sum(steps <= step for steps in batches.steps[:active])
        if finished:
            leave(active - finished)
        batch = batches.batch(step, active, shared.preprocess)
        draws: Stacked = {}
        if method.draws_numbers:
            size = shared.training.batch_size
            draws = _stack([client.draws(number, step + 1, size) for client in group[:active]])
        gradients, (terms, record) = gradient(
            optimizer.weights, buffers, batch, memory, draws, record
        )
        optimizer.step(gradients)
        one.add(sums, terms)
    leave(0)
    return outcomes


def fit_open(clients: Sequence[LocalClient], targets: Float[Tensor, "N C"], number: int) -> None:
    """Train clients with the same network on the open images of a round with such targets."""
    shared, method = clients[0].shared, clients[0].shared.method
    if shared.open_set is None:
        raise ValueError("there is no open set to train on")
    for client in clients:
        client.network.train()
    stack = StackedNetworks([client.network for client in clients])
    moment = shared.moment(max(number, 1))
    rate = shared.training.optimizer.learning_rate * rate_factor(
        shared.training.schedule, moment, shared.training.epochs
    )
    optimizer = StackedOptimizer(stack.weights, shared.training, rate)

    def loss(weights: Stacked, buffers: Stacked, inputs: Tensor, wanted: Tensor) -> Tensor:
        features = stack.observe(weights, buffers, inputs)
        terms = method.adapt_terms(features, wanted, None)
        return torch.stack(list(terms.values())).sum()

    gradient = vmap(grad(loss))
    streams = [
        one.open_batches(
            shared.open_set,
            number,
            batch_size=shared.training.batch_size,
            epochs=method.adapt_epochs,
            seed=client.seed,
        )
        for client in clients
    ]
    inputs = shared.preprocess(shared.open_set.of_round(number))
    for batches in zip(*streams, strict=True):
        places = torch.stack(batches)
        optimizer.step(gradient(optimizer.weights, stack.buffers, inputs[places], targets[places]))
    state = {**optimizer.weights, **stack.buffers}
    for place, client in enumerate(clients):
        client.load({name: value[place] for name, value in state.items()})


def predict(
    clients: Sequence[LocalClient], images: UInt8[Tensor, "N c h w"]
) -> Float[Tensor, "K N C"]:
    """Return the logits of clients with the same network, in evaluation mode."""
    stack = StackedNetworks([client.model for client in clients])
    return stack.logits(clients[0].shared.preprocess, images)


def _stack(several: Sequence[Mapping[str, Any]]) -> Stacked:
    return {name: torch.stack([each[name] for each in several]) for name in several[0]}
