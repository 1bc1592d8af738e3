"""The SuperLink's part: publish, wait for all replies, aggregate by the method itself."""

import logging
import time
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context, Message, MessageType
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from retort_flower import federation
from workers.distill.federated import protocol
from workers.distill.federated.server import ServerModel
from workers.distill.files import tensorfile

app = ServerApp()
LOG = logging.getLogger("flwr")


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Make all rounds, and write what the server has made of the last one to `output`."""
    settings = context.run_config
    made = federation.federation(settings)
    method, server = made.shared.method, ServerModel(made.student, made.shared)
    count, timeout = int(settings["clients"]), float(settings["timeout-seconds"])
    nodes = joined(grid, count, timeout)
    published = publish(made, method.start(server), 0)
    for number in range(1, int(settings["rounds"]) + 1):
        answers = ask(grid, nodes, published, MessageType.TRAIN, timeout)
        replies = [
            federation.checked(federation.message_of(one.content), made, number) for one in answers
        ]
        server.round = number
        tensors = method.aggregate(sorted(replies, key=lambda one: one.sender), server)
        published = publish(made, tensors, number)
        LOG.info("round %d: %d replies, %s", number, len(replies), method.round_metrics())
    ask(grid, nodes, published, MessageType.QUERY, timeout)
    if settings["output"]:
        state = {f"model/{name}": value for name, value in made.student.state_dict().items()}
        tensorfile.write(Path(str(settings["output"])), {**published.tensors, **state}, {})


def joined(grid: Grid, count: int, timeout: float) -> list[int]:
    """Wait until all SuperNodes are there, and return their ids."""
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(nodes)} of {count} SuperNodes joined in {timeout:g} s")
        time.sleep(0.5)
    return nodes[:count]


def ask(
    grid: Grid, nodes: list[int], published: protocol.Message, kind: str, timeout: float
) -> list[Message]:
    """Send to all nodes what is published, and return their replies.

    Raises `RuntimeError` unless all reply: a round with fewer would be another round than that of
    the engine.
    """
    content = federation.record_of(published)
    # A list: it is walked through twice.
    sent = [Message(content, dst_node_id=node, message_type=kind) for node in nodes]
    answers = list(grid.send_and_receive(sent, timeout=timeout))
    failed = [str(one.error) for one in answers if one.has_error()]
    if failed or len(answers) < len(nodes):
        raise RuntimeError(
            f"{len(answers) - len(failed)} of {len(nodes)} SuperNodes replied within {timeout:g} s "
            f"after round {published.round}; raise timeout-seconds, or see their logs: {failed}"
        )
    return answers


def publish(
    made: federation.Federation, tensors: Mapping[str, Tensor], number: int
) -> protocol.Message:
    """Return what all clients get after a round; 0 is what they start from."""
    open_set = made.shared.open_set
    return protocol.Message(
        method=made.shared.method.name,
        round=number,
        sender=protocol.SERVER,
        classes=made.shared.classes,
        tensors={name: value.detach().clone() for name, value in tensors.items()},
        open_set="" if open_set is None else open_set.digest,
    )
