"""Scopes: what covers what, and what is no scope."""

import pytest

from models_registry import errors
from models_registry.access import scopes


class TestOf:
    @pytest.mark.parametrize(
        ("method", "operation_id", "scope"),
        [
            ("GET", "list_jobs", "jobs:read"),
            ("HEAD", "list_jobs", "jobs:read"),
            ("POST", "submit_job", "jobs:write"),
            ("DELETE", "delete_job", "jobs:write"),
            ("POST", "validate_job", "jobs:read"),
        ],
    )
    def test_follows_from_what_a_request_does(
        self, method: str, operation_id: str, scope: str
    ) -> None:
        assert scopes.of(area="jobs", method=method, operation_id=operation_id) == scope


class TestAllows:
    def test_writing_includes_reading_and_nothing_else(self) -> None:
        held = {"jobs:write"}
        assert scopes.allows(held, "jobs:read")
        assert not scopes.allows(held, "models:read")
        assert not scopes.allows({"jobs:read"}, "jobs:write")
        assert not scopes.allows(set(), "jobs:read")
        assert scopes.allows(None, "jobs:write")


class TestCovers:
    def test_compares_what_may_be_handed_on(self) -> None:
        assert scopes.covers(None, None)
        assert scopes.covers({"jobs:write"}, ["jobs:read"])
        assert not scopes.covers({"jobs:write"}, None)
        assert not scopes.covers({"jobs:read"}, ["jobs:read", "keys:write"])


class TestCheck:
    def test_names_what_is_no_scope_and_the_nearest(self) -> None:
        with pytest.raises(errors.Refused, match=r"'job:write'.*jobs:write") as refused:
            scopes.check(["models:read", "job:write"])
        assert [fault.pointer for fault in refused.value.faults] == ["/scopes/1"]

    def test_refuses_a_key_that_could_do_nothing(self) -> None:
        with pytest.raises(errors.Refused, match="leave scopes out"):
            scopes.check([])
