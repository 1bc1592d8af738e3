"""The page at `/`: what is served with which headers, built or not."""

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from api import errors, page
from tests import databases

BUILT = "<!doctype html><title>Retort</title>"
SCRIPT = "export const answer = 42;\n" * 50


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A page that was built."""
    (tmp_path / "assets").mkdir()
    (tmp_path / "index.html").write_text(BUILT)
    (tmp_path / "assets" / "index-abc.js").write_text(SCRIPT)
    (tmp_path / "secret.txt").write_text("not an asset")
    return tmp_path


def served(files: Path) -> TestClient:
    """Return a client of an application that serves nothing but this page."""
    app = FastAPI()
    page.install(app, files)
    errors.install(app)
    return TestClient(app)


class TestPage:
    def test_is_asked_for_each_time_and_may_load_nothing_from_elsewhere(self, files: Path) -> None:
        answer = served(files).get("/")
        assert answer.text == BUILT
        assert answer.headers["cache-control"] == "no-cache"
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy

    def test_says_how_to_build_it_where_it_is_not_built(self, tmp_path: Path) -> None:
        answer = served(tmp_path).get("/")
        assert answer.status_code == 200
        assert "make web" in answer.text
        assert "<script" not in answer.text

    @databases.SQLITE_ONLY
    def test_is_served_by_the_api(self, client: TestClient) -> None:
        assert client.get("/").headers["content-security-policy"] == page.POLICY


class TestAssets:
    def test_are_kept_for_a_year(self, files: Path) -> None:
        answer = served(files).get("/assets/index-abc.js")
        assert answer.text == SCRIPT
        assert answer.headers["content-type"].startswith("text/javascript")
        assert "immutable" in answer.headers["cache-control"]

    def test_travel_packed_to_those_who_take_that(self, files: Path) -> None:
        client = served(files)
        packed = client.get("/assets/index-abc.js", headers={"accept-encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["vary"] == "Accept-Encoding"
        assert int(packed.headers["content-length"]) < len(SCRIPT) / 5
        plain = client.get("/assets/index-abc.js", headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert plain.text == packed.text == SCRIPT

    @pytest.mark.parametrize("name", ["gone.js", "..%2Fsecret.txt", "x" * 300])
    def test_are_files_of_one_folder(self, files: Path, name: str) -> None:
        answer = served(files).get(f"/assets/{name}")
        assert answer.status_code == 404
        assert "not an asset" not in answer.text
