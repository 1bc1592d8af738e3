"""Federated augmentation (FAug): images of scarce labels for each client, before the first round.

Clients send a few images (seeds), the server trains a conditional generator on them, and clients
make with it what they lack. It is the one stage in which images leave a client.

Source: Jeong et al., 2018, arXiv 1811.11479, section 3.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from workers.distill import errors
from workers.distill.config.federation import Augmentation
from workers.distill.data import stateless_rng
from workers.distill.federated import protocol
from workers.distill.federated.client import ClientContext, LocalClient, seed_of
from workers.distill.federated.protocol import Message
from workers.distill.functional.federated import augmentation
from workers.distill.functional.federated.augmentation import LabelGaussians
from workers.distill.networks.conditional import ImageDiscriminator, ImageGenerator

WIDTHS = (256, 512)
"""Hidden layers of the generator; the discriminator has them in the other order."""
BETAS = (0.5, 0.999)
WANTED, SEEDS, SERVER, MADE = 41, 42, 43, 44
"""What random numbers are for."""


@dataclass(frozen=True)
class SeedRequest:
    """What a client asks for and sends: its scarce labels, its camouflage, and its seeds."""

    targets: list[int]
    redundant: list[int]
    redundant_missing: int
    """Labels of camouflage that were wanted, and that the client does not hold."""
    message: Message

    @property
    def labels(self) -> set[int]:
        """Return the labels of which the client would send seeds, if it has any."""
        return {*self.targets, *self.redundant}


@dataclass(frozen=True)
class Augmented:
    """What the stage did: the messages that travelled, and facts for the result."""

    seeds: dict[str, Message]
    """By client; one of a client that sent no image has none."""
    generator: Message
    """What every client got."""
    facts: dict[str, Any]  # Any: JSON


def augment(
    clients: Sequence[LocalClient], shared: ClientContext, settings: Augmentation
) -> Augmented:
    """Extend the clients' data by generated images; the clients keep them in their state.

    A label that nobody sent a seed of cannot be generated; the facts name it, and the figures of
    privacy of each client. Raises `BadRecipe` where no client sends a seed, and for more target
    labels than there are.
    """
    if settings.target_labels is not None and settings.target_labels > shared.classes:
        raise errors.BadRecipe(
            f"target_labels is {settings.target_labels}, and there are {shared.classes} labels; "
            "lower it",
            field="method/federation/augmentation/target_labels",
        )
    requests = {client.name: _request(client, shared, settings) for client in clients}
    generator = _Generator(list(requests.values()), shared, settings)
    made = {client.name: _extend(client, requests[client.name], generator) for client in clients}
    seeds = {name: request.message for name, request in requests.items()}
    return Augmented(seeds, generator.message, _facts(requests, made, generator))


def _request(client: LocalClient, shared: ClientContext, settings: Augmentation) -> SeedRequest:
    counts = client.label_counts.tolist()
    seed = client.seed
    targets = (
        augmentation.scarce_labels(counts, share=settings.scarcity)
        if settings.target_labels is None
        else augmentation.rarest_labels(counts, number=settings.target_labels)
    )
    held = [label for label, count in enumerate(counts) if count]
    # A client that holds few labels has less camouflage than was asked for; the facts say how much.
    number = min(settings.redundant_labels, len(set(held) - set(targets)))
    draw = torch.Generator().manual_seed(stateless_rng.mix(seed, WANTED))
    redundant = augmentation.redundant_labels(targets, held, number=number, generator=draw)
    draw = torch.Generator().manual_seed(stateless_rng.mix(seed, SEEDS))
    labels = client.batches.labels.cpu()
    places = []
    for label in sorted({*targets, *redundant}):
        own = (labels == label).nonzero().flatten()
        places.append(own[torch.randperm(len(own), generator=draw)[: settings.seeds_per_label]])
    chosen = torch.cat(places) if places else torch.zeros(0, dtype=torch.long)
    message = Message(
        method=shared.method.name,
        round=0,
        sender=client.name,
        classes=shared.classes,
        tensors={
            "seeds": client.batches.images_of(chosen).cpu(),
            "seed_labels": labels[chosen].int(),
        },
        samples=client.samples,
    )
    return SeedRequest(targets, redundant, settings.redundant_labels - number, message)


class _Generator:
    """The server's generator, trained when it is made; `labels` are those that it can make."""

    def __init__(
        self, requests: Sequence[SeedRequest], shared: ClientContext, settings: Augmentation
    ) -> None:
        seeds = torch.cat([request.message.tensors["seeds"] for request in requests])
        labels = torch.cat([request.message.tensors["seed_labels"] for request in requests]).long()
        if not len(seeds):
            raise errors.BadRecipe(
                "no client lacks a label of which it has an image, so no seed is sent and nothing "
                "can be generated; set federation.augmentation.target_labels or redundant_labels",
                field="method/federation/augmentation",
            )
        seed = stateless_rng.mix(seed_of(shared.training.seed, "server"), SERVER)
        draw = torch.Generator().manual_seed(seed)
        self.labels = set(labels.tolist())
        self.seeds = len(seeds)
        images, of_label = augmentation.oversample(
            seeds.float() / 255, labels, per_label=settings.oversampled, generator=draw
        )
        self._gaussians: LabelGaussians | None = None
        self._network: ImageGenerator | None = None
        if settings.generator == "gaussian":
            self._gaussians = augmentation.label_gaussians(images, of_label, shared.classes)
            tensors = dict(self._gaussians._asdict())
        else:
            self._network = _train(images, of_label, shared, settings, draw)
            tensors = self._network.state_dict()
        self.message = Message(
            method=shared.method.name,
            round=0,
            sender="server",
            classes=shared.classes,
            tensors=protocol.named(
                "generator", {name: value.cpu() for name, value in tensors.items()}
            ),
        )

    @torch.no_grad()
    def make(self, labels: Int[Tensor, " N"], draw: torch.Generator) -> UInt8[Tensor, "N c h w"]:
        """Return images of these labels, as stored."""
        if self._gaussians is not None:
            pixels = augmentation.sample_gaussians(self._gaussians, labels, generator=draw)
        elif self._network is not None:
            device = next(self._network.parameters()).device
            noise = torch.randn(len(labels), self._network.noise_size, generator=draw)
            pixels = self._network(noise.to(device), labels.to(device)).cpu()
        return (pixels * 255).round().to(torch.uint8)


def _train(
    images: Float[Tensor, "N c h w"],
    labels: Int[Tensor, " N"],
    shared: ClientContext,
    settings: Augmentation,
    draw: torch.Generator,
) -> ImageGenerator:
    """Train a conditional GAN on images that are balanced over labels, and return its generator."""
    torch.manual_seed(int(torch.randint(2**62, (), generator=draw)))
    device, shape = shared.device, tuple(images.shape[1:])
    generator = ImageGenerator(
        classes=shared.classes,
        noise_size=settings.noise_size,
        widths=WIDTHS,
        image_shape=shape,
    ).to(device)
    judge = ImageDiscriminator(
        classes=shared.classes, widths=(WIDTHS[1], WIDTHS[0]), image_shape=shape
    ).to(device)
    ours, theirs = (
        torch.optim.Adam(network.parameters(), lr=settings.learning_rate, betas=BETAS)
        for network in (generator, judge)
    )
    images, labels = images.to(device), labels.to(device)
    for _ in range(settings.steps):
        chosen = torch.randint(len(images), (settings.batch_size,), generator=draw).to(device)
        wanted = labels[
            torch.randint(len(labels), (settings.batch_size,), generator=draw).to(device)
        ]
        noise = torch.randn(settings.batch_size, settings.noise_size, generator=draw).to(device)
        made = generator(noise, wanted)
        loss = augmentation.discriminator_loss(
            judge(images[chosen], labels[chosen]), judge(made.detach(), wanted)
        )
        theirs.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        theirs.step()
        fooled = augmentation.generator_loss(judge(made, wanted))
        ours.zero_grad(set_to_none=True)
        fooled.backward()  # type: ignore[no-untyped-call]  # torch's stub
        ours.step()
    if not (loss.isfinite() and fooled.isfinite()):
        raise errors.Diverged(
            "the losses of the augmentation's GAN were not finite; lower "
            "federation.augmentation.learning_rate",
            round=0,
        )
    return generator.eval()


def _extend(client: LocalClient, request: SeedRequest, generator: _Generator) -> dict[int, int]:
    """Give a client generated images of its target labels; return how many of each label."""
    missing = augmentation.missing_samples(client.label_counts.tolist(), request.targets)
    made = {label: count for label, count in missing.items() if count and label in generator.labels}
    if made:
        labels = torch.tensor(list(made)).repeat_interleave(torch.tensor(list(made.values())))
        draw = torch.Generator().manual_seed(stateless_rng.mix(client.seed, MADE))
        client.extend(generator.make(labels, draw), labels)
    return made


def _facts(
    requests: dict[str, SeedRequest], made: dict[str, dict[int, int]], generator: _Generator
) -> dict[str, Any]:  # Any: JSON
    targets = [request.targets for request in requests.values()]
    redundant = [request.redundant for request in requests.values()]
    to_others = augmentation.inter_device_leakage(targets, redundant)
    wanted = {label for labels in targets for label in labels}
    return {
        "seed_images": generator.seeds,
        "generated_images": sum(sum(counts.values()) for counts in made.values()),
        "labels_without_seed": sorted(wanted - generator.labels),
        "clients": {
            name: {
                "target_labels": request.targets,
                "redundant_labels": request.redundant,
                "redundant_missing": request.redundant_missing,
                "seed_images": len(request.message.tensors["seeds"]),
                "generated_images": sum(made[name].values()),
                "device_server_leakage": augmentation.device_server_leakage(
                    request.targets, request.redundant
                ),
                "inter_device_leakage": leakage,
            }
            for (name, request), leakage in zip(requests.items(), to_others, strict=True)
        },
    }


def remarks(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:  # Any: JSON
    """Yield what a user must know of the stage: a code and a sentence each."""
    clients = facts["clients"].values()
    most = max(client["device_server_leakage"] for client in clients)
    yield (
        "images_sent",
        f"augmentation: clients sent {facts['seed_images']} of their images to the server, which "
        f"learns which labels a client lacks with up to {most:.2f} (device-server leakage, 0 to 1)",
    )
    if facts["labels_without_seed"]:
        listed = ", ".join(str(label) for label in facts["labels_without_seed"])
        yield (
            "labels_without_seed",
            f"augmentation: nobody sent an image of label {listed}, so none could be generated; "
            "raise federation.augmentation.redundant_labels to get some of those who have many",
        )
    less = [client for client in clients if client["redundant_missing"]]
    if less:
        yield (
            "less_camouflage",
            f"augmentation: {len(less)} clients hold too few other labels for redundant_labels, "
            "and sent fewer",
        )
