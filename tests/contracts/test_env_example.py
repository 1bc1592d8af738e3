"""`.env.example` is what the settings say, and reading it back gives the defaults."""

from pathlib import Path

from models_registry import settings
from tests.contracts import source


class TestEnvExample:
    def test_equals_what_the_settings_generate(self) -> None:
        assert source.text(Path(".env.example")) == settings.env_example(), "run `make catalog`"

    def test_names_every_setting_once(self) -> None:
        lines = source.text(Path(".env.example")).splitlines()
        for name in settings.Settings.model_fields:
            variable = f"RETORT_{name.upper()}="
            assert sum(line.startswith(variable) for line in lines) == 1, variable

    def test_holds_no_secret(self) -> None:
        for line in source.text(Path(".env.example")).splitlines():
            name, _, value = line.partition("=")
            if any(word in name for word in ("SECRET", "PASSWORD", "ACCESS_KEY")):
                assert line.startswith("#") or value == "", line
