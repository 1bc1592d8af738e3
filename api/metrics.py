"""Prometheus metrics: requests of this process, and the service's state from its database."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import prometheus_client
import structlog
from prometheus_client import core, registry
from sqlalchemy.exc import SQLAlchemyError

from models_registry.jobs import lifecycle, queries, workers
from models_registry.persistence import database, outbox
from models_registry.webhooks import deliveries, endpoints

log = structlog.get_logger()

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Requests:
    """Rate, errors and latency by route template; no ids in labels."""

    def __init__(self, collected: registry.CollectorRegistry) -> None:
        self._seconds = prometheus_client.Histogram(
            "retort_http_request_seconds",
            "Time to serve a request, streams included",
            ["method", "route", "status"],
            registry=collected,
            buckets=_BUCKETS,
        )

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one request."""
        known = method if method in _METHODS else "OTHER"
        self._seconds.labels(known, route, str(status)).observe(seconds)


# A caller can send any method name, and each would be a new series.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(eq=False)
class ServiceState(registry.Collector):
    """Reads the database at each scrape, so that every process reports the same values."""

    readers: database.Sessions

    def collect(self) -> Iterator[core.Metric]:
        """Yield jobs by state, ages of the queues, and ended attempts by outcome."""
        try:
            yield from self._collect()
        except SQLAlchemyError as error:
            log.warning("scrape_failed", reason=type(error).__name__)

    def _collect(self) -> Iterator[core.Metric]:
        with self.readers() as session:
            states = queries.count_states(session)
            outcomes = queries.count_outcomes(session)
            ages = queries.queue_ages(session)
            lag = outbox.lag_seconds(session)
            machines = workers.count_states(session)
            sent = deliveries.count_states(session)
            webhook_lag = deliveries.lag_seconds(session)
            told = endpoints.count_disabled(session)
        yield _gauge(
            "retort_jobs",
            "Jobs by state and reason",
            ("state", "reason"),
            [((state, reason or ""), count) for (state, reason), count in states.items()],
        )
        yield _gauge(
            "retort_queue_age_seconds",
            "Age of the oldest job that a worker could claim, by queue",
            ("queue",),
            [((queue,), seconds) for queue, seconds in ages.items()],
        )
        yield _gauge(
            "retort_outbox_lag_seconds",
            "Age of the oldest message that is not published yet",
            (),
            [((), lag)],
        )
        yield _gauge(
            "retort_workers",
            "Workers seen within a day, by state and, where one is suspended, what is wrong",
            ("state", "fault"),
            machines.items(),
        )
        yield _gauge(
            "retort_webhook_deliveries",
            "Deliveries of the last 30 days, by state",
            ("state",),
            [((state,), count) for state, count in sent.items()],
        )
        yield _gauge(
            "retort_webhook_lag_seconds",
            "For how long the oldest delivery that could be sent now has been due",
            (),
            [((), webhook_lag)],
        )
        yield _gauge(
            "retort_webhook_endpoints",
            "Webhook endpoints, and why they are disabled (empty: they are not)",
            ("disabled_reason",),
            [((reason,), count) for reason, count in told.items()],
        )
        ended = core.CounterMetricFamily(
            "retort_attempts_ended", "Attempts that have ended, by outcome", labels=["outcome"]
        )
        for outcome, count in outcomes.items():
            ended.add_metric([outcome], count)
        yield ended
        expired = core.CounterMetricFamily(
            "retort_lease_expiries", "Attempts whose worker sent no heartbeat"
        )
        expired.add_metric([], outcomes.get(lifecycle.Reason.ATTEMPT_LOST, 0))
        yield expired


def _gauge(
    name: str,
    meaning: str,
    labels: Sequence[str],
    samples: Iterable[tuple[tuple[str, ...], float]],
) -> core.Metric:
    gauge = core.GaugeMetricFamily(name, meaning, labels=list(labels))
    for values, value in samples:
        gauge.add_metric(list(values), value)
    return gauge


def render(collected: registry.CollectorRegistry) -> bytes:
    """Return the registry in Prometheus' text format."""
    return prometheus_client.generate_latest(collected)
