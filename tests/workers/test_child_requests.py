"""One thing asked of a child process: an answer, or an end."""

from pathlib import Path

import pytest

from tests.databases import SQLITE_ONLY
from tests.workers import scenes
from workers import child_requests
from workers.context import Context

MODULE = "workers.distill.inspection.uploads"


@SQLITE_ONLY
class TestAsk:
    def test_ends_a_child_that_takes_too_long(self, cold: Context, tmp_path: Path) -> None:
        request = {"kind": "builtin", "name": "digits"}
        with pytest.raises(child_requests.ChildDied, match="took longer"):
            child_requests.ask(MODULE, request, tmp_path, launcher=cold.launcher, limit_seconds=0.1)
        assert scenes.engines(MODULE) == []
