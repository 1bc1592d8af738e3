"""Workers: the processes that run jobs."""

from fastapi import APIRouter

from api.dependencies import CallerDep, PageDep, ReadersDep
from api.schemas import lists
from api.schemas import workers as bodies
from models_registry.jobs import workers
from models_registry.persistence import database

router = APIRouter(prefix="/v1/workers", tags=["workers"])


@router.get("", operation_id="list_workers")
def index(
    caller: CallerDep, readers: ReadersDep, wanted: PageDep
) -> lists.ListRead[bodies.WorkerRead]:
    """List the workers seen within a day, newest first."""
    with readers() as session:
        now = database.now(session)
        page = workers.page(session, wanted=wanted)
        holding = workers.busy_with(
            session, project_id=caller.project_id, worker_ids=[row.id for row in page.rows]
        )
    return lists.ListRead.of(
        page,
        lambda row: bodies.WorkerRead.of(
            row, state=workers.state(row, now=now), job_ids=holding.get(row.id, [])
        ),
    )
