import torch

from tests.distill.golden import CHECKS
from workers.distill.data.types import Batch
from workers.distill.methods.base import Moment
from workers.distill.methods.logit import ce
from workers.distill.networks.interface import Features, Network

NOTHING = Features(logits=torch.empty(0, 0), pooled=torch.empty(0, 0))


def features(logits: torch.Tensor) -> Features:
    return Features(logits=logits, pooled=logits)


def batch(labels: torch.Tensor) -> Batch:
    pictures = torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8)
    return Batch(images=pictures, labels=labels, index=torch.arange(len(labels)))


class TestCE:
    def test_equals_the_published_value(self) -> None:
        method = ce.CE(ce.CE.Params(), Network(), None)
        labels = CHECKS.tensor("target")
        logits = features(CHECKS.tensor("logits_s"))
        terms = method.terms(logits, NOTHING, batch(labels), Moment(1, 1, 1))
        assert list(terms) == ["task"]
        assert CHECKS.close(terms["task"], CHECKS.expected("ce")["loss"])

    def test_weighs_its_only_term(self) -> None:
        logits, labels = features(CHECKS.tensor("logits_s")), batch(CHECKS.tensor("target"))
        one, three = (
            ce.CE(ce.CE.Params(task_weight=weight), Network(), None).terms(
                logits, NOTHING, labels, Moment(1, 1, 1)
            )["task"]
            for weight in (1.0, 3.0)
        )
        assert torch.equal(3 * one, three)
