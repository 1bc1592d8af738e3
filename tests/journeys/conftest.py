"""One running service of each kind for all journeys."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from retort.client import Client
from tests.journeys import stacks
from tests.journeys.stacks import PATIENCE_SECONDS


@pytest.fixture(scope="session", params=["production", "embedded"])
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[stacks.Stack]:
    """A whole running service: PostgreSQL, Redis, S3 and Celery, then the embedded default."""
    folder = tmp_path_factory.mktemp(request.param)
    start = {"production": stacks.production, "embedded": stacks.embedded}[request.param]
    with start(folder) as running:
        yield running


@pytest.fixture
def retort(stack: stacks.Stack) -> Iterator[Client]:
    """A client of the running service."""
    with stack.client() as client:
        yield client


@pytest.fixture(scope="session")
def teacher(stack: stacks.Stack, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The reference of a teacher: trained through the service, then uploaded as a checkpoint."""
    with stack.client() as retort:
        job = retort.jobs.submit(
            {
                "name": "pretraining",
                "student": {"network": "retort/resnet8"},
                "dataset": "digits@1",
                "method": {"name": "ce"},
                "training": {"epochs": 8},
                "report": False,
            }
        )
        ended = retort.jobs.wait(job.id, timeout=PATIENCE_SECONDS)
        assert ended.state == "succeeded", ended
        path: Path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
        retort.jobs.download_student(job.id, path)
        upload = retort.uploads.send(path, purpose="model")
        assert ended.result is not None
        assert ended.result.student is not None
        made = retort.models.resolve(ended.result.student)
        version = retort.models.register(
            "digits-teacher",
            upload,
            network="retort/resnet8",
            classes=made.classes or 10,
            input=made.input or {},
        )
        return retort.models.wait(version.name, version.version, timeout=PATIENCE_SECONDS).reference
