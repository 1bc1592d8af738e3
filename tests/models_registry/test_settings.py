"""Settings come from the environment, and the example gives back the defaults."""

import os

import pydantic
import pytest

from models_registry import settings
from models_registry.settings import Settings


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what the tests were started with from deciding what they find."""
    for name in list(os.environ):
        if name.startswith("RETORT_"):
            monkeypatch.delenv(name)


class TestEnvExample:
    def test_read_back_gives_the_defaults(self, monkeypatch: pytest.MonkeyPatch) -> None:
        defaults = Settings()
        for line in settings.env_example().splitlines():
            if line and not line.startswith("#"):
                name, _, value = line.partition("=")
                monkeypatch.setenv(name, value)
        assert Settings() == defaults

    def test_describes_every_setting(self) -> None:
        for name, field in Settings.model_fields.items():
            assert field.description, name
            assert f"# {field.description}\nRETORT_{name.upper()}=" in settings.env_example()


class TestSettings:
    def test_takes_values_from_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RETORT_LEASE_SECONDS", "62.5")
        monkeypatch.setenv("RETORT_LOG_JSON", "false")
        found = Settings()
        assert found.lease_seconds == 62.5
        assert found.log_json is False

    def test_takes_an_empty_variable_for_one_that_is_not_set(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("RETORT_CURSOR_SECRET", "")
        monkeypatch.setenv("RETORT_POLL_SECONDS", "")
        assert Settings().cursor_secret is None
        assert Settings().poll_seconds == 1

    def test_ignores_variables_that_it_does_not_know(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RETORT_OF_ANOTHER_VERSION", "1")
        assert Settings() == Settings()

    def test_asks_for_a_device_for_each_slot(self) -> None:
        assert Settings(worker_slots=4).worker_slots == 4
        with pytest.raises(pydantic.ValidationError, match="RETORT_WORKER_SLOTS is 4: at most"):
            Settings(worker_slots=4, worker_devices=2)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("lease_seconds", "0"),
            ("heartbeat_seconds", "-1"),
            ("worker_device", "tpu"),
            ("upload_part_bytes", "1"),
            ("environment", "Has Spaces"),
        ],
    )
    def test_refuses_values_that_cannot_work(
        self, monkeypatch: pytest.MonkeyPatch, name: str, value: str
    ) -> None:
        monkeypatch.setenv(f"RETORT_{name.upper()}", value)
        with pytest.raises(pydantic.ValidationError, match=name):
            Settings()

    def test_shows_no_secret(self) -> None:
        found = Settings(cursor_secret="hidden words", s3_secret_access_key="more of them")
        assert "hidden words" not in repr(found)
        assert "more of them" not in str(found.model_dump())

    def test_never_changes(self) -> None:
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(Settings(), "lease_seconds", 1)  # noqa: B010 - mypy knows it already

    def test_renews_a_lease_several_times_before_it_ends(self) -> None:
        assert Settings().heartbeat_seconds * 3 <= Settings().lease_seconds


def test_a_heartbeat_that_cannot_keep_a_lease_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="RETORT_HEARTBEAT_SECONDS is 50"):
        Settings(heartbeat_seconds=50)
