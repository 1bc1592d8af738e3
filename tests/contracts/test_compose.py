"""docker-compose.yml and Dockerfile name only things that exist, and hold no secret.

No Docker runs here: the files are checked against the Compose specification's own schema and
against the code they start. CI builds and starts the images.
"""

import json
import re
import runpy
import sys
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import alembic.config
import jsonschema
import pytest
import yaml

from api import server
from models_registry import settings
from tests.contracts import source

COMPOSE = yaml.safe_load(source.text(Path("docker-compose.yml")))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)
# What a health check or a command may call in an image that we do not build.
PRESENT = {
    "postgres": {"pg_isready"},
    "redis": {"redis-cli", "redis-server"},
    "minio/minio": {"mc", "server"},
    "minio/mc": {"/bin/sh", "mc"},
}
REQUIRED = re.compile(r"\$\{(\w+):\?[^}]+\}")
VARIABLE = re.compile(r"(?<!\$)\$\{?(\w+)")


def stages() -> dict[str, list[str]]:
    """Return the Dockerfile's stages, each with its instructions (continued lines joined)."""
    joined = re.sub(r"\\\n\s*", " ", source.text(Path("Dockerfile")))
    found: dict[str, list[str]] = {}
    for line in joined.splitlines():
        if line.startswith("FROM "):
            stage = line.split(" AS ")[1]
            found[stage] = []
        elif found and line and not line.startswith("#"):
            found[stage].append(line)
    return found


def command_of(stage: str) -> list[str]:
    """Return the command that an image runs unless told otherwise."""
    lines = [line for line in stages()[stage] if line.startswith("CMD ")]
    command: list[str] = json.loads(lines[-1].removeprefix("CMD "))
    return command


def our_commands() -> dict[str, list[str]]:
    """Return what each service that we build runs."""
    return {
        name: SERVICES[name].get("command") or command_of(SERVICES[name]["build"]["target"])
        for name in OURS
    }


class TestCompose:
    def test_keeps_the_specification(self) -> None:
        vendored = resources.files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json"
        schema = json.loads(vendored.read_text(encoding="utf-8"))
        validator = jsonschema.validators.validator_for(schema)(schema)
        faults = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(COMPOSE)]
        assert faults == []

    def test_waits_only_for_services_that_can_become_ready(self) -> None:
        for name, service in SERVICES.items():
            for needed, how in service.get("depends_on", {}).items():
                assert needed in SERVICES, f"{name} needs {needed}"
                if how["condition"] == "service_healthy":
                    assert has_health(SERVICES[needed]), f"{name} waits for {needed}'s health"

    def test_every_service_that_stays_has_a_health_check(self) -> None:
        staying = {name for name, service in SERVICES.items() if service["restart"] != "on-failure"}
        assert {name for name in staying if not has_health(SERVICES[name])} == set()

    def test_health_checks_call_what_their_image_has(self) -> None:
        for name, service in SERVICES.items():
            if name in OURS or "healthcheck" not in service:
                continue
            check = service["healthcheck"]["test"]
            assert check[0] == "CMD"
            assert check[1] in PRESENT[service["image"].split(":")[0]], name

    def test_health_checks_of_ours_are_programs_that_compile(self) -> None:
        for name in OURS:
            check = SERVICES[name].get("healthcheck", {}).get("test")
            if check:
                assert check[:3] == ["CMD", "python", "-c"]
                compile(check[3], name, "exec")

    def test_images_are_pinned(self) -> None:
        for name, service in SERVICES.items():
            if name not in OURS:
                assert re.search(r":[\w.-]*\d[\w.-]*$", service["image"]), name

    def test_volumes_are_declared(self) -> None:
        used = {
            volume.split(":")[0]
            for service in SERVICES.values()
            for volume in service.get("volumes", [])
        }
        assert used == set(COMPOSE["volumes"])

    def test_gpu_is_reserved_for_the_worker_that_trains_on_it(self) -> None:
        devices = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
        assert [(device["driver"], device["capabilities"]) for device in devices] == [
            ("nvidia", ["gpu"])
        ]
        assert [name for name, service in SERVICES.items() if "deploy" in service] == ["worker"]

    def test_worker_has_time_to_write_a_checkpoint(self) -> None:
        grace = settings.Settings.model_fields["kill_grace_seconds"].default
        for name in ("worker", "worker-cpu", "maintenance"):
            minutes = re.fullmatch(r"(\d+)m", SERVICES[name]["stop_grace_period"])
            assert minutes
            assert int(minutes[1]) * 60 > 2 * grace, name

    def test_broker_never_forgets_a_message(self) -> None:
        command = SERVICES["broker"]["command"]
        given = dict(zip(command[1::2], command[2::2], strict=True))
        assert given["--appendonly"] == "yes"
        assert given["--maxmemory-policy"] == "noeviction"


def has_health(service: dict[str, Any]) -> bool:
    """Tell whether a service has a health check, its own or its image's."""
    if "healthcheck" in service:
        return "test" in service["healthcheck"]
    target = service.get("build", {}).get("target")
    return any(line.startswith("HEALTHCHECK ") for line in stages().get(target, []))


class TestSecrets:
    def test_have_no_default(self) -> None:
        """A variable whose name says secret must be given: a literal or a default is refused."""
        for name, service in SERVICES.items():
            for variable, value in service.get("environment", {}).items():
                if re.search(r"PASSWORD|SECRET|ACCESS|AUTH|TOKEN", variable):
                    assert REQUIRED.fullmatch(value), f"{name}: {variable}"
                if "://" in value and "@" in value:
                    assert REQUIRED.search(value.split("@")[0]), f"{name}: {variable}"

    def test_every_variable_is_explained_in_the_example(self) -> None:
        lines = [
            line
            for line in source.text(Path("docker-compose.yml")).splitlines()
            if not line.lstrip().startswith("#")
        ]
        used = set(VARIABLE.findall("\n".join(lines)))
        explained = re.findall(r"^#?\s?(\w+)=", source.text(Path(".env.example")), re.MULTILINE)
        assert used - set(explained) == set()

    def test_every_setting_exists(self) -> None:
        known = {f"RETORT_{name.upper()}" for name in settings.Settings.model_fields}
        named = set(re.findall(r"RETORT_\w+", source.text(Path("docker-compose.yml"))))
        named |= set(re.findall(r"RETORT_\w+", source.text(Path("Dockerfile"))))
        assert named - known == set()

    def test_settings_of_every_service_are_valid(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in OURS:
            with monkeypatch.context() as patch:
                for variable, value in SERVICES[name]["environment"].items():
                    filled = re.sub(r"\$\{\w+:-(\w*)\}", r"\1", REQUIRED.sub("0" * 48, value))
                    patch.setenv(variable, filled)
                read = settings.Settings()
                assert read.storage_url == "s3://retort", name
                assert read.database_url.startswith("postgresql+psycopg://"), name


class TestDockerfile:
    def test_builds_the_stages_that_are_asked_for(self) -> None:
        assert {SERVICES[name]["build"]["target"] for name in OURS} <= set(stages())

    def test_copies_what_exists_and_is_not_ignored(self) -> None:
        let_through = set(re.findall(r"^!(\S+)", source.text(Path(".dockerignore")), re.MULTILINE))
        copied = {
            word
            for lines in stages().values()
            for line in lines
            if line.startswith("COPY ") and "--from=" not in line
            for word in line.split()[1:-1]
        }
        assert copied
        assert {path for path in copied if not (source.ROOT / path).exists()} == set()
        folders = tuple(path for path in let_through if path.endswith("/"))
        assert {path for path in copied - let_through if not path.startswith(folders)} == set()

    def test_gives_the_api_of_the_engine_only_what_needs_no_torch(self) -> None:
        copied = {
            word
            for line in stages()["api"]
            if line.startswith("COPY workers")
            for word in line.split()[1:-1]
        }
        assert copied == {
            "workers/__init__.py",
            "workers/distill/__init__.py",
            "workers/distill/config/",
        }

    def test_runs_as_an_ordinary_user(self) -> None:
        for stage in ("api", "worker"):
            assert "USER retort" in stages()[stage]

    def test_api_image_has_neither_torch_nor_compiler(self) -> None:
        lines = "\n".join(
            [*stages()["foundation"], *stages()["api-dependencies"], *stages()["api"]]
        )
        assert "--extra worker" not in lines
        assert "apt-get" not in lines
        ours = {
            word for line in lines.splitlines() for word in line.split()[1:-1] if "workers" in word
        }
        # What the engine shares with the service, and the packages above it.
        assert ours == {
            "workers/__init__.py",
            "workers/distill/__init__.py",
            "workers/distill/config/",
        }


# What a program calls when it is started.
MAINS: dict[str, Callable[[], object]] = {
    "workers": lambda: runpy.run_module("workers", run_name="__main__"),
    "api.server": server.main,
    "alembic": alembic.config.main,
}


class TestCommands:
    @pytest.mark.parametrize("service", OURS)
    def test_parse(
        self, service: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Each program is asked for help behind its real arguments: a wrong option fails first."""
        program, *arguments = our_commands()[service]
        if program == "python":
            assert arguments[0] == "-m"
            program, *arguments = arguments[1:]
        monkeypatch.setattr(sys, "argv", [program, *arguments, "--help"])
        code: object = 0
        try:
            MAINS[program]()
        except SystemExit as ended:
            code = ended.code
        assert code == 0
        assert "usage" in capsys.readouterr().out.lower()

    def test_name_an_application_that_exists(self) -> None:
        from uvicorn.importer import import_from_string

        named = [word for word in server.OPTIONS if ":" in word]
        assert len(named) == 3, "the application, its protocol and its loop"
        assert all(callable(import_from_string(word)) for word in named)

    def test_read_queues_that_exist(self) -> None:
        from workers import celery_app

        asked = {
            queue
            for command in our_commands().values()
            if "--queues" in command
            for queue in command[command.index("--queues") + 1].split(",")
        }
        assert asked == {"any", "cpu", "cuda", "inspect", "webhooks", "maintenance"}
        assert asked <= {queue.name for queue in celery_app.app.conf.task_queues}

    def test_migrate_by_a_file_that_exists(self) -> None:
        command = our_commands()["migrate"]
        assert (source.ROOT / command[command.index("-c") + 1]).is_file()


class TestWorkflow:
    def test_keeps_the_schema(self) -> None:
        folder = resources.files("check_jsonschema") / "builtin_schemas/vendor"
        schema = json.loads((folder / "github-workflows.json").read_text(encoding="utf-8"))
        # YAML 1.1 reads the key `on` as a truth value.
        workflow = yaml.safe_load(source.text(Path(".github/workflows/ci.yml")))
        workflow["on"] = workflow.pop(True)
        validator = jsonschema.validators.validator_for(schema)(schema)
        assert [error.message for error in validator.iter_errors(workflow)] == []

    def test_invents_every_secret_that_compose_asks_for(self) -> None:
        asked = set(REQUIRED.findall(source.text(Path("docker-compose.yml"))))
        workflow = source.text(Path(".github/workflows/ci.yml"))
        assert {name for name in asked if name not in workflow} == set()
