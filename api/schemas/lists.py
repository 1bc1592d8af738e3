"""The envelope of every list."""

from collections.abc import Callable
from typing import Generic, Self, TypeVar

from pydantic import BaseModel, Field

from models_registry.persistence import paging

Entry = TypeVar("Entry")
Source = TypeVar("Source")


class ListRead(BaseModel, Generic[Entry]):
    """One page of a list."""

    data: list[Entry]
    next_cursor: str | None = Field(
        default=None, description="Give it as `cursor` for the next page; null on the last."
    )
    has_more: bool = Field(default=False, description="Whether another page follows.")

    @classmethod
    def of(cls, page: paging.Page[Source], read: Callable[[Source], Entry]) -> Self:
        """Return a page of rows as a page of bodies."""
        return cls(
            data=[read(row) for row in page.rows],
            next_cursor=page.next_cursor,
            has_more=page.has_more,
        )
