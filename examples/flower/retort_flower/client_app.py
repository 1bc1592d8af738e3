"""A SuperNode's part: train in each round on its own images, and say what the method says.

Each message starts a process, so the client's network and memory lie in the context's state.
"""

import io

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from retort_flower import federation
from workers.distill.federated.client import LocalClient

app = ClientApp()
STATE = "client"


@app.train()
def train(message: Message, context: Context) -> Message:
    """Take over what the server has published, train, and reply."""
    own = restored(context)
    published = federation.message_of(message.content)
    own.receive(published)
    reply = own.train(published.round + 1)
    keep(own, context)
    return Message(federation.record_of(reply), reply_to=message)


@app.query()
def finish(message: Message, context: Context) -> Message:
    """Take over what the server has published after the last round."""
    own = restored(context)
    own.receive(federation.message_of(message.content))
    keep(own, context)
    return Message(RecordDict(), reply_to=message)


def restored(context: Context) -> LocalClient:
    """Return this SuperNode's client as it was after the message before."""
    made = federation.federation(context.run_config)
    own = made.client(int(context.node_config["partition-id"]))
    if STATE in context.state:
        content = context.state[STATE]["content"]
        own.load_state_dict(torch.load(io.BytesIO(content), weights_only=True))
    return own


def keep(own: LocalClient, context: Context) -> None:
    """Put the client into the context's state."""
    stream = io.BytesIO()
    torch.save(own.state_dict(), stream)
    context.state[STATE] = ConfigRecord({"content": stream.getvalue()})
