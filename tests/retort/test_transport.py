import httpx
import pytest

from retort import errors, transport, types
from tests import services
from tests.retort import wire as wires
from tests.retort.wire import problem, told

JOB = {"id": "job_1", "state": "queued"}


class TestRequest:
    def test_carries_the_key_and_the_body(self, wire, http):
        wire.on("POST", "/v1/jobs", told(JOB, 202))
        job = http.fetch(types.Job, "POST", "/v1/jobs", body={"name": "a"})
        assert job.id == "job_1"
        [request] = wire.requests
        assert request.headers["authorization"] == "Bearer secret-key"
        assert request.json() == {"name": "a"}

    def test_keeps_the_key_from_other_servers(self, wire, http):
        with wires.running() as other:
            other.on("PUT", "/bucket/part", told({}))
            http.request("PUT", f"{other.url}/bucket/part", content=lambda: iter([b"x"]))
            [request] = other.requests
        assert "authorization" not in request.headers
        assert request.body == b""  # chunked: this server reads bodies by their length only

    @pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
    def test_tries_again_when_the_server_is_in_trouble(self, wire, http, naps, status):
        wire.on("GET", "/v1/jobs/job_1", *[problem(status, "trouble")] * 2, told(JOB))
        assert http.fetch(types.Job, "GET", "/v1/jobs/job_1").id == "job_1"
        assert len(naps) == 2

    def test_waits_longer_each_time(self, wire, http, naps):
        wire.on("GET", "/x", problem(503, "unavailable", "the database cannot be reached"))
        with pytest.raises(errors.ProblemError, match="the database cannot be reached"):
            http.request("GET", "/x")
        assert len(wire.requests) == 6
        longest = [0.2, 0.4, 0.8, 1.6, 3.2]
        assert all(most / 2 <= nap <= most for nap, most in zip(naps, longest, strict=True))

    def test_waits_as_long_as_the_server_asks(self, wire, http, naps):
        busy = wires.Reply(409, b"{}", {"retry-after": "7"})
        wire.on("POST", "/v1/jobs", busy, told(JOB))
        http.request("POST", "/v1/jobs", body={})
        assert naps == [7.0]

    def test_gives_up_at_once_when_it_would_have_to_wait_for_very_long(self, wire, http, naps):
        wire.on("GET", "/x", wires.Reply(429, b"{}", {"retry-after": "3600"}))
        with pytest.raises(errors.ProblemError) as caught:
            http.request("GET", "/x")
        assert caught.value.retry_after_seconds == 3600
        assert naps == []

    @pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 412, 422, 428])
    def test_does_not_repeat_what_was_refused(self, wire, http, status):
        wire.on("GET", "/x", problem(status, "refused", "no"))
        with pytest.raises(errors.ProblemError) as caught:
            http.request("GET", "/x")
        assert (caught.value.status, caught.value.code) == (status, "refused")
        assert len(wire.requests) == 1

    def test_believes_a_server_that_says_it_is_no_use_trying_again(self, wire, http):
        wire.on("GET", "/x", problem(500, "internal_error", "no", retryable=False))
        with pytest.raises(errors.ProblemError):
            http.request("GET", "/x")
        assert len(wire.requests) == 1

    def test_goes_on_after_a_lost_line(self, wire, http):
        lost = wires.Reply(200, b'{"id": "job_1"', cut_after=3)
        wire.on("GET", "/v1/jobs/job_1", lost, told(JOB))
        assert http.fetch(types.Job, "GET", "/v1/jobs/job_1").state == "queued"

    def test_repeats_the_same_idempotency_key(self, wire, http):
        lost = wires.Reply(200, b'{"id": "job_1"', cut_after=3)
        wire.on("POST", "/v1/jobs", lost, told(JOB, 202))
        http.request("POST", "/v1/jobs", body={}, headers={"idempotency-key": "k"})
        assert [r.headers["idempotency-key"] for r in wire.requests] == ["k", "k"]

    def test_sends_a_body_from_its_beginning_each_time(self, wire, http):
        wire.on("PUT", "/part", problem(503, "unavailable"), told({}))
        pieces = [b"abc", b"def"]
        headers = {"content-length": "6"}
        http.request("PUT", "/part", headers=headers, content=lambda: iter(pieces))
        assert [request.body for request in wire.requests] == [b"abcdef", b"abcdef"]

    def test_leaves_parameters_out_that_have_no_value(self, wire, http):
        wire.on("GET", "/x", told({}))
        http.request("GET", "/x", query={"state": None, "limit": 2, "label.a": "b c"})
        assert wire.requests[0].path == "/x?limit=2&label.a=b+c"

    def test_refuses_to_send_what_json_cannot_say(self, http):
        with pytest.raises(errors.BadOption, match="JSON"):
            http.request("POST", "/x", body={"learning_rate": float("nan")})


class TestFailures:
    def test_says_quickly_that_nothing_listens(self, naps):
        url = f"http://127.0.0.1:{services.free_port()}"
        http = transport.Transport(url, "k", sleep=naps.append)
        with pytest.raises(errors.ConnectionFailed, match="`retort up` starts one") as caught:
            http.request("GET", "/x")
        assert caught.value.url == url
        assert len(naps) == 1
        http.close()

    def test_says_that_another_kind_of_server_answers(self, wire, http):
        wire.on("GET", "/v1/jobs/job_1", wires.Reply(200, b"<html>It works!</html>"))
        with pytest.raises(errors.UnexpectedAnswer, match="did not answer like a Retort server"):
            http.fetch(types.Job, "GET", "/v1/jobs/job_1")

    def test_names_the_address_that_a_redirect_points_to(self, wire, http):
        moved = wires.Reply(308, b"", {"location": "https://retort.example/v1/jobs"})
        wire.on("GET", "/v1/jobs", moved)
        with pytest.raises(errors.UnexpectedAnswer, match=r"https://retort\.example"):
            http.request("GET", "/v1/jobs")

    def test_makes_a_problem_of_an_answer_that_is_not_one(self, wire, http):
        wire.on("GET", "/x", wires.Reply(403, b"<html>Forbidden by proxy</html>"))
        with pytest.raises(errors.ProblemError) as caught:
            http.request("GET", "/x")
        assert str(caught.value) == "Forbidden (403 http_error)"

    def test_reads_every_field_of_a_problem(self, wire, http):
        faults = [{"pointer": "/training/epochs", "code": "too_small", "detail": "at least 1"}]
        wire.on("POST", "/v1/jobs", problem(422, "invalid_spec", "1 fault", errors=faults))
        with pytest.raises(errors.ProblemError) as caught:
            http.request("POST", "/v1/jobs", body={})
        [fault] = caught.value.errors
        assert fault == errors.FieldProblem("/training/epochs", "at least 1", "too_small")

    @pytest.mark.parametrize("url", ["", "localhost:8765", "ftp://x", "http://", "/v1"])
    def test_refuses_an_address_that_is_none(self, url):
        with pytest.raises(errors.NotConfigured, match="not the address of a server"):
            transport.Transport(url, "k")

    @pytest.mark.parametrize(
        ("error", "reason"),
        [
            (httpx.ConnectTimeout("x"), "no connection in time"),
            (httpx.ReadTimeout("x"), "did not answer in time"),
            (httpx.ConnectError("refused"), "refused; is it running?"),
            (httpx.RemoteProtocolError("gone"), r"was lost \(gone\)"),
        ],
    )
    def test_says_what_happened_on_the_way(self, error, reason):
        with pytest.raises(errors.ConnectionFailed, match=reason):
            raise transport.failed("http://x", error)


class TestPages:
    def test_follow_the_cursor_to_the_end(self, wire, http):
        first = {"data": [JOB, {**JOB, "id": "job_2"}], "next_cursor": "c2", "has_more": True}
        last = {"data": [{**JOB, "id": "job_3"}], "next_cursor": None, "has_more": False}
        wire.on("GET", "/v1/jobs", told(first), told(last))
        found = [job.id for job in http.pages(types.Job, "/v1/jobs", query={"state": "queued"})]
        assert found == ["job_1", "job_2", "job_3"]
        assert [request.path for request in wire.requests] == [
            "/v1/jobs?state=queued&limit=100",
            "/v1/jobs?state=queued&limit=100&cursor=c2",
        ]

    def test_are_fetched_only_as_far_as_needed(self, wire, http):
        wire.on("GET", "/v1/jobs", told({"data": [JOB], "next_cursor": "c", "has_more": True}))
        assert next(http.pages(types.Job, "/v1/jobs")).id == "job_1"
        assert len(wire.requests) == 1


class TestBodies:
    def test_ignore_fields_of_a_newer_server(self):
        job = types.Job.model_validate({**JOB, "state": "hibernating", "carbon_grams": 3})
        assert not job.is_final
        assert "carbon_grams" not in job.model_dump()

    def test_carry_numbers_that_json_has_no_word_for(self):
        job = types.Job.model_validate({**JOB, "metrics": {"loss/total": "NaN", "a": "-Infinity"}})
        assert job.metrics["loss/total"] != job.metrics["loss/total"]
        assert '"loss/total":"NaN","a":"-Infinity"' in job.model_dump_json()

    @pytest.mark.parametrize("state", ["succeeded", "failed", "cancelled"])
    def test_know_which_states_are_final(self, state):
        assert types.Job.model_validate({**JOB, "state": state}).is_final
