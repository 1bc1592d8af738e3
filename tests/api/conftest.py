"""Fixtures of the API's tests: another project's administrator."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from models_registry.access import keys
from models_registry.persistence import database
from tests import factories


@pytest.fixture
def stranger(app: FastAPI, client: TestClient, sessions: database.Sessions) -> TestClient:
    """A client of another project, to the application that `client` has started."""
    with sessions.begin() as session:
        project = keys.create_project(session, name="another")
        text = factories.key(session, project_id=project.id)
    return TestClient(app, headers={"authorization": f"Bearer {text}"})
