"""Federated augmentation: a generator at the server fills up the labels that clients lack.

Clients send a few images of such labels, and of others as camouflage; the server trains a
conditional generator on them, with which each client makes its data even. Then clients train alone:
that is this method. `federation.augmentation` is the same stage before another method; with `fd` it
is the paper's FD + FAug, with `fedavg` its FL + FAug.

Source: Jeong et al., 2018, arXiv 1811.11479, section 3.
Differs: the server enlarges the seeds by shifting, turning and scaling them; the paper searched the
internet for similar images. The widths of the generator's layers are not published.
"""

from typing import ClassVar

from pydantic import Field

from workers.distill.config.federation import AugmentedFederation
from workers.distill.methods.base import Source
from workers.distill.methods.federated.base import Delivers, FederatedMethod


class FAug(FederatedMethod):
    """Train each client on its own images and on generated ones of labels that it lacks."""

    name = "faug"
    title = "Federated augmentation"
    source = Source(
        "Communication-Efficient On-Device Machine Learning: Federated Distillation and "
        "Augmentation under Non-IID Private Data",
        venue="NeurIPS workshop 2018",
        arxiv="1811.11479",
        equations="section 3",
    )
    delivers: ClassVar[Delivers] = "client"
    exchanges = False

    class Params(FederatedMethod.Params):
        """The federation, with its augmentation."""

        federation: AugmentedFederation = Field(
            AugmentedFederation(),
            description="Clients, how the data are divided, and the augmentation.",
        )

    params: Params
