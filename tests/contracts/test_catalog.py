"""What is generated from the engine equals the engine."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.contracts import source

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
    @pytest.mark.timeout(300)
    def test_equals_what_the_code_generates(self, tmp_path: Path) -> None:
        """The export runs in a copy, so a difference is reported and not repaired."""
        for top in ("workers", "models_registry", "retort", "docs"):
            for path in source.files():
                if path.parts[0] == top:
                    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
                    (tmp_path / path).write_bytes((source.ROOT / path).read_bytes())
        subprocess.run(
            [sys.executable, "-m", "workers.export_catalog"],
            cwd=tmp_path,
            env=source.environment(),
            check=True,
            capture_output=True,
            timeout=240,
        )
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
