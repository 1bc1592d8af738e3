"""Each alert is made to fire by a drill on a running service, and is quiet on a healthy one.

Rules are evaluated over what `/metrics` answers before and after the drill. How long an
expression must hold (`for`) is left out: an hour's waiting is set back in the database instead.
"""

import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import yaml
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from models_registry.jobs import leases, workers
from models_registry.persistence import counters, database, outbox, tables
from models_registry.persistence.counters import Counter
from models_registry.persistence.storage import Storage
from tests import databases, factories, promql, serving
from tests.contracts import source
from workers import machine_health

RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load(source.text(Path("docs/ops/alerts.yml")))["groups"]
    for rule in group["rules"]
]
QUEUES = ["any", "cpu", "inspect", "maintenance"]
MINUTES = 60.0
HOURS_AGO = timedelta(hours=2)


@dataclass
class Service:
    """A running api with a worker and maintenance, and the means to break it."""

    client: httpx.Client
    server: serving.Served
    sessions: database.Sessions
    storage: Storage
    project_id: str
    history: promql.History = field(default_factory=promql.History)

    def stop(self) -> None:
        """Stop serving."""
        self.server.stop()

    def metrics(self) -> str | None:
        """Return what Prometheus gets, None where nobody answers."""
        try:
            return self.client.get("/metrics").raise_for_status().text
        except httpx.ConnectError:
            return None

    def scrape(self, *, at: float) -> None:
        """Add to the history what Prometheus gets now, as if it were `at` so many seconds."""
        self.history.scrape(self.metrics(), at=at, job="retort-api", instance="api-1")

    def value(self, alert: str, *, at: float) -> promql.Vector | float:
        """Return the value of an alert's expression; the alert fires where it is not empty."""
        (expression,) = [rule["expr"] for rule in RULES if rule["alert"] == alert]
        return promql.evaluate(expression, self.history, at=at)

    def job(self) -> tables.JobRow:
        """Submit a job."""
        with self.sessions.begin() as session:
            return factories.job(session, project_id=self.project_id)

    def change(self, row: type[tables.Row], **values: Any) -> None:
        """Change all rows of a table that is about no job's state."""
        with self.sessions.begin() as session:
            session.execute(sa.update(row).values(**values))


def announce(session: Any, **facts: Any) -> None:
    """Register a worker."""
    told = {"queues": QUEUES, "devices": [], "memory_bytes": 1, "versions": {}, **facts}
    workers.announce(session, worker_id="wrk_1", name="worker", **told)


@pytest.fixture
def service(
    app: FastAPI,
    api_key: str,
    sessions: database.Sessions,
    storage: Storage,
    teacher: tables.ModelVersionRow,
) -> Iterator[Service]:
    with sessions.begin() as session:
        announce(session)
        workers.seen(session, worker_id="wrk_1", gpu_utilisation=0.5)
        counters.add(session, Counter.SWEEPS)
    headers = {"authorization": f"Bearer {api_key}"}
    with (
        serving.served(app) as server,
        httpx.Client(base_url=server.url, headers=headers) as client,
    ):
        assert client.get("/v1/jobs").status_code == 200
        yield Service(client, server, sessions, storage, teacher.project_id)


# -- the drills --------------------------------------------------------------------------------


def stop_the_api(service: Service) -> None:
    service.stop()


def lose_the_database(service: Service) -> None:
    with service.sessions.begin() as session:
        session.execute(sa.text("ALTER TABLE jobs RENAME TO jobs_elsewhere"))


def fail_requests(service: Service) -> None:
    lose_the_database(service)
    for _ in range(2):  # Prometheus sees a rise of what it has seen before
        service.scrape(at=4.5 * MINUTES)
        assert service.client.get("/v1/jobs").status_code >= 500


def lock_the_database(service: Service) -> None:
    """SQLite has one writer, and requests that write wait for it."""
    assert service.client.post("/v1/jobs", json=factories.spec()).status_code == 202
    service.scrape(at=4.5 * MINUTES)
    sent = threading.Event()

    def send() -> int:
        sent.set()
        return service.client.post("/v1/jobs", json=factories.spec(), timeout=60).status_code

    with futures.ThreadPoolExecutor(1) as pool:
        with service.sessions.begin() as session:
            session.execute(sa.text("DELETE FROM jobs WHERE id = 'none'"))
            answer = pool.submit(send)
            sent.wait()
            time.sleep(1.5)  # a second of it in the service, which is slow from then on
        assert answer.result() == 202


def keep_a_job_waiting(service: Service) -> None:
    job = service.job()
    service.change(tables.JobRow, queued_at=job.created_at - HOURS_AGO)


def stop_the_workers(service: Service) -> None:
    keep_a_job_waiting(service)
    with service.sessions.begin() as session:
        workers.stopped(session, worker_id="wrk_1")


def lose_the_broker(service: Service) -> None:
    job = service.job()
    service.change(tables.OutboxRow, created_at=job.created_at - HOURS_AGO)


def stop_maintenance(service: Service) -> None:
    with service.sessions() as session:
        now = database.now(session)
    service.change(tables.CounterRow, counted_at=now - HOURS_AGO)


def lose_workers(service: Service) -> None:
    for _ in range(3):
        job = service.job()
        with service.sessions.begin() as session:
            factories.running(session, session.get_one(tables.JobRow, job.id))
            factories.lost(session, session.get_one(tables.JobRow, job.id))


def refuse_stale_writes(service: Service) -> None:
    with service.sessions.begin() as session:
        counters.add(session, Counter.STALE_WRITES, 3)


def suspend_a_worker(service: Service) -> None:
    with service.sessions.begin() as session:
        fault = {"code": machine_health.NO_DISK, "message": "no room", "since": "", "retry_at": ""}
        workers.seen(session, worker_id="wrk_1", fault=fault)


def fail_attempts(service: Service) -> None:
    for _ in range(5):
        job = service.job()
        with service.sessions.begin() as session:
            lease = factories.running(session, session.get_one(tables.JobRow, job.id))
            leases.fail(session, lease, code="nan_loss", message="", retryable=False, log_tail=[])


def lose_the_store(service: Service) -> None:
    job = service.job()
    with service.sessions.begin() as session:
        lease = factories.running(session, session.get_one(tables.JobRow, job.id))
        leases.wait_for_storage(session, lease, message="waiting")


def break_an_inspection(service: Service) -> None:
    rejection = {"code": "internal_error", "message": "a fault of ours"}
    service.change(tables.ModelVersionRow, state="rejected", rejection=rejection)


def keep_an_upload_waiting(service: Service) -> None:
    with service.sessions() as session:
        now = database.now(session)
    service.change(tables.ModelVersionRow, state="pending", created_at=now - HOURS_AGO)


DRILLS: dict[str, Callable[[Service], None]] = {
    "RetortApiDown": stop_the_api,
    "RetortDatabaseDown": lose_the_database,
    "RetortErrors": fail_requests,
    "RetortSlow": lock_the_database,
    "RetortQueueWaits": keep_a_job_waiting,
    "RetortNoWorker": stop_the_workers,
    "RetortOutboxStuck": lose_the_broker,
    "RetortMaintenanceSilent": stop_maintenance,
    "RetortLeasesExpire": lose_workers,
    "RetortStaleWrites": refuse_stale_writes,
    "RetortWorkerSuspended": suspend_a_worker,
    "RetortAttemptsFail": fail_attempts,
    "RetortStorageDown": lose_the_store,
    "RetortInspectionErrors": break_an_inspection,
    "RetortInspectionsWait": keep_an_upload_waiting,
}


@databases.SQLITE_ONLY
@pytest.mark.parametrize(
    "alert",
    [pytest.param(a, marks=[pytest.mark.slow] if a == "RetortSlow" else []) for a in DRILLS],
)
def test_fires_in_its_drill_and_not_before(service: Service, alert: str) -> None:
    for at in (0, 4 * MINUTES):
        service.scrape(at=at)
    assert service.value(alert, at=4 * MINUTES) == {}
    DRILLS[alert](service)
    service.scrape(at=5 * MINUTES - 1)
    assert service.value(alert, at=5 * MINUTES - 1) != {}


@databases.SQLITE_ONLY
def test_nothing_fires_while_all_is_well(service: Service) -> None:
    service.job()
    outbox.relay(service.sessions, lambda *_: None)
    for at in (0, 4 * MINUTES):
        service.scrape(at=at)
    assert [alert for alert in DRILLS if service.value(alert, at=4 * MINUTES) != {}] == []


class TestRules:
    def test_have_a_drill_each(self) -> None:
        assert [rule["alert"] for rule in RULES] == list(DRILLS)

    def test_have_a_section_of_the_runbook_each(self) -> None:
        runbook = source.text(Path("docs/ops/runbook.md"))
        sections = re.findall(r"^## (\w+)$", runbook, re.MULTILINE)
        assert [rule["alert"] for rule in RULES] == sections
        for rule in RULES:
            anchor = f"docs/ops/runbook.md#{rule['alert'].lower()}"
            assert rule["annotations"]["runbook"] == anchor

    def test_name_every_fault_that_a_machine_can_have(self) -> None:
        runbook = source.text(Path("docs/ops/runbook.md"))
        (section,) = re.findall(r"^## RetortWorkerSuspended$(.*?)^## ", runbook, re.M | re.S)
        faults = {"DISK_FAILED", *(name for name in vars(machine_health) if name.startswith("NO_"))}
        codes = {getattr(machine_health, name) for name in faults}
        assert {code for code in codes if f"`{code}`" not in section} == set()

    def test_say_what_each_alert_means_and_what_to_do(self) -> None:
        runbook = source.text(Path("docs/ops/runbook.md"))
        for part in re.split(r"^## \w+$", runbook, flags=re.MULTILINE)[1:]:
            words = re.findall(r"^\*\*(Means|Look|Mend)\.\*\*", part, re.MULTILINE)
            assert words == ["Means", "Look", "Mend"], part[:100]


def exported(text: str) -> set[str]:
    """Return the names of the series of a scrape."""
    families = text_string_to_metric_families(text)
    return {sample.name for family in families for sample in family.samples}


@databases.SQLITE_ONLY
def test_rules_and_dashboard_name_metrics_that_exist(service: Service) -> None:
    service.job()
    there = exported(service.metrics() or "") | {"up"}
    expressions = [rule["expr"] for rule in RULES] + [
        expression for _, expression in dashboard_expressions()
    ]
    for expression in expressions:
        assert promql.names(expression) - there == set(), expression


def dashboard_expressions() -> Iterator[tuple[str, str]]:
    """Yield title and expression of each target of the dashboard."""
    document = yaml.safe_load(source.text(Path("docs/ops/dashboard.json")))
    for panel in document["panels"]:
        for target in panel.get("targets", []):
            yield panel["title"], target["expr"].replace("$__rate_interval", "5m")


@databases.SQLITE_ONLY
def test_every_metric_of_ours_is_on_the_dashboard(service: Service) -> None:
    shown = {name for _, expr in dashboard_expressions() for name in promql.names(expr)}
    ours = {name for name in exported(service.metrics() or "") if name.startswith("retort_")}
    families = {re.sub(r"_(bucket|count|sum|created|total)$", "", name) for name in ours}
    assert families - {re.sub(r"_(bucket|count|sum|total)$", "", name) for name in shown} == set()
