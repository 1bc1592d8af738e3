import json
import stat
from pathlib import Path

import pytest

from retort import config, errors


def write(path: Path, url: str, api_key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"url": url, "api_key": api_key, "since": "a newer version"}))


@pytest.fixture
def local(home):
    """The file that `retort up` writes in the current folder."""
    return home / "here" / "retort-data" / "client.json"


@pytest.fixture
def user(home):
    """The file that `retort login` writes."""
    return home / "config" / "retort" / "client.json"


class TestPageWidth:
    @pytest.mark.parametrize(
        ("given", "width"), [("100", 100), ("0", None), ("", None), ("wide", None), ("-1", None)]
    )
    def test_is_that_of_the_environment_where_it_is_one(self, monkeypatch, given, width):
        monkeypatch.setenv("COLUMNS", given)
        assert config.Environment().page_width == width


class TestFind:
    def test_prefers_what_the_caller_says(self, monkeypatch, local):
        write(local, "http://local", "local-key")
        monkeypatch.setenv("RETORT_URL", "http://environment")
        monkeypatch.setenv("RETORT_API_KEY", "environment-key")
        found = config.find("http://said", "said-key")
        assert (found.url, found.api_key) == ("http://said", "said-key")

    def test_takes_the_environment_before_files(self, monkeypatch, local):
        write(local, "http://local", "local-key")
        monkeypatch.setenv("RETORT_URL", "http://environment")
        monkeypatch.setenv("RETORT_API_KEY", "environment-key")
        found = config.find()
        assert (found.url, found.api_key) == ("http://environment", "environment-key")

    def test_takes_the_server_started_here_before_the_users_own(self, local, user):
        write(local, "http://local", "local-key")
        write(user, "http://user", "user-key")
        assert config.find() == config.ServerConfig("http://local", "local-key", str(LOCAL))

    def test_takes_the_users_own_last(self, user):
        write(user, "http://user", "user-key")
        assert config.find() == config.ServerConfig("http://user", "user-key", str(user))

    def test_finds_a_server_of_this_machine_from_any_folder_while_it_runs(self, home):
        with config.running_here("http://127.0.0.1:1", "up-key") as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            assert config.find() == config.ServerConfig("http://127.0.0.1:1", "up-key", str(path))
            config.save("http://user", "user-key")
            assert config.find().api_key == "user-key"
        assert not path.exists()

    def test_knows_where_its_data_is_while_it_runs(self, tmp_path):
        assert config.data_dir_here() is None
        with config.running_here("http://127.0.0.1:1", "up-key", tmp_path / "data"):
            assert config.data_dir_here() == tmp_path / "data"
        with config.running_here("http://127.0.0.1:1", "up-key"):
            assert config.data_dir_here() is None

    def test_forgets_no_server_that_was_started_later(self):
        with config.running_here("http://127.0.0.1:1", "first"):
            later = config.running_here("http://127.0.0.1:2", "second")
            later.__enter__()
        assert config.find().api_key == "second"

    def test_looks_in_the_data_folder_of_the_environment(self, monkeypatch, tmp_path, user):
        write(user, "http://user", "user-key")
        write(tmp_path / "elsewhere" / "client.json", "http://elsewhere", "elsewhere-key")
        monkeypatch.setenv("RETORT_DATA_DIR", str(tmp_path / "elsewhere"))
        assert config.find().api_key == "elsewhere-key"

    def test_finds_the_key_of_the_address_that_was_said(self, local, user):
        write(local, "http://local", "local-key")
        write(user, "http://user/", "user-key")
        assert config.find("http://user").api_key == "user-key"

    def test_never_sends_a_saved_key_to_another_server(self, local, user):
        write(local, "http://local", "local-key")
        write(user, "http://user", "user-key")
        with pytest.raises(errors.NotConfigured, match="no API key for http://stranger"):
            config.find("http://stranger")

    def test_takes_a_saved_address_for_a_key_that_was_said(self, local):
        write(local, "http://local", "local-key")
        found = config.find(api_key="said-key")
        assert (found.url, found.api_key) == ("http://local", "said-key")

    def test_falls_back_to_the_address_of_a_local_start(self, home):
        assert config.find(api_key="said-key").url == "http://127.0.0.1:8765"

    def test_says_what_to_do_if_nothing_is_known(self, home):
        with pytest.raises(errors.NotConfigured, match=r"`retort up`.*`retort login`"):
            config.find()

    def test_ignores_variables_that_are_empty(self, monkeypatch, user):
        write(user, "http://user", "user-key")
        monkeypatch.setenv("RETORT_URL", "")
        monkeypatch.setenv("RETORT_API_KEY", "")
        assert config.find().url == "http://user"

    @pytest.mark.parametrize("content", ["", "[]", '{"url": "http://x"}'])
    def test_names_a_file_that_is_damaged(self, user, content):
        user.parent.mkdir(parents=True)
        user.write_text(content)
        with pytest.raises(errors.LocalFileProblem, match=r"client\.json"):
            config.find()


class TestSave:
    def test_writes_a_file_that_only_the_user_can_read(self, user):
        assert config.save("http://saved", "saved-key") == user
        assert stat.S_IMODE(user.stat().st_mode) == 0o600
        assert config.find() == config.ServerConfig("http://saved", "saved-key", str(user))

    def test_replaces_what_was_there(self, user):
        config.save("http://old", "old-key")
        config.save("http://new", "new-key")
        assert config.find().api_key == "new-key"
        assert [path.name for path in user.parent.iterdir()] == ["client.json"]

    def test_says_why_it_cannot_write(self, monkeypatch, tmp_path, home):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
        with pytest.raises(errors.LocalFileProblem, match=r"client\.json"):
            config.save("http://x", "y")


LOCAL = Path("retort-data") / "client.json"
