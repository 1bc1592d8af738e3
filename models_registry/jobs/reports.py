"""The report of a finished job: files of the student's version that lie under `report/`.

They are kept as long as that version.
"""

from sqlalchemy.orm import Session

from models_registry import errors
from models_registry.artifacts import models
from models_registry.jobs import queries
from models_registry.persistence import tables

FOLDER = "report/"


def files(session: Session, *, job: tables.JobRow) -> list[models.File]:
    """Return the files of a job's report by path; none if its spec has `report: false`.

    Raises: errors.Conflict while the job has made nothing; errors.Gone when its student was
    deleted.
    """
    return models.files_under(session, _student(session, job), folder=FOLDER)


def file(session: Session, *, job: tables.JobRow, path: str) -> models.File:
    """Return one file of a job's report; `path` is relative to the report.

    Raises: errors.NotFound, naming the files that exist; and as `files`.
    """
    return models.file(session, _student(session, job), path=f"{FOLDER}{path}")


def whole(session: Session, *, job: tables.JobRow) -> list[models.File]:
    """Return the files of a report that is not empty.

    Raises: errors.NotFound if the job's spec has `report: false`; and as `files`.
    """
    report_files = files(session, job=job)
    if not report_files:
        raise errors.NotFound(f"job {job.id} has no report: submit it with report true")
    return report_files


def name_of(file: models.File) -> str:
    """Return the path of a file of a report, relative to the report."""
    return file.path.removeprefix(FOLDER)


def _student(session: Session, job: tables.JobRow) -> tables.ModelVersionRow:
    return queries.student_version(session, job=job, needed_for="report")
