"""The arrows between the packages hold, on paper and in a running interpreter."""

import subprocess
import sys
import textwrap
from pathlib import Path

import grimp
import pytest

from tests.contracts import source

# A finder that comes first and refuses, so that a forbidden import fails where it stands.
BLOCKED = """
import importlib.abc
import sys
import time

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ImportError("forbidden here: " + name)
        return None

sys.meta_path.insert(0, Refuse())
import {modules}
loaded = sorted(set(sys.modules) & {blocked!r})
assert not loaded, loaded
print(time.process_time())
"""
LINT = "from importlinter import cli; raise SystemExit(cli.lint_imports(no_cache=True))"
ENGINE_LIBRARIES = {
    *("torch", "torchvision", "timm", "numpy"),
    *("safetensors", "sklearn", "scipy", "jaxtyping"),
}


def import_without(
    modules: str, blocked: set[str], *, cwd: Path = source.ROOT, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Import modules in a fresh interpreter in which some packages cannot be imported."""
    program = textwrap.dedent(BLOCKED).format(modules=modules, blocked=blocked)
    return source.python("-c", program, cwd=cwd, variables=variables)


class TestFreshInterpreter:
    @pytest.mark.slow
    def test_loads_every_process_of_the_service_without_the_engine(self) -> None:
        """A worker's pool is forked, and a fork of a process that has run torch may hang."""
        modules = (
            *("api.app", "retort.cli.app"),
            *("workers.celery_app", "workers.tasks", "workers.runner", "workers.maintenance"),
        )
        done = import_without(", ".join(modules), ENGINE_LIBRARIES)
        assert done.returncode == 0, done.stderr

    @pytest.mark.slow
    def test_loads_the_api_with_nothing_of_the_workers_but_config(self, tmp_path: Path) -> None:
        """What the API's image holds is enough, and loads in seconds."""
        for package in ("api", "models_registry", "retort", "migrations"):
            (tmp_path / package).symlink_to(source.ROOT / package)
        (tmp_path / "workers" / "distill").mkdir(parents=True)
        for part in ("__init__.py", "distill/__init__.py", "distill/config"):
            (tmp_path / "workers" / part).symlink_to(source.ROOT / "workers" / part)
        done = import_without("api.app", ENGINE_LIBRARIES, cwd=tmp_path, PYTHONPATH=str(tmp_path))
        assert done.returncode == 0, done.stderr
        # About 1.5 s of processor time; a core that is shared counts up to twice as much.
        assert float(done.stdout) < 6

    @pytest.mark.slow
    def test_loads_the_client_without_the_server(self) -> None:
        done = import_without("retort.cli.app", {"fastapi", "starlette", "uvicorn", "celery"})
        assert done.returncode == 0, done.stderr

    @pytest.mark.slow
    def test_loads_the_engine_without_the_service(self) -> None:
        service = {"api", "models_registry", "fastapi", "celery", "sqlalchemy", "httpx", "redis"}
        done = import_without("workers.distill.run.run", service)
        assert done.returncode == 0, done.stderr

    def test_notices_a_forbidden_import(self) -> None:
        done = import_without("json.decoder", {"json"})
        assert done.returncode == 1
        assert "forbidden here: json" in done.stderr


class TestContracts:
    @pytest.mark.slow
    def test_hold(self) -> None:
        done = source.python("-c", LINT)
        assert done.returncode == 0, done.stdout + done.stderr

    def test_cover_every_package(self) -> None:
        contracts = source.pyproject()["tool"]["importlinter"]
        assert set(contracts["root_packages"]) == set(source.PACKAGES)

    def test_engine_imports_nothing_of_ours_outside_itself(self) -> None:
        graph = grimp.build_graph(*source.PACKAGES, cache_dir=None)
        engine = {"workers.distill", *graph.find_descendants("workers.distill")}
        outside = {
            f"{module} -> {imported}"
            for module in engine
            for imported in graph.find_modules_directly_imported_by(module)
            if imported not in engine
        }
        assert outside == set()

    def test_the_rooms_of_the_engine_stay_few_arrows_apart(self) -> None:
        """A room is a file or folder of the engine, an arrow what one room imports of another."""
        graph = grimp.build_graph(*source.PACKAGES, cache_dir=None)
        arrows = {
            (room, other)
            for module in graph.find_descendants("workers.distill")
            for imported in graph.find_modules_directly_imported_by(module)
            if (room := module.split(".")[2]) != (other := imported.split(".")[2])
        }
        assert len(arrows) <= MOST_ARROWS, sorted(arrows)

    def test_everything_that_is_imported_is_declared(self) -> None:
        """A base install must be able to load the API: no import hides in an extra."""
        graph = grimp.build_graph(*source.PACKAGES, include_external_packages=True, cache_dir=None)
        config = {"workers.distill.config", *graph.find_descendants("workers.distill.config")}
        ours = {
            module
            for module in graph.modules
            if module.partition(".")[0] in ("api", "models_registry") or module in config
        }
        external = {
            imported.partition(".")[0]
            for module in ours
            for imported in graph.find_modules_directly_imported_by(module)
        }
        third_party = external - set(source.PACKAGES) - set(sys.stdlib_module_names)
        assert third_party - OPTIONAL.keys() <= declared_imports()
        for name, module in OPTIONAL.items():
            importers = graph.find_modules_that_directly_import(name) & ours
            assert importers == {module}


MOST_ARROWS = 90
OPTIONAL = {"opentelemetry": "models_registry.tracing"}
"""What only an extra brings, and the one module that imports it, where a setting asks for it."""


def declared_imports() -> set[str]:
    """Return the top-level modules that the base dependencies bring, directly named ones only."""
    module_of = {"pyyaml": "yaml", "prometheus-client": "prometheus_client"}
    # Starlette is FastAPI's own foundation, kombu is Celery's, and pydantic's errors are made in
    # pydantic_core: they are part of their interface.
    modules = {"starlette", "kombu", "pydantic_core"}
    for requirement in source.pyproject()["project"]["dependencies"]:
        name = requirement.split(";")[0].split(">=")[0].split("[")[0].strip()
        modules.add(module_of.get(name, name.replace("-", "_")))
    return modules
