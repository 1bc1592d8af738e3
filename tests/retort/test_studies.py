import pytest

from retort import errors, studies
from tests.retort import wire as wires
from tests.retort.wire import told

URL = "/v1/studies/stu_1"
STUDY = {"id": "stu_1", "state": "running"}
OVER = {"id": "stu_1", "state": "incomplete"}


@pytest.fixture
def made(http):
    return studies.Studies(http)


class TestSubmit:
    def test_makes_one_study_when_the_answer_was_lost(self, wire, made):
        wire.on("POST", "/v1/studies", wires.Reply(202, b"{}", cut_after=1), told(STUDY, 202))
        assert made.submit({"name": "a"}).id == "stu_1"
        assert len(wire.requests) == 2
        assert len({r.headers["idempotency-key"] for r in wire.requests}) == 1


class TestWait:
    def test_returns_the_study_once_all_jobs_have_ended(self, wire, made, naps):
        wire.on("GET", URL, told(STUDY), told({**STUDY, "state": "new word"}), told(OVER))
        assert made.wait("stu_1").state == "incomplete"
        assert naps == [2.0, 2.0]

    def test_gives_up_in_time(self, wire, made):
        wire.on("GET", URL, told(STUDY))
        with pytest.raises(errors.TimedOut, match="stu_1 is still running"):
            made.wait("stu_1", timeout=0.5)


class TestLeaderboard:
    def test_of_a_newer_server_is_read_as_far_as_it_is_known(self, wire, made):
        row = {"variant": 1, "name": "kd", "surprise": 1, "difference": None}
        wire.on("GET", f"{URL}/leaderboard", told({"study": "stu_1", "state": "x", "rows": [row]}))
        assert [row.name for row in made.leaderboard("stu_1").rows] == ["kd"]

    def test_asks_for_csv_in_its_header(self, wire, made):
        reply = wires.Reply(200, b"rank\r\n1\r\n", {"content-type": "text/csv"})
        wire.on("GET", f"{URL}/leaderboard", reply)
        assert made.leaderboard_csv("stu_1") == "rank\r\n1\r\n"
        assert wire.requests[0].headers["accept"] == "text/csv"
