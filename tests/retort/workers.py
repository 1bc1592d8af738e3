"""The workers' side of the service, played through the registry's own verbs.

A real worker needs an engine and minutes; what a client sees of it is made here in milliseconds.
"""

import io
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from models_registry.artifacts import inspections
from models_registry.jobs import leases
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import factories


@dataclass(frozen=True)
class Staff:
    """Whoever runs jobs and inspects uploads."""

    sessions: database.Sessions
    storage: Storage
    project_id: str

    def start(self, job_id: str) -> leases.Lease:
        """Take a job and start its engine."""
        with self.sessions.begin() as session:
            return factories.running(session, session.get_one(tables.JobRow, job_id))

    def report(self, lease: leases.Lease, progress: float, *points: leases.MetricSample) -> None:
        """Say how far a job is."""
        with self.sessions.begin() as session:
            leases.report(
                session, lease, progress=progress, estimated_end_at=None, samples=list(points)
            )

    def warn(self, lease: leases.Lease, message: str) -> None:
        """Say that something is odd."""
        with self.sessions.begin() as session:
            leases.warn(session, lease, code="odd", message=message)

    def finish(self, lease: leases.Lease, content: bytes, *, accuracy: float = 0.97) -> None:
        """End a job with a student of these bytes, and a config.json beside it."""
        with self.sessions.begin() as session:
            weights = factories.stored(session, self.storage, content)
            kept = self.storage.put(io.BytesIO(b'{"network": "retort/resnet8"}'))
            config = leases.OutputFile("config.json", kept.sha256, kept.size_bytes, kept.key)
            leases.complete(
                session,
                lease,
                result={
                    "scores": {
                        "teacher": {"accuracy": 0.99},
                        "student": {"accuracy": accuracy, "agreement": 0.98, "ece": 0.01},
                    },
                    "conclusion": "The student matches the baseline.",
                    "kept_epochs": [
                        {"epoch": 7, "score": 0.97, "path": None},
                        {"epoch": 5, "score": 0.96, "path": "epochs/epoch-0005.safetensors"},
                    ],
                    "scores_by_size": [
                        {"height": 224, "width": 224, "scores": {"accuracy": 0.975}}
                    ],
                    "parameters": {"teacher": 1_234_567, "student": 78_042},
                },
                student=factories.new_version(
                    "digits-student", network="retort/resnet8", job_id=lease.job_id
                ),
                files=[weights, config, *self._report(session)],
            )

    def _report(self, session: Any) -> list[leases.OutputFile]:
        files = {"index.json": b"{}", "accuracy.png": b"a picture"}
        return [
            factories.stored(session, self.storage, content, path=f"report/{path}")
            for path, content in files.items()
        ]

    def fail(self, lease: leases.Lease, code: str, message: str, *log_tail: str) -> None:
        """End a job for good, without a student."""
        with self.sessions.begin() as session:
            leases.fail(
                session, lease, code=code, message=message, retryable=False, log_tail=[*log_tail]
            )

    def teacher(
        self, content: bytes = b"weights", *, name: str = "digits-teacher", **facts: Any
    ) -> str:
        """Register a model that is ready to teach, and return its reference."""
        with self.sessions.begin() as session:
            row = factories.teacher(
                session,
                self.storage,
                project_id=self.project_id,
                content=content,
                name=name,
                **facts,
            )
            return f"{name}@{row.version}"

    def invent(self) -> str:
        """Run a data-free job to its end, which keeps its images, and return its id."""
        with self.sessions.begin() as session:
            factories.teacher(session, self.storage, project_id=self.project_id)
            return factories.synthetic_job(session, self.storage, project_id=self.project_id).id

    def accept_model(self, content: bytes) -> None:
        """Inspect the only pending model and make these bytes its weights."""
        with self.sessions.begin() as session:
            inspection = self._claim(session, "models", tables.ModelVersionRow)
            weights = factories.stored(session, self.storage, content)
            inspections.accept(
                session,
                inspection,
                files=[weights],
                sha256=weights.sha256,
                facts={"parameters": 78_042},
            )

    def accept_dataset(self, **facts: Any) -> None:
        """Inspect the only pending data set and find this in it."""
        with self.sessions.begin() as session:
            inspection = self._claim(session, "datasets", tables.DatasetVersionRow)
            inspections.accept(session, inspection, files=[], sha256="0" * 64, facts=facts)

    def reject_model(self, **rejection: Any) -> None:
        """Inspect the only pending model and turn it down."""
        with self.sessions.begin() as session:
            inspection = self._claim(session, "models", tables.ModelVersionRow)
            inspections.reject(session, inspection, rejection=rejection)

    def _claim(self, session: Any, kind: inspections.Kind, row: Any) -> inspections.Inspection:
        version_id = session.scalars(sa.select(row.id).where(row.state == "pending")).one()
        inspection = inspections.claim(session, kind=kind, version_id=version_id)
        if inspection is None:
            raise AssertionError(f"{version_id} cannot be inspected")
        return inspection
