"""Delivers one webhook: claim, send, record; what is killed in between is sent again."""

from models_registry.webhooks import deliveries, signatures
from models_registry.webhooks.addresses import Rules
from models_registry.webhooks.deliveries import Outcome, Policy
from workers.context import Context
from workers.webhook_sender import Sender

# Beyond the time for the request: for the DNS, and for the two transactions around it.
_MARGIN_SECONDS = 15.0


def deliver(context: Context, delivery_id: str) -> Outcome | None:
    """Send a delivery that is due, and return how that ended; None where there was nothing to do.

    While the database is away, the answer is kept and written when it is back.
    """
    settings = context.settings
    lease_seconds = settings.webhook_timeout_seconds + _MARGIN_SECONDS
    with context.sessions.begin() as session:
        outgoing = deliveries.claim(session, delivery_id=delivery_id, lease_seconds=lease_seconds)
    if outgoing is None:
        return None
    headers = signatures.headers(
        outgoing.secrets, message_id=outgoing.message_id, at=outgoing.at, body=outgoing.body
    )
    sender = Sender(Rules.of(settings), settings.webhook_timeout_seconds)
    outcome = sender.post(outgoing.url, headers, outgoing.body)
    policy = Policy(settings.webhook_delays, settings.webhook_disable_after_seconds)
    context.persist(
        lambda session: deliveries.finish(session, outgoing, outcome, policy),
        hopeless=context.shutting_down.is_set,
    )
    return outcome
