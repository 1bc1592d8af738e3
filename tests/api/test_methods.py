"""The catalog over HTTP: every method can be read, found again and used as it is described."""

from typing import Any

import jsonschema
import pytest
from fastapi.testclient import TestClient

from models_registry import catalog
from tests import databases, factories

pytestmark = databases.SQLITE_ONLY
SPEC = {key: value for key, value in factories.spec().items() if key != "method"}


class TestMethods:
    def test_are_listed_in_pages_and_in_full(self, client: TestClient) -> None:
        names, query = list[str](), {"limit": "2"}
        while True:
            body = client.get("/v1/methods", params=query).json()
            names += [method["name"] for method in body["data"]]
            if not body["has_more"]:
                break
            query["cursor"] = body["next_cursor"]
        assert names == list(catalog.load().methods)

    def test_can_be_read_one_by_one(self, client: TestClient) -> None:
        for name in catalog.load().methods:
            body = client.get(f"/v1/methods/{name}").json()
            assert body["name"] == name
            assert body["title"]
            assert body["source"]
            jsonschema.Draft202012Validator.check_schema(body["params_schema"])

    def test_that_do_not_exist_name_the_nearest(self, client: TestClient) -> None:
        answer = client.get("/v1/methods/dkdd")
        assert answer.status_code == 404
        assert "'dkd'" in answer.json()["detail"]


@pytest.mark.usefixtures("teacher")
class TestRanking:
    def ranked(self, client: TestClient, **changes: Any) -> Any:
        answer = client.post("/v1/methods/rank", json={**SPEC, **changes})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def test_puts_those_that_fit_first_and_the_best_measured_among_them(
        self, client: TestClient
    ) -> None:
        found = self.ranked(client)
        assert "digits" in found["measured_on"]
        fits = [not one["refusals"] for one in found["data"]]
        assert fits == sorted(fits, reverse=True)
        measured = [
            one["measured"]["difference"]
            for one in found["data"]
            if one["measured"] and not one["refusals"]
        ]
        assert len(measured) > 10
        assert measured == sorted(measured, reverse=True)
        assert measured[-1] < 0
        # Those that did harm come after those of which nothing is known.
        unknown = [one["measured"] is None for one in found["data"] if not one["refusals"]]
        assert unknown.index(True) == sum(value >= 0 for value in measured)
        assert not unknown[-1]
        names = {one["name"]: one for one in found["data"]}
        assert set(names) == set(catalog.load().methods) - {"combine"}
        assert names["rkd"]["balance"] == "auto"
        assert "and the task is classification" in names["cwd"]["refusals"][0]

    def test_knows_each_task_by_its_own_figures(self, client: TestClient) -> None:
        found = self.ranked(client, task="segmentation", student={"network": "retort/segmenter"})
        assert found["metric"] == "miou"
        assert "scenes" in found["measured_on"]
        measured = {one["name"]: one["measured"] for one in found["data"]}
        assert measured["cwd"]["difference"] > 0
        assert measured["kd"] is None

    def test_says_why_a_method_does_not_fit_and_follows_the_recipe(
        self, client: TestClient
    ) -> None:
        changes = {"student": {"network": "retort/mlp"}, "training": {"recipe": "cifar100"}}
        names = {one["name"]: one for one in self.ranked(client, **changes)["data"]}
        assert names["dkd"]["balance"] == "published"
        assert "feature maps" in names["at"]["refusals"][0]

    def test_refuses_what_is_at_fault_whatever_the_method(self, client: TestClient) -> None:
        wrong = {**SPEC, "teacher": "nobody@1", "training": {"epochs": 0}}
        answer = client.post("/v1/methods/rank", json=wrong)
        assert answer.status_code == 422
        found = {fault["pointer"] for fault in answer.json()["errors"]}
        assert found == {"/teacher", "/training/epochs"}

    def test_sees_only_the_models_of_its_own_project(
        self, client: TestClient, stranger: TestClient
    ) -> None:
        answer = stranger.post("/v1/methods/rank", json=SPEC)
        assert answer.status_code == 422
        found = {fault["pointer"] for fault in answer.json()["errors"]}
        assert found == {"/teacher"}  # the digits are everybody's


class TestRecipes:
    def test_satisfy_the_schema_beside_them(self, client: TestClient) -> None:
        body = client.get("/v1/recipes").json()
        assert {recipe["name"] for recipe in body["data"]} >= {"small", "cifar100", "imagenet"}
        for recipe in body["data"]:
            jsonschema.validate(recipe["training"], body["training_schema"])


@pytest.mark.parametrize("path", ["/v1/methods", "/v1/networks"])
class TestCursor:
    def test_is_checked(self, client: TestClient, path: str) -> None:
        assert client.get(path, params={"cursor": "x"}).json()["code"] == "bad_cursor"
