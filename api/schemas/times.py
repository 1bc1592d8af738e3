"""Times in requests: with an offset from UTC, and inside of the years that UTC can express."""

from datetime import UTC, datetime
from typing import Annotated, TypeAlias

from pydantic import AfterValidator, AwareDatetime


def _in_utc(value: datetime) -> datetime:
    """Return a time in UTC; raises `ValueError` for one that is before year 1 or after 9999."""
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("the time lies outside of the years 1 to 9999 in UTC") from error


UtcTime: TypeAlias = Annotated[AwareDatetime, AfterValidator(_in_utc)]
"""A time with an offset, as RFC 3339 writes it, converted to UTC."""
