"""Reads `If-Match` and `If-None-Match`: the state that the caller expects."""

import re
from collections.abc import Collection
from typing import Annotated

from fastapi import Depends, Header

from models_registry import errors

_TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"'
_LIST = re.compile(rf"\s*{_TAG}\s*(?:,\s*{_TAG}\s*)*")


def tags(value: str | None, *, header: str) -> list[str] | None:
    """Return the entity tags of a header, or `["*"]`; None without the header.

    Raises: errors.Malformed.
    """
    if value is None:
        return None
    if value.strip() == "*":
        return ["*"]
    if not _LIST.fullmatch(value):
        detail = f"{header} holds entity tags in double quotes, or *; got {value[:100]!r}"
        fault = errors.Fault(f"/header/{header.lower()}", "bad_entity_tag", detail)
        raise errors.Malformed(detail, code="bad_entity_tag", faults=[fault])
    return re.findall(_TAG, value)


def _expected(
    if_match: Annotated[
        str | None, Header(description="Apply the change only if the ETag is still this one.")
    ] = None,
) -> Collection[str] | None:
    # A weak tag never matches here (RFC 9110, 13.1.1); ours are all strong.
    return tags(if_match, header="If-Match")


# Entity tags of the caller's `If-Match`; None without that header.
ExpectedDep = Annotated[Collection[str] | None, Depends(_expected)]


def _must_be_new(
    if_none_match: Annotated[
        str | None, Header(description="`*`: only create, never replace.")
    ] = None,
) -> bool:
    given = tags(if_none_match, header="If-None-Match")
    if given is not None and given != ["*"]:
        detail = "here, If-None-Match can only be *"
        fault = errors.Fault("/header/if-none-match", "bad_entity_tag", detail)
        raise errors.Malformed(detail, code="bad_entity_tag", faults=[fault])
    return given is not None


MustBeNewDep = Annotated[bool, Depends(_must_be_new)]
