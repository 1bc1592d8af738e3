"""Try a version with a few pictures."""

from typing import Annotated

from fastapi import APIRouter, Path, Response
from fastapi.concurrency import run_in_threadpool

from api import answer_waits
from api.answer_waits import WaitSeconds
from api.dependencies import CallerDep, EditorDep, ReadersDep, ServiceDep
from api.schemas import exports as bodies
from models_registry import errors
from models_registry.artifacts import models, predictions
from models_registry.persistence import database

router = APIRouter(prefix="/v1/models/{name}/versions/{version}", tags=["models"])

Version = Annotated[int, Path(ge=1, le=999_999_999)]
_SETTLED = (predictions.READY, predictions.FAILED)


@router.post(
    "/predict",
    operation_id="predict",
    responses={202: {"model": bodies.PredictionRead, "description": "There is no answer yet."}},
)
async def predict(
    name: str,
    version: Version,
    body: bodies.PredictionNew,
    caller: EditorDep,
    service: ServiceDep,
    response: Response,
    wait_seconds: WaitSeconds = 10.0,
) -> bodies.PredictionRead:
    """Ask what a version says of pictures: for trying it out, not for serving.

    A worker answers through the version's ONNX export, which must be ready: within a second, where
    a worker of the queue `inspect` has nothing else to do. The pictures are deleted with the
    answer, and the answer after five minutes. With 202, read it again where `Location` points.
    """

    def ask() -> bodies.PredictionRead:
        with service.sessions.begin() as session:
            row = models.get_version(
                session, project_id=caller.project_id, name=name, version=version
            )
            made = predictions.request(session, version=row, pictures=body.pictures)
            return bodies.PredictionRead.of(made)

    asked = await run_in_threadpool(ask)
    # At once, and not after the response: that is what the caller waits for.
    await run_in_threadpool(service.publisher.publish)
    found = await _settled(service.readers, asked, wait_seconds)
    response.status_code = 200 if found.state in _SETTLED else 202
    response.headers["location"] = f"/v1/models/{name}/versions/{version}/predictions/{found.id}"
    return found


@router.get("/predictions/{prediction_id}", operation_id="get_prediction")
async def show(
    name: str,
    version: Version,
    prediction_id: str,
    caller: CallerDep,
    readers: ReadersDep,
    wait_seconds: WaitSeconds = 0.0,
) -> bodies.PredictionRead:
    """Return what was asked, and the answer where there is one; after five minutes, 404."""

    def read() -> bodies.PredictionRead:
        with readers() as session:
            row = models.get_version(
                session, project_id=caller.project_id, name=name, version=version
            )
            found = predictions.get(session, version=row, prediction_id=prediction_id)
            return bodies.PredictionRead.of(found)

    return await _settled(readers, await run_in_threadpool(read), wait_seconds)


async def _settled(
    readers: database.Sessions, asked: bodies.PredictionRead, wait_seconds: float
) -> bodies.PredictionRead:
    """Return a request once it has an answer, or as it is when time is up."""

    def read() -> bodies.PredictionRead | None:
        with readers() as session:
            row = predictions.find(session, asked.id)
            return None if row is None else bodies.PredictionRead.of(row)

    found = await answer_waits.until_settled(
        asked,
        read=read,
        is_settled=lambda one: one.state in _SETTLED,
        wait_seconds=wait_seconds,
    )
    if found is None:
        raise errors.Gone(f"prediction {asked.id} was deleted: send the pictures again")
    return found
