import hashlib
import json

import pytest

from retort import errors, jobs
from tests.retort import wire as wires
from tests.retort.wire import Reply, problem, stream, told

STREAM = "/v1/jobs/job_1/stream"
JOB = {"id": "job_1", "state": "running"}
OVER = {"id": "job_1", "state": "succeeded"}


def sse(*sequences: int) -> str:
    return "".join(
        f"id: {n}\nevent: job.x{n}\ndata: "
        + json.dumps({"sequence": n, "type": f"job.x{n}", "at": None, "data": {"n": n}})
        + "\n\n"
        for n in sequences
    )


@pytest.fixture
def made(http):
    return jobs.Jobs(http)


def sequences(events) -> list[int]:
    return [event.sequence for event in events]


class TestSubmit:
    def test_always_sends_an_idempotency_key(self, wire, made):
        wire.on("POST", "/v1/jobs", told(JOB, 202))
        made.submit({"name": "a"})
        made.submit({"name": "a"})
        first, second = (r.headers["idempotency-key"] for r in wire.requests)
        assert first != second

    def test_makes_one_job_when_the_answer_was_lost(self, wire, made):
        wire.on("POST", "/v1/jobs", wires.Reply(202, b"{}", cut_after=1), told(JOB, 202))
        assert made.submit({"name": "a"}).id == "job_1"
        assert len({r.headers["idempotency-key"] for r in wire.requests}) == 1


class TestStream:
    def test_yields_events_until_the_job_has_ended(self, wire, made):
        wire.on("GET", STREAM, stream(": hello\n\n" + sse(1, 2, 3)))
        wire.on("GET", "/v1/jobs/job_1", told(OVER))
        wire.on("GET", "/v1/jobs/job_1/events", told({"data": [], "has_more": False}))
        assert sequences(made.stream("job_1")) == [1, 2, 3]

    def test_reconnects_after_a_reset_and_says_where_it_was(self, wire, made):
        wire.on("GET", STREAM, stream(sse(1, 2), cut=True), stream(sse(3)))
        wire.on("GET", "/v1/jobs/job_1", told(OVER))
        wire.on("GET", "/v1/jobs/job_1/events", told({"data": [], "has_more": False}))
        assert sequences(made.stream("job_1")) == [1, 2, 3]
        last_ids = [r.headers.get("last-event-id") for r in wire.sent("GET", STREAM)]
        assert last_ids == [None, "2"]

    def test_yields_no_event_twice(self, wire, made):
        wire.on("GET", STREAM, stream(sse(1, 2), cut=True), stream(sse(1, 2, 3)))
        wire.on("GET", "/v1/jobs/job_1", told(OVER))
        wire.on("GET", "/v1/jobs/job_1/events", told({"data": [], "has_more": False}))
        assert sequences(made.stream("job_1")) == [1, 2, 3]

    def test_goes_on_when_the_server_ends_a_stream_early(self, wire, made, naps):
        wire.on("GET", STREAM, stream("retry: 2000\n\n" + sse(1)), stream(sse(2)))
        wire.on("GET", "/v1/jobs/job_1", told(JOB), told(OVER))
        wire.on("GET", "/v1/jobs/job_1/events", told({"data": [], "has_more": False}))
        assert sequences(made.stream("job_1")) == [1, 2]
        assert naps == [2.0]

    def test_fetches_what_the_stream_did_not_tell(self, wire, made):
        wire.on("GET", STREAM, stream(sse(1)))
        wire.on("GET", "/v1/jobs/job_1", told(OVER))
        missed = [{"sequence": n, "type": "job.y"} for n in (2, 3)]
        wire.on(
            "GET",
            "/v1/jobs/job_1/events",
            told({"data": missed[:1], "has_more": True}),
            told({"data": missed[1:], "has_more": False}),
        )
        assert sequences(made.stream("job_1")) == [1, 2, 3]
        asked = [r.path for r in wire.sent("GET", "/v1/jobs/job_1/events")]
        assert [path.partition("after=")[2] for path in asked] == ["1", "2"]

    def test_skips_what_is_not_an_event_of_the_job(self, wire, made):
        progress = 'event: progress\ndata: {"progress": 0.5}\n\nevent: x\ndata: no json\n\n'
        wire.on("GET", STREAM, stream(progress + sse(1)))
        wire.on("GET", "/v1/jobs/job_1", told(OVER))
        wire.on("GET", "/v1/jobs/job_1/events", told({"data": [], "has_more": False}))
        assert sequences(made.stream("job_1")) == [1]

    def test_waits_through_an_outage_with_growing_pauses(self, wire, made, naps):
        outage = [problem(503, "draining")] * 3
        wire.on("GET", STREAM, stream(sse(1), cut=True), *outage, stream(sse(2)))
        wire.on("GET", "/v1/jobs/job_1", told(OVER))
        wire.on("GET", "/v1/jobs/job_1/events", told({"data": [], "has_more": False}))
        assert sequences(made.stream("job_1")) == [1, 2]
        assert all(0.25 * 2**n <= nap <= 0.5 * 2**n for n, nap in enumerate(naps))

    def test_gives_up_when_its_patience_is_over(self, wire, made):
        wire.on("GET", STREAM, stream("", cut=True))
        with pytest.raises(errors.ConnectionFailed, match="was lost"):
            list(made.stream("job_1", patience_seconds=0))

    def test_does_not_try_again_for_a_job_that_does_not_exist(self, wire, made):
        with pytest.raises(errors.ProblemError, match="404"):
            list(made.stream("job_1"))
        assert len(wire.requests) == 1

    def test_starts_after_the_event_the_caller_has_seen(self, wire, made):
        wire.on("GET", STREAM, stream(sse(8)))
        wire.on("GET", "/v1/jobs/job_1", told(OVER))
        wire.on("GET", "/v1/jobs/job_1/events", told({"data": [], "has_more": False}))
        assert sequences(made.stream("job_1", after=7)) == [8]
        assert wire.requests[0].headers["last-event-id"] == "7"


class TestWait:
    def test_returns_the_job_once_it_has_ended(self, wire, made, naps):
        wire.on("GET", "/v1/jobs/job_1", told(JOB), told({**JOB, "state": "new word"}), told(OVER))
        assert made.wait("job_1").state == "succeeded"
        assert naps == [1.0, 1.0]

    def test_gives_up_in_time(self, wire, made):
        wire.on("GET", "/v1/jobs/job_1", told(JOB))
        with pytest.raises(errors.TimedOut, match="job_1 is still running"):
            made.wait("job_1", timeout=0.5)


class TestReport:
    def test_is_fetched_from_where_its_name_leads(self, wire, made, tmp_path):
        content = b"a picture"
        digest = hashlib.sha256(content).hexdigest()
        file = {"path": "a b.png", "size_bytes": 9, "sha256": digest, "url": "/elsewhere"}
        wire.on("GET", "/v1/jobs/job_1/report", told({"data": [file], "archive": None}))
        wire.on("GET", "/v1/jobs/job_1/report/a%20b.png", Reply(200, content))
        (listed,) = made.report("job_1")
        target = made.download_report_file("job_1", listed, tmp_path / "a b.png")
        assert target.read_bytes() == content
