"""Which loop trains the students of a method: one explicit table, one line each."""

from workers.distill.methods.base import Method
from workers.distill.run import datafree, federated, supervised
from workers.distill.run.context import Loop

LOOPS: dict[str, Loop] = {
    "supervised": supervised.LOOP,
    "datafree": datafree.LOOP,
    "federated": federated.LOOP,
}


def of_method(method: type[Method]) -> Loop:
    """Return the loop that a method is trained by."""
    return LOOPS[method.loop]
