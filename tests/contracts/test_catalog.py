"""What is generated from the engine equals the engine."""

import json
from pathlib import Path

import pytest

from tests.contracts import source
from workers import export_catalog

CATALOG = Path("models_registry/catalog.json")
GENERATED = (
    *(Path("docs/methods.md"), Path("docs/formats.md")),
    *(Path("retort/formats.py"), Path("retort/metrics.py")),
)


def catalog() -> dict[str, list[dict[str, object]]]:
    """Return the committed catalog."""
    read: dict[str, list[dict[str, object]]] = json.loads(source.text(CATALOG))
    return read


class TestCatalog:
    @pytest.mark.slow
    def test_equals_what_the_code_generates(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The export writes somewhere else, so a difference is reported and not repaired."""
        monkeypatch.setattr(export_catalog, "ROOT", tmp_path)
        assert export_catalog.main() == 0
        for generated in (CATALOG, *GENERATED):
            written = (tmp_path / generated).read_text(encoding="utf-8")
            assert written == source.text(generated), f"{generated}: run `make catalog`"

    def test_names_every_method_once_and_by_its_file(self) -> None:
        named = [str(method["name"]) for method in catalog()["methods"]]
        files = [
            path.stem
            for path in source.python_files("workers")
            if path.match("workers/distill/methods/*/*.py")
            and path.name not in ("__init__.py", "base.py")
        ]
        # Several methods at once are no method of their own (methods/combination.py).
        assert sorted(named) == sorted([*files, "combine"])

    def test_forbids_unknown_hyperparameters(self) -> None:
        for method in catalog()["methods"]:
            schema = method["params_schema"]
            assert isinstance(schema, dict)
            assert schema["additionalProperties"] is False, method["name"]
