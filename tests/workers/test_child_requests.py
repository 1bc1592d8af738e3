"""One thing asked of a child process: an answer, or an end."""

from pathlib import Path

import pytest

from tests.databases import SQLITE_ONLY
from tests.workers import scenes
from workers import child_requests
from workers.context import Context

MODULE = "workers.distill.inspection.uploads"
HOARDER = "tests.workers.hoarder"


@SQLITE_ONLY
class TestAsk:
    def test_ends_a_child_that_takes_too_long(self, cold: Context, tmp_path: Path) -> None:
        request = {"kind": "builtin", "name": "digits"}
        with pytest.raises(child_requests.ChildDied, match="took longer"):
            child_requests.ask(MODULE, request, tmp_path, launcher=cold.launcher, limit_seconds=0.1)
        assert scenes.engines(MODULE) == []

    def test_ends_a_child_that_holds_more_memory_than_it_may(
        self, cold: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of memory that the kernel's limit does not count, on Linux; elsewhere of any."""
        monkeypatch.setattr(child_requests, "OWN_BYTES", 100 << 20)
        limit = 100 << 20
        failure = child_requests.ask(
            HOARDER, {}, tmp_path, launcher=cold.launcher, memory_bytes=limit
        )
        assert failure is not None
        assert (failure["type"], failure["code"]) == ("failure", "too_large")
        assert f"the limit of {limit} bytes" in failure["message"]
        assert scenes.engines(HOARDER) == []
