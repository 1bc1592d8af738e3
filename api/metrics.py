"""Prometheus metrics: requests of this process, and the service's state from its database."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import prometheus_client
import structlog
from prometheus_client import core, registry
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from models_registry.artifacts import inspections
from models_registry.jobs import lifecycle, queries, workers
from models_registry.persistence import broker, counters, database, outbox
from models_registry.persistence.counters import Counter
from models_registry.webhooks import deliveries, endpoints

log = structlog.get_logger()

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


_ATTEMPTS = (1, 2, 3, 5, 10)
_COUNTERS = {
    Counter.SWEEPS: ("retort_sweeps", "Sweeps of maintenance"),
    Counter.STALE_WRITES: (
        "retort_stale_writes_refused",
        "Writes of workers that no longer held their job, each refused by its fence",
    ),
    Counter.COLLECTED_BLOBS: ("retort_collected_blobs", "Blobs deleted: no row named them"),
    Counter.COLLECTED_BYTES: ("retort_collected_bytes", "Bytes of these blobs"),
}


class Requests:
    """Rate, errors, latency and bytes by route template; no ids in labels."""

    def __init__(self, collected: registry.CollectorRegistry) -> None:
        self._seconds = prometheus_client.Histogram(
            "retort_http_request_seconds",
            "Time to serve a request, streams included",
            ["method", "route", "status"],
            registry=collected,
            buckets=_BUCKETS,
        )
        self._received = prometheus_client.Counter(
            "retort_http_received_bytes",
            "Bytes of bodies that callers have sent, uploads among them",
            ["route"],
            registry=collected,
        )
        self._sent = prometheus_client.Counter(
            "retort_http_sent_bytes",
            "Bytes of bodies that callers were sent, downloads among them",
            ["route"],
            registry=collected,
        )

    def observe(
        self, method: str, route: str, status: int, seconds: float, *, received: int, sent: int
    ) -> None:
        """Count one request, and the bytes of its body and its response's."""
        known = method if method in _METHODS else "OTHER"
        self._seconds.labels(known, route, str(status)).observe(seconds)
        self._received.labels(route).inc(received)
        self._sent.labels(route).inc(sent)


# A caller can send any method name, and each would be a new series.
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


@dataclass(eq=False)
class ServiceState(registry.Collector):
    """Reads the database at each scrape, so that every process reports the same values."""

    readers: database.Sessions

    def collect(self) -> Iterator[core.Metric]:
        """Yield what the database says, and whether it could be asked."""
        try:
            with self.readers() as session:
                found = [
                    *_jobs(session),
                    *_queues(session),
                    *_attempts(session),
                    *_inspections(session),
                    *_counters(session),
                    *_webhooks(session),
                ]
        except SQLAlchemyError as error:
            log.warning("scrape_failed", reason=type(error).__name__)
            found = []
        yield _gauge(
            "retort_database_up",
            "Whether this process could read the database at this scrape",
            (),
            [((), float(bool(found)))],
        )
        yield from found


def _jobs(session: Session) -> Iterator[core.Metric]:
    states = queries.count_states(session)
    yield _gauge(
        "retort_jobs",
        "Jobs by state and reason",
        ("state", "reason"),
        [((state, reason or ""), count) for (state, reason), count in states.items()],
    )


def _queues(session: Session) -> Iterator[core.Metric]:
    ages = queries.queue_ages(session)
    yield _gauge(
        "retort_queue_age_seconds",
        "Age of the oldest job that a worker could claim, by queue",
        ("queue",),
        [((queue,), ages.get(queue, 0.0)) for queue in broker.JOB_QUEUES],
    )
    yield _gauge(
        "retort_outbox_lag_seconds",
        "Age of the oldest message that is not published yet",
        (),
        [((), outbox.lag_seconds(session))],
    )
    yield _gauge(
        "retort_workers",
        "Workers seen within a day, by state and, where one is suspended, what is wrong",
        ("state", "fault"),
        workers.count_states(session).items(),
    )
    yield _gauge(
        "retort_gpu_utilisation_ratio",
        "Mean utilisation of the graphics cards of online workers, by whether they hold a job",
        ("state",),
        [
            (("busy" if busy else "idle",), share)
            for busy, share in workers.mean_gpu_utilisation(session).items()
        ],
    )
    online = workers.count_by_queue(session)
    yield _gauge(
        "retort_queue_workers",
        "Workers online by queue that they take, and whether they hold a job",
        ("queue", "state"),
        [
            ((queue, state), online.get((queue, state == "busy"), 0))
            for queue in broker.QUEUES
            for state in ("idle", "busy")
        ],
    )
    slots = workers.count_slots_by_queue(session)
    yield _gauge(
        "retort_queue_slots",
        "Jobs that the workers online can run side by side, by queue that they take",
        ("queue",),
        [((queue,), slots.get(queue, 0)) for queue in broker.JOB_QUEUES],
    )


def _attempts(session: Session) -> Iterator[core.Metric]:
    # All that are possible: a series that appears with its first event hides it from `increase`.
    outcomes = {str(outcome): 0 for outcome in (*lifecycle.FINAL, *lifecycle.Reason)}
    outcomes |= queries.count_outcomes(session)
    yield _counter(
        "retort_attempts_ended",
        "Attempts that have ended, by outcome",
        ("outcome",),
        [((outcome,), count) for outcome, count in outcomes.items()],
    )
    yield _counter(
        "retort_lease_expiries",
        "Attempts whose worker sent no heartbeat",
        (),
        [((), outcomes.get(lifecycle.Reason.ATTEMPT_LOST, 0))],
    )
    ended = queries.count_attempts(session)
    histogram = core.HistogramMetricFamily(
        "retort_job_attempts", "Attempts that counted, of each job that has ended"
    )
    histogram.add_metric(
        [],
        [
            (str(most), sum(count for tries, count in ended.items() if tries <= most))
            for most in _ATTEMPTS
        ]
        + [("+Inf", sum(ended.values()))],
        sum(tries * count for tries, count in ended.items()),
    )
    yield histogram


def _inspections(session: Session) -> Iterator[core.Metric]:
    found = {(kind, "rejected", "internal_error"): 0 for kind in inspections.KINDS}
    found |= inspections.count_states(session)
    yield _gauge(
        "retort_inspections",
        "Versions of models and data sets by state and, of rejected ones, the reason",
        ("kind", "state", "code"),
        found.items(),
    )
    yield _gauge(
        "retort_inspection_age_seconds",
        "Age of the oldest version that waits for its inspection or is inspected",
        ("kind",),
        [((kind,), seconds) for kind, seconds in inspections.pending_seconds(session).items()],
    )


def _counters(session: Session) -> Iterator[core.Metric]:
    counted = counters.read(session)
    for counter, (name, meaning) in _COUNTERS.items():
        value = counted[counter].value if counter in counted else 0
        yield _counter(name, meaning, (), [((), value)])
    if Counter.SWEEPS in counted:
        yield _gauge(
            "retort_sweep_age_seconds",
            "Time since maintenance last relayed messages and ended lost leases",
            (),
            [((), counted[Counter.SWEEPS].age_seconds)],
        )


def _webhooks(session: Session) -> Iterator[core.Metric]:
    yield _gauge(
        "retort_webhook_deliveries",
        "Deliveries of the last 30 days, by state",
        ("state",),
        [((state,), count) for state, count in deliveries.count_states(session).items()],
    )
    yield _gauge(
        "retort_webhook_lag_seconds",
        "For how long the oldest delivery that could be sent now has been due",
        (),
        [((), deliveries.lag_seconds(session))],
    )
    disabled = {"": 0} | endpoints.count_disabled(session)  # shown where there are none, too
    yield _gauge(
        "retort_webhook_endpoints",
        "Webhook endpoints, and why they are disabled (empty: they are not)",
        ("disabled_reason",),
        [((reason,), count) for reason, count in disabled.items()],
    )


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


def _counter(
    name: str,
    meaning: str,
    labels: Sequence[str],
    samples: Iterable[tuple[tuple[str, ...], float]],
) -> core.Metric:
    counter = core.CounterMetricFamily(name, meaning, labels=list(labels))
    for values, value in samples:
        counter.add_metric(list(values), value)
    return counter


def render(collected: registry.CollectorRegistry) -> bytes:
    """Return the registry in Prometheus' text format."""
    return prometheus_client.generate_latest(collected)
