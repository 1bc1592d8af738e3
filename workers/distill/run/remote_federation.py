"""The rounds of a federation whose clients are other processes."""

import copy

import torch
from jaxtyping import Int
from torch import Tensor

from workers.distill import errors
from workers.distill.config.federation import open_count
from workers.distill.federated import client
from workers.distill.federated.client import ClientContext, LocalClient
from workers.distill.federated.open_set import OpenSet
from workers.distill.federated.remote import ImageFacts, RemoteClients
from workers.distill.federated.rounds import Rounds, Scoring
from workers.distill.federated.server import NAME, ServerModel
from workers.distill.methods.federated.base import FederatedMethod
from workers.distill.networks.interface import Network
from workers.distill.run.context import JobContext


def make_rounds(context: JobContext, method: FederatedMethod, student: Network) -> Rounds:
    """Return the rounds before the first one.

    The training split is the open set, of methods that have one. Where a method leaves no model at
    the server, the server takes part as a client of its own with the training split.
    """
    shared = ClientContext(
        method=method,
        training=context.config.training,
        preprocess=context.student_preprocessor,
        precision=context.precision,
        classes=len(context.classes),
        open_set=open_set(context, method) if method.uses_open_set else None,
    )
    own = own_client(context, shared, student) if method.delivered == "client" else None
    remote = RemoteClients(
        context.workdir,
        shared,
        student,
        context.config,
        ImageFacts(context.classes, context.size, context.flip),
        context.stop,
        own=own,
    )
    return Rounds(
        remote,
        ServerModel(student, shared),
        shared,
        student,
        Scoring(
            None if context.validation is None else context.validation.samples,
            [] if own is None else [own.name],
        ),
        context.reporter.warning,
        rows=0 if own is None else own.samples,
        division=None,
        label_counts={} if own is None else {own.name: own.label_counts.tolist()},
    )


def open_set(context: JobContext, method: FederatedMethod) -> OpenSet:
    """Return the training split without its labels, or so many images of it, drawn by the seed."""
    loader, federation = context.train_loader, method.params.federation
    asked = federation.open_images
    wanted = None if asked is None else open_count(asked, loader.count)
    if wanted is not None and wanted > loader.count:
        raise errors.BadRecipe(
            f"open_images is {wanted}, and the training split, which is the open set of remote "
            f"clients, has {loader.count} images; lower it, or leave it out",
            field="method/federation/open_images",
        )
    rows = _drawn(loader.count, wanted, seed=context.config.training.seed)
    return OpenSet(
        loader.images_of(rows), federation.open_images_per_round, context.config.training.seed
    )


def own_client(context: JobContext, shared: ClientContext, student: Network) -> LocalClient:
    """Return the server as a client with the training split, and tell the user of it."""
    context.reporter.warning(
        "server_takes_part",
        f"method {shared.method.name} leaves no model at the server, and those of remote clients "
        f"stay with them: the server takes part as a client of its own, {NAME!r}, with the "
        "training split of the data set, and its model is delivered",
    )
    training = context.config.training
    own = training.model_copy(update={"seed": client.seed_of(training.seed, NAME)})
    rows = torch.arange(context.train_loader.count)
    images = context.train_loader.subset(rows, own)
    return LocalClient(NAME, copy.deepcopy(student), images, shared)


def _drawn(count: int, wanted: int | None, *, seed: int) -> Int[Tensor, " n"]:
    if wanted is None or wanted == count:
        return torch.arange(count)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[:wanted].sort().values
