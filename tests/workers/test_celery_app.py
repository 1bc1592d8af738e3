"""Settings as they are argued for, and the queues they make, on a real broker."""

import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu.connection import Connection
from kombu.messaging import Consumer

from models_registry.jobs import transitions
from models_registry.persistence import broker
from tests import services, waiting
from tests.workers import processes
from workers import celery_app
from workers.celery_app import app


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with services.redis_server(tmp_path_factory.mktemp("redis")) as url:
        yield url


@pytest.fixture
def broker_url(redis_server: str) -> str:
    """An empty broker."""
    with redis.Redis.from_url(redis_server) as client:
        client.flushall()
    return redis_server


@pytest.fixture
def connection(broker_url: str) -> Iterator[Connection]:
    with app.connection_for_write(broker_url) as made:
        yield made


def publish(connection: Connection, queue: str, number: int, priority: int = 0) -> None:
    app.send_task(
        transitions.RUN_TASK,
        kwargs={"job_id": f"job_{number}", "dispatch_seq": number},
        queue=queue,
        priority=broker.redis_priority(priority),
        connection=connection,
    )


def receive(connection: Connection, queue: str) -> list[str]:
    """Consume all messages of a queue as a worker does, and return their jobs in order."""
    received: list[str] = []

    def note(body: Any, message: Any) -> None:
        received.append(body[1]["job_id"])
        message.ack()

    with connection.channel() as channel:
        channel.basic_qos(0, 1, False)
        with Consumer(channel, app.amqp.queues[queue], callbacks=[note]):
            while sum(processes.waiting(connection.as_uri(include_password=True)).values()):
                connection.drain_events(timeout=waiting.PATIENCE_SECONDS)
    return received


class TestSettings:
    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("task_acks_late", False, "late acknowledgement runs long jobs twice on Redis"),
            ("task_reject_on_worker_lost", False, "a task that kills its process would loop"),
            ("worker_prefetch_multiplier", 1, "a busy worker must not hoard messages"),
            ("worker_disable_prefetch", True, "nor even one of them"),
            ("worker_concurrency", 1, "one supervisor per slot"),
            ("worker_pool", "prefork", "a pool of processes, forked without torch"),
            ("result_backend", None, "results live in the database"),
            ("task_ignore_result", True, "and nobody asks Celery for one"),
            ("worker_send_task_events", False, "not used, and costs broker traffic"),
            ("task_send_sent_event", False, "the same"),
            ("worker_enable_remote_control", False, "cancel goes through the database"),
            ("task_time_limit", None, "deadlines are the supervisor's and the reaper's"),
            ("task_soft_time_limit", None, "the same"),
            ("broker_connection_retry_on_startup", True, "workers outlive the broker"),
            ("broker_connection_max_retries", None, "for ever"),
            ("broker_pool_acquire_timeout", 5, "publishing never hangs"),
            (
                "worker_cancel_long_running_tasks_on_connection_loss",
                False,
                "the lease decides, not the link to the broker",
            ),
            ("worker_soft_shutdown_timeout", 0, "the supervisor answers SIGTERM itself"),
            ("task_serializer", "json", "no pickle on the wire"),
            ("accept_content", ["json"], "in neither direction"),
            ("task_create_missing_queues", False, "a misspelt queue is an error"),
            ("worker_hijack_root_logger", False, "logs have one form, which is ours"),
        ],
    )
    def test_is_as_argued(self, name: str, value: object, reason: str) -> None:
        assert app.conf[name] == value, reason

    @pytest.mark.parametrize(
        ("name", "value", "reason"),
        [
            ("visibility_timeout", 3600, "only unstarted messages wait under it"),
            ("socket_keepalive", True, "a dead link is noticed"),
            ("health_check_interval", 25, "the same"),
            ("socket_timeout", 30, "a call to the broker returns"),
            ("global_keyprefix", "retort:", "the database of Redis may be shared"),
            ("queue_order_strategy", "priority", "urgent jobs of any queue go first"),
            ("priority_steps", list(range(10)), "each priority has a list of its own"),
        ],
    )
    def test_of_the_transport_is_as_argued(self, name: str, value: object, reason: str) -> None:
        assert app.conf.broker_transport_options[name] == value, reason

    def test_are_the_same_transport_options_as_the_apis(self) -> None:
        ours = dict(app.conf.broker_transport_options)
        assert broker.TRANSPORT_OPTIONS.items() <= ours.items()

    def test_schedules_maintenance_and_nothing_else(self) -> None:
        schedule = app.conf.beat_schedule
        tasks = {entry["task"]: entry["schedule"] for entry in schedule.values()}
        assert tasks == {
            "maintenance.sweep": celery_app.settings.sweep_seconds,
            "maintenance.collect": 3600.0,
        }
        assert app.conf.task_default_queue == "maintenance"
        # In memory: no file of a clock lies about after a crash.
        assert app.conf.beat_scheduler == "celery.beat:Scheduler"

    def test_names_the_tasks_that_the_registry_calls(self) -> None:
        app.loader.import_default_modules()
        ours = {name for name in app.tasks if not name.startswith("celery.")}
        assert ours == {
            transitions.RUN_TASK,
            "models.inspect",
            "models.export",
            "models.predict",
            "datasets.sample",
            "datasets.inspect",
            "networks.try",
            "studies.advance",
            "webhooks.deliver",
            "maintenance.retain",
            "maintenance.sweep",
            "maintenance.collect",
        }

    def test_keep_the_lines_of_every_sweep_out_of_the_log(self) -> None:
        names = ("celery.worker.strategy", "celery.app.trace", "celery.beat")
        levels = {name: logging.getLogger(name).level for name in names}
        root = logging.getLogger()
        before = (root.level, list(root.handlers))
        try:
            celery_app._set_up_logging()
            assert not logging.getLogger("celery.app.trace").isEnabledFor(logging.INFO)
            assert logging.getLogger("celery.app.trace").isEnabledFor(logging.WARNING)
        finally:
            root.setLevel(before[0])
            root.handlers[:] = before[1]
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


class TestQueues:
    @pytest.mark.parametrize("name", broker.QUEUES)
    def test_have_a_routing_of_their_own(self, name: str) -> None:
        queue = app.amqp.queues[name]
        assert (queue.name, queue.exchange.name, queue.routing_key) == (name, name, name)
        assert queue.exchange.type == "direct"

    @pytest.mark.parametrize("name", broker.QUEUES)
    def test_receive_only_what_is_for_them(
        self, name: str, connection: Connection, broker_url: str
    ) -> None:
        for queue in broker.QUEUES:  # all are known to the broker, as with workers for each
            app.amqp.queues[queue](connection.default_channel).declare()
        publish(connection, name, 1)
        waiting = processes.waiting(broker_url)
        assert sum(waiting.values()) == 1
        (key,) = waiting
        assert key.removeprefix("retort:").split("\x06")[0] == name
        others = [queue for queue in broker.QUEUES if queue != name]
        with connection.channel() as channel:
            assert [app.amqp.queues[queue](channel).get() for queue in others] == [
                None for _ in others
            ]
            message = app.amqp.queues[name](channel).get()
            assert message is not None
            message.ack()

    def test_that_are_misspelt_are_an_error(self, connection: Connection) -> None:
        with pytest.raises(Exception, match="gpu"):
            publish(connection, "gpu", 1)

    def test_give_the_highest_priority_first(self, connection: Connection, broker_url: str) -> None:
        order = [3, 9, 0, 5, 9, 1]
        for number, priority in enumerate(order):
            publish(connection, "any", number, priority)
        assert sum(processes.waiting(broker_url).values()) == len(order)
        expected = sorted(range(len(order)), key=lambda number: -order[number])
        assert receive(connection, "any") == [f"job_{number}" for number in expected]

    def test_keep_all_keys_below_the_prefix(self, connection: Connection, broker_url: str) -> None:
        publish(connection, "any", 1, 4)
        publish(connection, "inspect", 2)
        with redis.Redis.from_url(broker_url) as client:
            assert {key.split(b":")[0] for key in client.keys("*")} == {b"retort"}

    def test_carry_names_and_numbers_and_no_pickle(
        self, connection: Connection, broker_url: str
    ) -> None:
        publish(connection, "cpu", 7)
        (key,) = processes.waiting(broker_url)
        with redis.Redis.from_url(broker_url) as client:
            envelope = json.loads(client.lindex(key, 0))
        assert envelope["content-type"] == "application/json"
        assert envelope["headers"]["task"] == transitions.RUN_TASK
