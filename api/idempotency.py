"""Idempotent requests: with the same `Idempotency-Key`, the first response is returned again."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session

from api.dependencies import EditorDep, SessionsDep
from models_registry.access import idempotency
from models_registry.persistence import database


@dataclass(frozen=True)
class IdempotentRequest:
    """Runs a request's work, unless it was done before under the same key."""

    sessions: database.Sessions
    request: idempotency.KeyedRequest | None

    def respond(self, work: Callable[[Session], tuple[BaseModel, str]], *, status: int) -> Response:
        """Run `work` in one transaction with its key; it returns the body and its location."""
        with self.sessions.begin() as session:
            first = idempotency.begin(session, self.request) if self.request else None
            answer = first or self._do(session, work, status)
        headers = {"location": answer.location or ""}
        if first is not None:
            headers["idempotency-replayed"] = "true"
        return JSONResponse(answer.body, answer.status, headers)

    def _do(
        self, session: Session, work: Callable[[Session], tuple[BaseModel, str]], status: int
    ) -> idempotency.StoredResponse:
        body, location = work(session)
        answer = idempotency.StoredResponse(status, body.model_dump(mode="json"), location)
        if self.request is not None:
            idempotency.finish(session, self.request, answer)
        return answer


async def _json(request: Request) -> Any:
    # The body as it was sent: the key is bound to it.
    try:
        return await request.json() if await request.body() else None
    except (ValueError, RecursionError):
        return None  # not JSON: the route refuses it before anything is done under the key


async def _idempotent(
    request: Request,
    caller: EditorDep,
    sessions: SessionsDep,
    raw: Annotated[Any, Depends(_json)],
    key: Annotated[
        str | None,
        Header(
            alias="Idempotency-Key",
            max_length=255,
            description="Makes the request safe to repeat: the first response is kept for 24 h.",
        ),
    ] = None,
) -> IdempotentRequest:
    if key is None:
        return IdempotentRequest(sessions, None)
    route = f"{request.method} {request.url.path}"
    keyed = idempotency.keyed_request(project_id=caller.project_id, route=route, key=key, body=raw)
    return IdempotentRequest(sessions, keyed)


IdempotentDep = Annotated[IdempotentRequest, Depends(_idempotent)]
