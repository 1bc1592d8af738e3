"""What is checked of a body before anybody parses it."""

import time

import pytest

from api import errors, middleware


@pytest.mark.parametrize(
    "body",
    [b'["' + b"iVBORw0KGgo[" * 2**20 + b'"]', b'["' + rb"\"" * 2**19],
    ids=["long", "without an end"],
)
def test_one_long_string_is_checked_in_linear_time(body: bytes) -> None:
    """Quadratic, the second would take minutes."""
    began = time.process_time()
    middleware.check_json(body)
    assert time.process_time() - began < 5


@pytest.mark.parametrize(
    ("text", "is_deep"),
    [
        (rb'"\\"' + b"[" * 33, True),  # the string has ended
        (rb'"\"' + b"[" * 33 + b'"', False),  # it has not
        (b"[" * 33 + b'"', True),
        (b'"' + b"[" * 33, False),
        (b"[" * 33 + b'"\\', True),
    ],
)
def test_brackets_outside_strings_alone_are_nesting(text: bytes, *, is_deep: bool) -> None:
    if not is_deep:
        middleware.check_json(text)
        return
    with pytest.raises(errors.BodyRejected, match="deeper"):
        middleware.check_json(text)
