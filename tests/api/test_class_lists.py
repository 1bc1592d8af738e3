"""A version with many classes is a short entry of a list, and whole by itself."""

from fastapi.testclient import TestClient

from api.schemas.versions import LISTED_CLASSES
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from tests import databases, factories

MANY = LISTED_CLASSES + 1


@databases.SQLITE_ONLY
def test_of_models_are_cut(
    client: TestClient,
    sessions: database.Sessions,
    storage: Storage,
    project: tables.ProjectRow,
) -> None:
    with sessions.begin() as session:
        factories.teacher(session, storage, project_id=project.id, name="wide", classes=MANY)
        factories.teacher(session, storage, project_id=project.id, name="narrow", content=b"n")
    (listed,) = client.get("/v1/models/wide/versions").json()["data"]
    assert listed["classes"] == [str(number) for number in range(LISTED_CLASSES)]
    assert listed["classes_count"] == MANY
    alone = client.get("/v1/models/wide/versions/1").json()
    assert (len(alone["classes"]), alone["classes_count"]) == (MANY, MANY)
    (short,) = client.get("/v1/models/narrow/versions").json()["data"]
    assert (len(short["classes"]), short["classes_count"]) == (10, 10)


@databases.SQLITE_ONLY
def test_of_data_sets_are_cut_with_their_boxes(
    client: TestClient, sessions: database.Sessions, project: tables.ProjectRow
) -> None:
    with sessions.begin() as session:
        row = (
            session.query(tables.DatasetVersionRow)
            .join(tables.DatasetRow, tables.DatasetRow.id == tables.DatasetVersionRow.dataset_id)
            .filter(tables.DatasetRow.name == "digits")
            .one()
        )
        row.classes = [f"class {number}" for number in range(MANY)]
        row.boxes = {"train": [1] * MANY}
    (listed,) = client.get("/v1/datasets/digits/versions").json()["data"]
    assert (len(listed["classes"]), listed["classes_count"]) == (LISTED_CLASSES, MANY)
    assert len(listed["boxes"]["train"]) == LISTED_CLASSES
    alone = client.get("/v1/datasets/digits/versions/1").json()
    assert (len(alone["classes"]), len(alone["boxes"]["train"])) == (MANY, MANY)
