"""A running federated job."""

import pytest

from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import federation_scenes
from tests.federation_scenes import RemoteJob


@pytest.fixture
def remote(sessions: database.Sessions, storage: Storage, project: tables.ProjectRow) -> RemoteJob:
    """A federated job that waits for its clients."""
    return federation_scenes.running(sessions, storage, project.id)
