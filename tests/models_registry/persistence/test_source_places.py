"""Addresses of sources, and the places that a service allows."""

import re
from pathlib import Path

import pytest

from models_registry.persistence import source_places
from tests import conftest


class TestParse:
    @pytest.mark.parametrize(
        ("url", "parts", "usual"),
        [
            ("file:///srv/my%20photos", ("srv", "my photos"), "file:///srv/my%20photos"),
            ("file://localhost/srv/a/", ("srv", "a"), "file:///srv/a/"),
            ("file:/srv/a", ("srv", "a"), "file:///srv/a"),
            ("s3://bucket/a b/c%20d", ("bucket", "a b", "c%20d"), "s3://bucket/a b/c%20d"),
            ("s3://bucket/photos/", ("bucket", "photos"), "s3://bucket/photos/"),
            ("s3://bucket", ("bucket",), "s3://bucket"),
        ],
    )
    def test_gives_the_names_of_the_path(
        self, url: str, parts: tuple[str, ...], usual: str
    ) -> None:
        place = source_places.parse(url)
        assert (place.parts, place.url) == (parts, usual)
        assert source_places.parse(place.url) == place

    @pytest.mark.parametrize(
        ("url", "told"),
        [
            ("s3://key:hush@bucket/a", "carries credentials before an @: leave them out"),
            ("file://user:hush@/srv/a", "carries credentials"),
            ("s3://bucket/a?X-Amz-Signature=hush", "has a ? or #"),
            ("s3://bucket/a#hush", "has a ? or #"),
            ("https://example.org/a.zip", "begins with 'https'"),
            ("/srv/photos", "begins with 'no scheme'"),
            ("file://server/share", "names the machine 'server'"),
            ("file:photos", "is no absolute path"),
            ("file:///", "root of the whole machine"),
            ("file:///srv/../etc", "'..'"),
            ("file:///srv/%2e%2e/etc", "'..'"),
            ("file:///srv/a%00b", "no control characters"),
            ("file:///srv/%ff", "not UTF-8"),
            ("s3://bucket/a/../b", "'..'"),
            ("s3://bucket/a//b", "an empty name"),
            ("s3:///a", "is no name of a bucket"),
            ("s3://Bucket!/a", "is no name of a bucket"),
            ("s3://[bucket/a", "cannot be read as an address"),
            (" s3://bucket/a", "no spaces around"),
            ("s3://bucket/" + "a" * 1000, "at most 1000 characters"),
        ],
    )
    def test_refuses_with_a_way_out_and_repeats_no_secret(self, url: str, told: str) -> None:
        with pytest.raises(ValueError, match=re.escape(told)) as caught:
            source_places.parse(url)
        assert "hush" not in str(caught.value)


class TestRefusal:
    ALLOWED = ("file:///srv/photos", "s3://bucket/sets", "s3://homes/{project}")

    @pytest.mark.parametrize(
        "url",
        [
            "file:///srv/photos",
            "file:///srv/photos/cats/",
            "s3://bucket/sets/a.zip",
            "s3://homes/vision/a",
        ],
    )
    def test_is_none_below_an_allowed_place(self, url: str) -> None:
        assert source_places.refusal(url, self.ALLOWED, project="vision") is None

    @pytest.mark.parametrize(
        "url",
        [
            "file:///srv/photos2",
            "file:///srv",
            "s3://bucket/settings",
            "s3://other/sets",
            "s3://homes/sound/a",
            "s3://homes/vision2",
        ],
    )
    def test_names_the_places_of_the_project_and_the_setting(self, url: str) -> None:
        found = source_places.refusal(url, self.ALLOWED, project="vision")
        assert found is not None
        code, sentence = found
        assert code == "source_not_allowed"
        assert "(file:///srv/photos and s3://bucket/sets and s3://homes/vision)" in sentence
        assert "RETORT_SOURCES" in sentence

    def test_without_the_setting_names_it(self) -> None:
        found = source_places.refusal("s3://bucket/sets", (), project="vision")
        assert found is not None
        assert found[0] == "sources_disabled"
        assert "RETORT_SOURCES is empty" in found[1]

    @pytest.mark.parametrize("project", ["a/b", "..", ".", "", "a%2Fb"])
    def test_a_projects_name_never_names_another_place(self, project: str) -> None:
        for url in ("s3://homes/a/b", "s3://homes/x", "s3://homes"):
            assert source_places.refusal(url, ["s3://homes/{project}"], project=project) is not None

    def test_a_project_with_a_space_has_its_folder(self) -> None:
        allowed = ["file:///srv/{project}"]
        url = "file:///srv/my%20team/a"
        assert source_places.refusal(url, allowed, project="my team") is None


class TestSetting:
    def given(self, folder: Path, sources: str, **changes: str) -> conftest.GivenSettings:
        return conftest.GivenSettings(data_dir=folder, sources=sources, **changes)  # type: ignore[arg-type]  # text, as in an environment

    def test_is_a_list_of_places(self, tmp_path: Path) -> None:
        given = self.given(tmp_path / "data", " file:///srv/photos  s3://bucket/{project} ")
        assert given.allowed_sources == ["file:///srv/photos", "s3://bucket/{project}"]

    @pytest.mark.parametrize("sources", ["/srv/photos", "s3://b", "s3://bucket/a,s3://x/?b"])
    def test_refuses_what_is_no_place(self, tmp_path: Path, sources: str) -> None:
        with pytest.raises(ValueError, match=r"write|has a"):
            self.given(tmp_path, sources)

    @pytest.mark.parametrize(
        "source", ["file:///data/p-{project}", "s3://bucket/x-{project}/y", "s3://{project}/x"]
    )
    def test_refuses_a_project_that_is_no_folder_of_its_own(
        self, tmp_path: Path, source: str
    ) -> None:
        with pytest.raises(ValueError, match="make it a folder of its own"):
            self.given(tmp_path, source)

    @pytest.mark.parametrize("below", ["", "storage", "storage/sha256", "data", ".."])
    def test_refuses_places_where_the_service_keeps_its_bytes(
        self, tmp_path: Path, below: str
    ) -> None:
        home = tmp_path / "home"
        storage_url = (home / "storage").as_uri()
        source = (home / below).resolve().as_uri()
        with pytest.raises(ValueError, match="keeps its own bytes, overlap"):
            self.given(home / "data", source, storage_url=storage_url)

    def test_refuses_them_behind_a_link(self, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "data")
        with pytest.raises(ValueError, match="overlap"):
            self.given(tmp_path / "data", (tmp_path / "link").as_uri())

    @pytest.mark.parametrize(
        "source", ["s3://bucket", "s3://bucket/retort/x", "s3://bucket/{project}"]
    )
    def test_refuses_the_prefix_of_the_store(self, tmp_path: Path, source: str) -> None:
        with pytest.raises(ValueError, match="overlap"):
            self.given(tmp_path, source, storage_url="s3://bucket/retort")
