"""Studies over HTTP: submit once, look, compare, and end."""

import csv
import io
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from api.routes import studies as routes
from api.schemas import studies as bodies
from models_registry.access import keys
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, tables
from models_registry.persistence.storage import Storage
from models_registry.studies import leaderboard, searches
from tests import factories
from tests.databases import SQLITE_ONLY
from workers.distill.config.descriptions import METRICS, Metric

Body = dict[str, Any]

pytestmark = pytest.mark.usefixtures("teacher")


@pytest.fixture
def submitted(client: TestClient) -> Body:
    """A study that has just been submitted."""
    answer = client.post("/v1/studies", json=factories.study_spec(labels={"team": "vision"}))
    assert answer.status_code == 202, answer.text
    body: Body = answer.json()
    return body


def members(client: TestClient, study: Body) -> list[Body]:
    """Return the jobs of a study by seed and variant."""
    found: list[Body] = client.get(study["links"]["jobs"]).json()["data"]
    return sorted(found, key=lambda job: (job["spec"]["training"]["seed"], job["variant"]))


def finish(sessions: database.Sessions, storage: Storage, job: Body, accuracy: float) -> None:
    """Run a job to its end."""
    with sessions.begin() as session:
        row = session.get_one(tables.JobRow, job["id"])
        factories.succeeded(session, storage, row, accuracy=accuracy)


class TestSubmit:
    def test_answers_with_the_study_and_where_it_is(self, client: TestClient) -> None:
        answer = client.post("/v1/studies", json=factories.study_spec(labels={"team": "vision"}))
        assert answer.status_code == 202
        body = answer.json()
        assert answer.headers["location"] == f"/v1/studies/{body['id']}"
        assert body["id"].startswith("stu_")
        assert (body["state"], body["progress"]) == ("queued", 0)
        assert (body["job_count"], body["jobs"]) == (6, {"queued": 6})
        assert body["labels"] == {"team": "vision"}
        assert body["spec"]["teacher"] == "digits-teacher@1"
        assert body["spec"]["methods"] == factories.study_spec()["methods"]
        assert body["spec"]["student"]["register_as"] == "digits-methods"
        assert client.get(answer.headers["location"]).json() == body

    def test_makes_jobs_that_name_their_study(self, client: TestClient, submitted: Body) -> None:
        alone = client.post("/v1/jobs", json=factories.spec()).json()
        assert (alone["study"], alone["variant"]) == (None, None)
        found = members(client, submitted)
        assert {job["study"] for job in found} == {submitted["id"]}
        assert [job["variant"] for job in found] == [1, 2, 3, 1, 2, 3]
        assert alone["id"] not in {job["id"] for job in found}

    def test_happens_once_for_one_key(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        headers = {"idempotency-key": "once"}
        first = client.post("/v1/studies", json=factories.study_spec(), headers=headers)
        again = client.post("/v1/studies", json=factories.study_spec(), headers=headers)
        assert again.json() == first.json()
        assert again.headers["idempotency-replayed"] == "true"
        other = client.post("/v1/studies", json=factories.study_spec(seeds=[7]), headers=headers)
        assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reused")
        with sessions() as session:
            assert len(session.scalars(sa.select(tables.JobRow)).all()) == 6

    @SQLITE_ONLY
    def test_refuses_all_that_is_wrong_with_pointers_into_the_study(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        methods = [{"name": "kd", "temperature": {"grid": [4, -1]}}, {"name": "dkk"}]
        wrong = factories.study_spec(teacher="no@1", methods=methods)
        answer = client.post("/v1/studies", json=wrong)
        assert answer.status_code == 422
        assert answer.headers["content-type"] == "application/problem+json"
        assert {fault["pointer"] for fault in answer.json()["errors"]} == {
            "/teacher",
            "/methods/0/temperature/grid/1",
            "/methods/1/name",
        }
        with sessions() as session:
            assert session.scalars(sa.select(tables.StudyRow)).all() == []

    @SQLITE_ONLY
    def test_refuses_what_is_misspelt(self, client: TestClient) -> None:
        answer = client.post("/v1/studies", json=factories.study_spec(seed=[1], seeds=[1, 1]))
        assert answer.status_code == 422
        pointers = {fault["pointer"] for fault in answer.json()["errors"]}
        assert pointers == {"/seed", "/seeds"}


@SQLITE_ONLY
class TestValidate:
    def test_shows_the_variants_and_stores_nothing(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        answer = client.post("/v1/studies/validate", json=factories.study_spec())
        assert answer.status_code == 200
        body = answer.json()
        assert body["job_count"] == 6
        assert [variant["name"] for variant in body["variants"]] == [
            "ce",
            "kd temperature=2.0",
            "kd temperature=4.0",
        ]
        assert body["variants"][1]["method"]["kd_weight"] > 0
        with sessions() as session:
            assert session.scalars(sa.select(tables.StudyRow)).all() == []


@SQLITE_ONLY
class TestSearch:
    SPACE: ClassVar = {"space": {"type": "float", "low": 1.0, "high": 16.0, "log": True}}

    def spec(self, **changes: Any) -> Body:
        return factories.study_spec(
            **{
                "methods": [{"name": "kd", "temperature": self.SPACE}],
                "training": {"recipe": "small", "epochs": 4},
                "seeds": [0],
                "search": {"trials": 3},
                **changes,
            }
        )

    def test_is_validated_at_its_bounds_and_told_of(self, client: TestClient) -> None:
        body = client.post("/v1/studies/validate", json=self.spec()).json()
        assert (body["job_count"], body["variants"], body["warnings"]) == (12, [], [])
        (space,) = body["spaces"]
        assert (space["pointer"], space["default"]) == ("/methods/0/temperature", 4.0)
        unconfirmed = self.spec(search={"trials": 3, "confirm_seeds": 0})
        (told,) = client.post("/v1/studies/validate", json=unconfirmed).json()["warnings"]
        assert told["code"] == "not_confirmed"
        submitted = client.post("/v1/studies", json=unconfirmed).json()
        assert submitted["search"]["warnings"] == [told]

    def test_is_refused_with_all_that_is_wrong(self, client: TestClient) -> None:
        wrong = self.spec(
            teacher="no@1",
            methods=[
                {"name": "kd", "temperature": {"space": {"type": "int", "low": 0, "high": 2}}}
            ],
            search={"trials": 3, "pruning": {"min_epochs": 9}},
        )
        answer = client.post("/v1/studies", json=wrong)
        assert answer.status_code == 422
        assert {fault["pointer"] for fault in answer.json()["errors"]} == {
            "/teacher",
            "/methods/0/temperature/space/low",
            "/search/pruning/min_epochs",
        }

    def test_shows_its_trials_and_how_far_it_is(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        submitted = client.post("/v1/studies", json=self.spec()).json()
        assert (submitted["state"], submitted["job_count"]) == ("queued", 0)
        assert submitted["search"]["phase"] == "trials"
        assert submitted["search"]["objective"] == "accuracy"
        with sessions.begin() as session:
            question = searches.advance(session, submitted["id"])
            assert question is not None
            proposal = searches.Proposal(0, {"/methods/0/temperature": 2.0})
            answer = searches.Suggestions(question.revision, [proposal])
            searches.advance(session, submitted["id"], answer)
        shown = client.get(submitted["links"]["study"]).json()
        assert shown["search"]["trials"] == {
            **dict.fromkeys(("complete", "pruned", "failed"), 0),
            "running": 1,
        }
        (trial,) = client.get(submitted["links"]["trials"]).json()["data"]
        assert (trial["number"], trial["settings"]) == (1, {"temperature": 2.0})
        (job,) = client.get(submitted["links"]["jobs"]).json()["data"]
        assert trial["jobs"] == [job["id"]]
        board = client.get(submitted["links"]["leaderboard"]).json()
        assert (board["rows"], board["seeds"], board["conclusion"]) == ([], [], None)

    def test_of_another_project_has_no_trials(
        self, client: TestClient, sessions: database.Sessions
    ) -> None:
        submitted = client.post("/v1/studies", json=self.spec()).json()
        with sessions.begin() as session:
            other = keys.create_project(session, name="other")
            key = factories.key(session, project_id=other.id)
        headers = {"authorization": f"Bearer {key}"}
        assert client.get(submitted["links"]["trials"], headers=headers).status_code == 404


class TestList:
    def test_pages_and_filters(self, client: TestClient) -> None:
        one: Body = {"seeds": [0], "baseline": False, "methods": [{"name": "kd"}]}
        ids = [
            client.post(
                "/v1/studies", json=factories.study_spec(name=name, labels={"n": name}, **one)
            ).json()["id"]
            for name in "abc"
        ]
        client.post(f"/v1/studies/{ids[0]}/cancel")

        def found(query: str) -> list[str]:
            return [study["name"] for study in client.get(f"/v1/studies?{query}").json()["data"]]

        assert found("") == ["c", "b", "a"]
        assert found("active=true") == ["c", "b"]
        assert found("active=false") == ["a"]
        assert found("name=b") == ["b"]
        assert found("label.n=c") == ["c"]
        first = client.get("/v1/studies?limit=2").json()
        rest = client.get(f"/v1/studies?limit=2&cursor={first['next_cursor']}").json()
        assert [study["name"] for study in rest["data"]] == ["a"]
        assert not rest["has_more"]


class TestCancel:
    def test_ends_a_study_that_waits_at_once(self, client: TestClient, submitted: Body) -> None:
        answer = client.post(f"{submitted['links']['study']}/cancel")
        assert answer.status_code == 200
        body = answer.json()
        assert (body["state"], body["jobs"]) == ("cancelled", {"cancelled": 6})
        assert body["finished_at"] is not None

    def test_answers_202_while_a_device_is_not_free(
        self, client: TestClient, sessions: database.Sessions, submitted: Body
    ) -> None:
        job = members(client, submitted)[0]
        with sessions.begin() as session:
            factories.running(session, session.get_one(tables.JobRow, job["id"]))
        answer = client.post(f"{submitted['links']['study']}/cancel")
        assert answer.status_code == 202
        assert answer.json()["jobs"] == {"cancelled": 5, "cancelling": 1}
        assert answer.json()["state"] == "running"


@SQLITE_ONLY
class TestDelete:
    def test_waits_for_the_end_and_takes_the_jobs_along(
        self, client: TestClient, submitted: Body
    ) -> None:
        url = submitted["links"]["study"]
        early = client.delete(url)
        assert (early.status_code, early.json()["allowed"]) == (409, ["cancel"])
        job = members(client, submitted)[0]
        client.post(f"{url}/cancel")
        assert client.delete(job["links"]["job"]).json()["code"] == "in_use"
        assert client.delete(url).status_code == 204
        assert client.get(url).status_code == 410
        assert client.get(job["links"]["job"]).status_code == 410
        assert client.get("/v1/studies").json()["data"] == []


@SQLITE_ONLY
class TestAccess:
    def test_is_the_projects_own_and_changes_need_an_editor(
        self,
        client: TestClient,
        stranger: TestClient,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        submitted: Body,
    ) -> None:
        with sessions.begin() as session:
            viewer = factories.key(session, project_id=project.id, role="viewer")
        url = submitted["links"]["study"]
        for verb, path in (
            *(("GET", url), ("GET", f"{url}/leaderboard"), ("POST", f"{url}/cancel")),
            ("DELETE", url),
        ):
            assert stranger.request(verb, path).status_code == 404
        assert stranger.get(submitted["links"]["jobs"]).json()["data"] == []
        reads = {"authorization": f"Bearer {viewer}"}
        assert client.get(f"{url}/leaderboard", headers=reads).status_code == 200
        body = factories.study_spec()
        assert client.post("/v1/studies", json=body, headers=reads).status_code == 403
        assert client.post(f"{url}/cancel", headers=reads).status_code == 403
        assert client.delete(url, headers=reads).status_code == 403


class TestLeaderboard:
    @pytest.fixture
    def url(
        self, client: TestClient, sessions: database.Sessions, storage: Storage, submitted: Body
    ) -> str:
        """The leaderboard of a study of which one job has not ended."""
        accuracies = (0.90, 0.92, 0.91, 0.92, 0.95)
        for job, accuracy in zip(members(client, submitted), accuracies, strict=False):
            finish(sessions, storage, job, accuracy)
        return str(submitted["links"]["leaderboard"])

    def test_compares_variants_with_the_baseline_seed_by_seed(
        self, client: TestClient, submitted: Body, url: str
    ) -> None:
        body = client.get(url).json()
        assert (body["study"], body["state"]) == (submitted["id"], "running")
        assert (body["teacher"], body["seeds"]) == ("digits-teacher@1", [0, 1])
        best, baseline, last = body["rows"]
        assert best["name"] == "kd temperature=2.0"
        assert (best["rank"], best["finished"], best["compared_with"]) == (1, 2, 1)
        assert best["accuracy"]["mean"] == pytest.approx(0.935)
        assert best["difference"]["mean"] == pytest.approx(0.025)
        assert best["difference"]["p_value"] == 0.5
        assert best["difference"]["verdict"] is None
        assert [run["seed"] for run in best["runs"]] == [0, 1]
        assert baseline["is_baseline"]
        assert baseline["difference"] is None
        assert (last["finished"], last["unfinished"]) == (1, 1)
        assert last["accuracy"]["standard_deviation"] is None
        assert last["difference"]["interval"] is None

    @SQLITE_ONLY
    def test_comes_as_csv_with_the_same_numbers(self, client: TestClient, url: str) -> None:
        answer = client.get(url, headers={"accept": "text/csv"})
        assert answer.headers["content-type"] == "text/csv; charset=utf-8"
        assert answer.headers["vary"] == "Accept"
        assert client.get(f"{url}?format=csv").text == answer.text
        rows = list(csv.DictReader(io.StringIO(answer.text)))
        told = client.get(url).json()["rows"]
        assert [row["name"] for row in rows] == [row["name"] for row in told]
        assert float(rows[0]["accuracy_mean"]) == told[0]["accuracy"]["mean"]
        low, high = told[0]["difference"]["interval"]
        assert (float(rows[0]["difference_low"]), float(rows[0]["difference_high"])) == (low, high)
        assert rows[1]["difference_mean"] == rows[2]["p_value"] == ""
        assert rows[1]["is_baseline"] == "true"
        assert (rows[0]["metric"], rows[0]["miou_mean"]) == ("accuracy", "")
        spread = ("mean", "standard_deviation", "smallest", "largest")
        assert list(rows[0])[-15:] == [
            *(f"miou_{name}" for name in spread),
            *("teacher_miou", *(f"ap_{name}" for name in spread), "teacher_ap"),
            *(*(f"knn_{name}" for name in spread), "teacher_knn"),
        ]

    @pytest.mark.parametrize("metric", METRICS)
    def test_shows_the_metric_that_decides(self, metric: Metric) -> None:
        run = leaderboard.Run(
            *(1, 0, "job_1", State.SUCCEEDED),
            scores={metric: 0.7},
            teacher_scores={metric: 0.9},
        )
        variant = leaderboard.Variant(1, {"name": "kd"}, {}, True, None)
        board = leaderboard.make([variant], [run], metric=metric)
        spec = {"teacher": None, "seeds": [0]}
        study = tables.StudyRow(id="stu_1", name="a study", spec=spec)
        body = bodies.LeaderboardRead.of(study, "succeeded", board)
        told = body.model_dump()
        assert (told["metric"], told[f"teacher_{metric}"]) == (metric, 0.9)
        [row] = told["rows"]
        assert (row["rank"], row[metric]["mean"], row["runs"][0][metric]) == (1, 0.7, 0.7)
        others = [row[other] for other in METRICS if other != metric]
        assert others == [None] * (len(METRICS) - 1)
        [line] = csv.DictReader(io.StringIO(body.csv()))
        assert (line[f"{metric}_mean"], line[f"teacher_{metric}"]) == ("0.7", "0.9")

    def test_of_a_study_without_results_claims_nothing(
        self, client: TestClient, submitted: Body
    ) -> None:
        body = client.get(submitted["links"]["leaderboard"]).json()
        assert [row["rank"] for row in body["rows"]] == [None] * 3
        assert {row["accuracy"] for row in body["rows"]} == {None}
        assert body["teacher_accuracy"] is None

    @SQLITE_ONLY
    def test_takes_no_other_format(self, client: TestClient, url: str) -> None:
        answer = client.get(f"{url}?format=xml")
        assert answer.status_code == 422
        assert answer.json()["errors"][0]["pointer"] == "/query/format"


@SQLITE_ONLY
class TestRetry:
    def test_takes_the_place_of_its_job_in_the_study(
        self, client: TestClient, submitted: Body
    ) -> None:
        job = members(client, submitted)[1]
        client.post(f"{job['links']['job']}/cancel")
        new = client.post(f"{job['links']['job']}/retry").json()
        assert (new["study"], new["variant"]) == (submitted["id"], job["variant"])
        assert client.get(job["links"]["job"]).json()["study"] is None
        assert client.get(submitted["links"]["study"]).json()["jobs"] == {"queued": 6}


@SQLITE_ONLY
class TestPrefersCsv:
    @pytest.mark.parametrize(
        ("accept", "prefers"),
        [
            ("", False),
            ("*/*", False),
            ("text/csv", True),
            ("text/*", True),
            ("application/json, text/csv", False),
            ("application/json;q=0.5, text/csv", True),
            ("text/csv;q=0.5, */*", False),
            ("text/csv, */*;q=0.1", True),
            ("text/csv;q=x", False),
            ("text/csv;q=0", False),
        ],
    )
    def test_follows_the_qualities(self, accept: str, prefers: bool) -> None:
        assert routes.prefers_csv(accept) is prefers
