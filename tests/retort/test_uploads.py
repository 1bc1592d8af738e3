import hashlib
import threading
from typing import Any

import pytest

from retort import digests, errors, transport, uploads
from tests.retort import wire as wires
from tests.retort.wire import problem, told

CONTENT = bytes(range(256)) * 10  # 2560 bytes: three parts of 1000, 1000 and 560
SHA256 = hashlib.sha256(CONTENT).hexdigest()
PART_BYTES = 1000
DONE = {"id": "upl_1", "state": "completed", "blob": f"sha256:{SHA256}", "size_bytes": 2560}


def announced(received: tuple[int, ...] = (), **more: object) -> dict[str, Any]:
    parts = [
        {"number": n, "url": f"/v1/uploads/upl_1/parts/{n}", "received": n in received}
        for n in (1, 2, 3)
    ]
    return {
        "id": "upl_1",
        "state": "open",
        "part_size_bytes": PART_BYTES,
        "parts": parts,
        **more,
    }


def elsewhere(store: str) -> dict[str, Any]:
    """Return an upload of one part, which the client puts into a bucket itself."""
    part = {"number": 1, "url": f"{store}/bucket/x?signature=y", "received": False}
    return {**announced(), "parts": [part], "part_size_bytes": 4096}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "teacher.pt"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def server(wire):
    """A server that takes an upload of three parts."""
    wire.on("POST", "/v1/uploads", told(announced(), 201))
    for number in (1, 2, 3):
        wire.on("PUT", f"/v1/uploads/upl_1/parts/{number}", wires.Reply(204))
    wire.on("POST", "/v1/uploads/upl_1/complete", told(DONE))
    return wire


def put(server: wires.Wire, number: int) -> list[wires.Request]:
    return server.sent("PUT", f"/v1/uploads/upl_1/parts/{number}")


class TestSend:
    def test_announces_the_file_with_its_digest(self, server, http, file):
        done = uploads.Uploads(http).send(file, purpose="model")
        assert done.blob == f"sha256:{SHA256}"
        [begun] = server.sent("POST", "/v1/uploads")
        assert begun.json() == {
            "filename": "teacher.pt",
            "size_bytes": 2560,
            "sha256": SHA256,
            "purpose": "model",
        }
        assert begun.headers["idempotency-key"]

    def test_sends_each_part_once_with_its_digest_and_length(self, server, http, file):
        uploads.Uploads(http).send(file, purpose="model")
        for number in (1, 2, 3):
            [request] = put(server, number)
            part = CONTENT[(number - 1) * PART_BYTES : number * PART_BYTES]
            assert request.body == part
            assert request.headers["content-length"] == str(len(part))
            assert request.headers["repr-digest"] == digests.header(hashlib.sha256(part).digest())

    def test_sends_a_part_again_after_trouble(self, server, http, file):
        cut = wires.Reply(cut_after=-1)
        server.on("PUT", "/v1/uploads/upl_1/parts/2", cut, problem(503, "x"), wires.Reply(204))
        assert uploads.Uploads(http).send(file, purpose="model").state == "completed"
        assert [r.body for r in put(server, 2)][-1] == CONTENT[1000:2000]

    def test_reports_progress_up_to_the_whole(self, server, http, file):
        seen: list[tuple[int, int]] = []
        uploads.Uploads(http).send(
            file, purpose="model", progress=lambda done, total: seen.append((done, total))
        )
        assert seen[0] == (0, 2560)
        assert seen[-1] == (2560, 2560)

    def test_sends_parts_to_a_presigned_address_without_the_key(self, server, http, file):
        with wires.running() as store:
            store.on("PUT", "/bucket/x", wires.Reply(200))
            server.on("POST", "/v1/uploads", told(elsewhere(store.url), 201))
            uploads.Uploads(http).send(file, purpose="model")
            [request] = store.requests
        assert request.body == CONTENT
        assert "authorization" not in request.headers

    def test_names_the_bucket_that_refuses_a_part(self, server, http, file):
        with wires.running() as store:
            store.on("PUT", "/bucket/x", wires.Reply(403, b"<Code>RequestTimeTooSkewed</Code>"))
            server.on("POST", "/v1/uploads", told(elsewhere(store.url), 201))
            with pytest.raises(errors.UnexpectedAnswer) as caught:
                uploads.Uploads(http).send(file, purpose="model")
        host = store.url.removeprefix("http://")
        assert f"the store {host}, to which parts are sent, refused part 1" in str(caught.value)
        assert "status 403: look at this machine's clock" in str(caught.value)
        assert "signature" not in str(caught.value)

    def test_names_the_bucket_that_cannot_be_reached(self, server, http, file):
        with wires.running() as store:
            url = store.url
        server.on("POST", "/v1/uploads", told(elsewhere(url), 201))
        with pytest.raises(errors.UploadInterrupted) as caught:
            uploads.Uploads(http).send(file, purpose="model")
        assert caught.value.url == url
        assert "resume upl_1" in str(caught.value)

    def test_refuses_an_empty_file_before_asking_the_server(self, server, http, tmp_path):
        (tmp_path / "empty.pt").touch()
        with pytest.raises(errors.LocalFileProblem, match="empty"):
            uploads.Uploads(http).send(tmp_path / "empty.pt", purpose="model")
        assert server.requests == []

    def test_passes_a_refusal_of_the_server_on(self, server, http, file):
        server.on("POST", "/v1/uploads", problem(413, "too_large", "at most 1000 bytes"))
        with pytest.raises(errors.ProblemError, match="at most 1000 bytes"):
            uploads.Uploads(http).send(file, purpose="model")

    def test_stops_when_one_part_is_refused(self, server, http, file):
        server.on("PUT", "/v1/uploads/upl_1/parts/1", problem(410, "gone", "it has expired"))
        with pytest.raises(errors.ProblemError, match="it has expired"):
            uploads.Uploads(http).send(file, purpose="model")
        assert server.sent("POST", "/v1/uploads/upl_1/complete") == []

    def test_says_how_to_go_on_when_the_line_stays_down(self, server, http, file, monkeypatch):
        monkeypatch.setattr(transport, "backoff_seconds", lambda *_: 0.0)
        dead = wires.Reply(cut_after=-1)
        server.on("PUT", "/v1/uploads/upl_1/parts/2", dead)
        with pytest.raises(errors.UploadInterrupted, match="resume upl_1") as caught:
            uploads.Uploads(http).send(file, purpose="model")
        assert caught.value.upload_id == "upl_1"

    def test_notices_a_file_that_shrinks_meanwhile(self, server, http, file):
        begun = uploads.Uploads(http).begin(file, purpose="model")
        file.write_bytes(CONTENT[:1500])
        begun = begun.model_copy(update={"size_bytes": 2560})
        with pytest.raises(errors.LocalFileProblem, match="shorter"):
            uploads.Uploads(http).finish(begun, file)

    def test_leaves_no_thread_behind(self, server, http, file):
        before = set(threading.enumerate())  # those of other tests among them
        server.on("PUT", "/v1/uploads/upl_1/parts/2", problem(422, "digest_mismatch", "no"))
        with pytest.raises(errors.ProblemError):
            uploads.Uploads(http).send(file, purpose="model")
        new = set(threading.enumerate()) - before
        assert not [thread for thread in new if "ThreadPool" in thread.name]
        assert len(new) <= 3  # of the test's own server


class TestResume:
    def test_sends_only_what_is_missing(self, server, http, file):
        server.on("GET", "/v1/uploads/upl_1", told(announced((1, 3), sha256=SHA256)))
        uploads.Uploads(http).send(file, purpose="model", resume="upl_1")
        assert server.sent("POST", "/v1/uploads") == []
        assert [len(put(server, number)) for number in (1, 2, 3)] == [0, 1, 0]

    def test_counts_the_parts_received_as_progress(self, server, http, file):
        server.on("GET", "/v1/uploads/upl_1", told(announced((1, 3))))
        seen: list[int] = []
        uploads.Uploads(http).send(
            file, purpose="model", resume="upl_1", progress=lambda done, _: seen.append(done)
        )
        assert (seen[0], seen[-1]) == (1560, 2560)

    def test_sends_a_part_again_that_arrived_damaged(self, server, http, file):
        found = announced((1, 2, 3))
        for part in found["parts"]:
            start = (part["number"] - 1) * PART_BYTES
            part["sha256"] = hashlib.sha256(CONTENT[start : start + PART_BYTES]).hexdigest()
        found["parts"][1]["sha256"] = "0" * 64
        server.on("GET", "/v1/uploads/upl_1", told(found))
        uploads.Uploads(http).send(file, purpose="model", resume="upl_1")
        assert [len(put(server, number)) for number in (1, 2, 3)] == [0, 1, 0]

    def test_refuses_another_file(self, server, http, file):
        server.on("GET", "/v1/uploads/upl_1", told(announced((1,), sha256="0" * 64)))
        with pytest.raises(errors.LocalFileProblem, match="not the file that upl_1 was begun with"):
            uploads.Uploads(http).send(file, purpose="model", resume="upl_1")

    def test_only_confirms_an_upload_that_was_completed(self, server, http, file):
        server.on("GET", "/v1/uploads/upl_1", told({**DONE, "sha256": SHA256}))
        done = uploads.Uploads(http).send(file, purpose="model", resume="upl_1")
        assert done.state == "completed"
        assert not [request for request in server.requests if request.method == "PUT"]


class TestDiscard:
    def test_gives_an_upload_up(self, server, http):
        server.on("DELETE", "/v1/uploads/upl_1", wires.Reply(204))
        uploads.Uploads(http).discard("upl_1")
        assert len(server.sent("DELETE", "/v1/uploads/upl_1")) == 1
