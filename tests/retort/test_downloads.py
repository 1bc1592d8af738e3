import hashlib
from typing import Any

import pytest

from retort import digests, downloads, errors
from tests.retort import wire as wires
from tests.retort.wire import Reply, problem, told

CONTENT = bytes(range(256)) * 4000  # about 1 MB: several chunks
RAW = hashlib.sha256(CONTENT).digest()
SHA256 = RAW.hex()
PATH = "/v1/jobs/job_1/student"
HEADERS = {"repr-digest": digests.header(RAW), "etag": f'"{SHA256}"'}


def whole(**how: Any) -> Reply:
    return Reply(200, CONTENT, HEADERS, **how)


def rest(start: int, **how: Any) -> Reply:
    extent = f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}"
    return Reply(206, CONTENT[start:], {**HEADERS, "content-range": extent}, **how)


@pytest.fixture
def target(tmp_path):
    return tmp_path / "out" / "student.safetensors"


@pytest.fixture
def partial(target):
    """Where an unfinished download waits."""
    target.parent.mkdir()
    return target.with_name(f"student.safetensors.{SHA256[:12]}.part")


class TestSave:
    def test_writes_the_bytes_and_nothing_else(self, wire, http, target):
        wire.on("GET", PATH, whole())
        assert downloads.save(http, PATH, target, sha256=SHA256) == target
        assert target.read_bytes() == CONTENT
        assert [path.name for path in target.parent.iterdir()] == ["student.safetensors"]
        assert wire.requests[0].headers["accept-encoding"] == "identity"

    def test_goes_on_where_an_earlier_call_stopped(self, wire, http, target, partial):
        partial.write_bytes(CONTENT[:300_000])
        wire.on("GET", PATH, rest(300_000))
        downloads.save(http, PATH, target, sha256=SHA256)
        assert wire.requests[0].headers["range"] == "bytes=300000-"
        assert target.read_bytes() == CONTENT

    def test_goes_on_after_a_lost_line(self, wire, http, target):
        # How much arrives before the reset is up to the network, so the server must listen.
        wire.on("GET", PATH, whole(cut_after=700_000), problem(503, "draining"), whole())
        downloads.save(http, PATH, target, sha256=SHA256)
        assert target.read_bytes() == CONTENT

    def test_starts_again_if_the_server_knows_no_ranges(self, wire, http, target, partial):
        partial.write_bytes(b"left by something else")
        wire.on("GET", PATH, whole())
        downloads.save(http, PATH, target, sha256=SHA256)
        assert target.read_bytes() == CONTENT

    def test_takes_a_complete_partial_file_for_what_it_is(self, wire, http, target, partial):
        partial.write_bytes(CONTENT)
        wire.on("GET", PATH, problem(416, "range_not_satisfiable"))
        downloads.save(http, PATH, target, sha256=SHA256)
        assert target.read_bytes() == CONTENT

    def test_starts_again_when_the_earlier_bytes_were_damaged(self, wire, http, target, partial):
        partial.write_bytes(b"?" * 300_000)
        wire.on("GET", PATH, rest(300_000), whole())
        downloads.save(http, PATH, target, sha256=SHA256)
        assert target.read_bytes() == CONTENT
        assert "range" not in wire.requests[1].headers

    def test_never_leaves_damaged_bytes_under_the_final_name(self, wire, http, target):
        wire.on("GET", PATH, Reply(200, CONTENT[:-1] + b"?"))
        with pytest.raises(errors.DamagedTransfer, match=f"sha256:{SHA256}"):
            downloads.save(http, PATH, target, sha256=SHA256)
        assert list(target.parent.iterdir()) == []

    def test_refuses_at_once_what_the_server_calls_something_else(self, wire, http, target):
        other = hashlib.sha256(b"other").digest()
        wire.on("GET", PATH, Reply(200, b"other", {"repr-digest": digests.header(other)}))
        with pytest.raises(errors.DamagedTransfer, match="the server offers"):
            downloads.save(http, PATH, target, sha256=SHA256)

    def test_checks_against_the_servers_header_if_nothing_else_is_known(self, wire, http, target):
        wire.on("GET", PATH, Reply(200, CONTENT + b"?", HEADERS))
        with pytest.raises(errors.DamagedTransfer):
            downloads.save(http, PATH, target, sha256=None)

    def test_asks_for_nothing_if_the_file_is_there(self, wire, http, target, partial):
        target.write_bytes(CONTENT)
        downloads.save(http, PATH, target, sha256=SHA256)
        assert wire.requests == []

    def test_keeps_what_has_arrived_when_it_gives_up(self, wire, http, target, partial, naps):
        partial.write_bytes(CONTENT[:300_000])
        wire.on("GET", PATH, rest(300_000, cut_after=0))
        with pytest.raises(errors.ConnectionFailed, match="was lost"):
            downloads.save(http, PATH, target, sha256=SHA256)
        assert partial.read_bytes() == CONTENT[:300_000]
        assert len(naps) == http.attempts - 1

    def test_passes_a_refusal_on(self, wire, http, target):
        wire.on("GET", PATH, problem(409, "not_finished", "the job is still running"))
        with pytest.raises(errors.ProblemError, match="still running"):
            downloads.save(http, PATH, target, sha256=None)

    def test_follows_a_redirect_without_the_key(self, wire, http, target):
        with wires.running() as store:
            store.on("GET", "/bucket/blob", whole())
            wire.on("GET", PATH, Reply(307, b"", {"location": f"{store.url}/bucket/blob?sig=x"}))
            downloads.save(http, PATH, target, sha256=SHA256)
            [request] = store.requests
        assert "authorization" not in request.headers
        assert target.read_bytes() == CONTENT

    def test_reports_progress_with_the_part_that_was_there(self, wire, http, target, partial):
        partial.write_bytes(CONTENT[:300_000])
        wire.on("GET", PATH, rest(300_000))
        seen: list[tuple[int, int | None]] = []
        downloads.save(
            http,
            PATH,
            target,
            sha256=SHA256,
            progress=lambda done, total: seen.append((done, total)),
        )
        assert seen[0][0] > 300_000
        assert seen[-1] == (len(CONTENT), len(CONTENT))

    def test_says_why_it_cannot_write(self, wire, http, tmp_path):
        (tmp_path / "file").touch()
        wire.on("GET", PATH, whole())
        with pytest.raises(errors.LocalFileProblem, match=r"student\.safetensors"):
            downloads.save(http, PATH, tmp_path / "file" / "student.safetensors", sha256=SHA256)

    def test_waits_for_a_server_that_starts_again(self, wire, http, target, naps):
        wire.on("GET", PATH, *[problem(503, "draining")] * 3, whole())
        downloads.save(http, PATH, target, sha256=SHA256)
        assert target.read_bytes() == CONTENT
        assert len(naps) == 3


class TestForeignAnswer:
    def test_of_json_is_noticed_by_its_digest(self, wire, http, target):
        wire.on("GET", PATH, told({"hello": "world"}))
        with pytest.raises(errors.DamagedTransfer):
            downloads.save(http, PATH, target, sha256=SHA256)
