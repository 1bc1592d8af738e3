"""Responses of routes that are called often."""

from fastapi import Response
from pydantic import BaseModel


def of(body: BaseModel, *, status: int = 200) -> Response:
    """Return the response with a body that is valid already, written once.

    A route that returns the body itself has it validated again, in a thread of its own.
    """
    content = body.model_dump_json(by_alias=True)
    return Response(content, status, media_type="application/json")
