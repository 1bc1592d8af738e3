"""From an event to a receiver, whatever is killed in between."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from models_registry.jobs import actions
from models_registry.persistence import tables
from models_registry.settings import Settings
from models_registry.webhooks import endpoints, signatures
from tests import services
from tests.databases import SQLITE_ONLY
from tests.retort import wire as wires
from tests.retort.wire import Reply, Wire
from tests.workers import processes, scenes
from workers import context as contexts
from workers import maintenance, webhooks
from workers.context import Context

pytestmark = SQLITE_ONLY


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Settings under which webhooks may go to this machine, and are tried again soon."""
    changes = {
        "webhook_allow_http": True,
        "webhook_allow_private": True,
        "webhook_delays_seconds": "0,0.01,0.01",
        "webhook_timeout_seconds": 10,
    }
    return settings.model_copy(update=changes)


@pytest.fixture
def wire() -> Iterator[Wire]:
    with wires.running() as server:
        yield server


def cancelled(context: Context, url: str) -> str:
    """Cancel a job of which an endpoint is told, and return the id of the delivery."""
    project = scenes.project(context)
    job_id = scenes.submit(context, project)
    with context.sessions.begin() as session:
        endpoints.create(
            session, project_id=project, url=url, events=["job.cancelled"], description=""
        )
    with context.sessions.begin() as session:
        actions.cancel(session, project_id=project, job_id=job_id)
        return session.query(tables.WebhookDeliveryRow).one().id


def delivery(context: Context) -> tables.WebhookDeliveryRow:
    with context.readers.begin() as session:
        return session.query(tables.WebhookDeliveryRow).one()


class TestDeliver:
    def test_sends_again_after_failures_with_a_right_signature_each_time(
        self, context: Context, wire: Wire
    ) -> None:
        wire.on("POST", "/hook", Reply(500, b"no"), Reply(500, b"no"), Reply(200))
        delivery_id = cancelled(context, f"{wire.url}/hook")

        def is_announced() -> bool:
            announced: list[str] = []
            maintenance.sweep(context, lambda *message: announced.append(message[0]))
            return "webhooks.deliver" in announced

        for expected in ("pending", "pending", "delivered"):
            scenes.wait_until(is_announced, "it is announced")
            scenes.wait_until(
                lambda: webhooks.deliver(context, delivery_id) is not None, "the delivery is due"
            )
            assert delivery(context).state == expected
        assert webhooks.deliver(context, delivery_id) is None
        first, second, third = wire.sent("POST", "/hook")
        with context.readers.begin() as session:
            secret = session.query(tables.WebhookEndpointRow).one().secret
        for request in (first, second, third):
            assert request.body == first.body
            assert request.headers["webhook-id"] == first.headers["webhook-id"]
            assert request.headers["webhook-signature"] == signatures.sign(
                secret,
                message_id=request.headers["webhook-id"],
                timestamp=int(request.headers["webhook-timestamp"]),
                body=request.body,
            )
        assert first.json()["type"] == "job.cancelled"


@pytest.mark.slow
class TestKilledWorker:
    def test_loses_no_delivery_and_the_next_one_sends_the_same_id(
        self, settings: Settings, tmp_path: Path, wire: Wire
    ) -> None:
        with (
            services.redis_server(tmp_path) as broker_url,
            socket.create_server(("127.0.0.1", 0)) as silent,
        ):
            config = settings.model_copy(update={"broker_url": broker_url})
            context = contexts.build(config)
            port = silent.getsockname()[1]
            delivery_id = cancelled(context, f"http://127.0.0.1:{port}/hook")
            processes.relay(context)
            options = ("--queues", "webhooks", "--pool", "threads", "--concurrency", "2")
            with processes.worker(config, *options) as worker:
                silent.settimeout(scenes.PATIENCE_SECONDS)
                connection, _ = silent.accept()
                request = connection.recv(65536)
                worker.process.kill()
                worker.process.wait()
                connection.close()
        message_id = delivery(context).message_id
        assert f"webhook-id: {message_id}".encode() in request
        assert delivery(context).state == "pending"
        wire.on("POST", "/hook", Reply(204))
        with context.sessions.begin() as session:
            row = session.get_one(tables.WebhookDeliveryRow, delivery_id)
            assert row.claim_expires_at is not None
            row.claim_expires_at = row.announced_at = row.created_at  # long ago
            session.query(tables.WebhookEndpointRow).one().url = f"{wire.url}/hook"
        sent: list[str] = []
        maintenance.sweep(context, lambda *message: sent.append(message[2]["delivery_id"]))
        assert sent == [delivery_id]
        webhooks.deliver(context, delivery_id)
        assert delivery(context).state == "delivered"
        (arrived,) = wire.sent("POST", "/hook")
        assert arrived.headers["webhook-id"] == message_id
        context.engine.dispose()
