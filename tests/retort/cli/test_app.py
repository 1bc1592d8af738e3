import json
import os
import re
import signal
import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from models_registry.jobs import logs
from retort import config, errors, watching
from retort.cli import app, completion, shell
from tests import factories, services, waiting
from tests.retort import wire as wires
from tests.retort.wire import problem, told
from workers.distill.data.builtin import digit_scenes

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
STUDIES = sorted((ROOT / "examples" / "studies").glob("*.yaml"))
SEGMENTER = {
    "network": "retort/segmenter",
    "task": "segmentation",
    "classes": ["background", *(str(digit) for digit in range(10))],
    "input": digit_scenes.INPUT.model_dump(),
}
"""A teacher of the scenes with masks."""
DETECTOR = {
    **SEGMENTER,
    "network": "retort/fcos",
    "task": "detection",
    "classes": [str(digit) for digit in range(10)],
}
"""A teacher of the scenes with boxes."""


def run(*arguments: str, stdin: str = "") -> Result:
    """Run the command line in this process."""
    return CliRunner().invoke(app.app, arguments, input=stdin, prog_name="retort")


# A shell that runs tests in the background has them, and all their children, ignore Ctrl-C.
INTERRUPTIBLE = """
import runpy, signal
signal.signal(signal.SIGINT, signal.default_int_handler)
runpy.run_module("retort.cli.app", run_name="__main__", alter_sys=True)
"""


def started(*arguments: str) -> subprocess.Popen[str]:
    """Run the command line as a process of its own, in the current folder."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-c", INTERRUPTIBLE, *arguments],
        env=environment,
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def one_error(result: Result) -> str:
    """Return the only line on stderr; there must be nothing on stdout."""
    assert result.stdout == ""
    [line] = result.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.fixture
def known(monkeypatch, wire):
    """A scripted server that the command line finds in its environment."""
    monkeypatch.setenv("RETORT_URL", wire.url)
    monkeypatch.setenv("RETORT_API_KEY", "key")
    return wire


@pytest.fixture
def real(monkeypatch, service, api_key):
    """The real service, found in the environment."""
    monkeypatch.setenv("RETORT_URL", service)
    monkeypatch.setenv("RETORT_API_KEY", api_key)
    return service


@pytest.fixture
def spec_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(json.dumps(factories.spec()))
    return path


class TestHelp:
    def test_states_the_exit_codes(self):
        words = " ".join(run("--help").stdout.split())
        assert "1 the job failed or was cancelled" in words

    def test_is_shown_when_nothing_is_asked(self):
        result = run()
        assert result.exit_code == 0
        assert "submit" in result.stdout

    @pytest.mark.parametrize("flag", ["-h", "--help"])
    def test_exists_for_every_command(self, flag):
        listed = run("--help").stdout.partition("Commands")[2]
        names = re.findall(r"^│ ([a-z]+) ", listed, re.MULTILINE)
        assert {"up", "demo", "submit", "jobs", "models", "methods", "upload"} < set(names)
        steered = ("submit", "list", "show", "watch", "cancel", "leaderboard")
        studies = [f"study {verb}" for verb in steered]
        for name in [*names, "upload model", "upload dataset", *studies]:
            result = run(*name.split(), flag)
            assert result.exit_code == 0, name
            assert "Usage: retort" in result.stdout

    def test_needs_neither_engine_nor_server_nor_http(self):
        """What makes a start slow is what it imports: this is half of a second's budget."""
        program = (
            "import sys; from retort.cli import app; "
            "sys.argv[1:] = ['--help']\n"
            "try: app.main()\n"
            "except SystemExit: pass\n"
            "heavy = {'torch', 'httpx', 'pydantic', 'sqlalchemy', 'fastapi', 'celery', 'yaml'}\n"
            "sys.exit(repr(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)"
        )
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    def test_tells_the_version(self):
        assert run("--version").stdout.startswith("retort ")


class TestErrors:
    def test_of_usage_are_one_line_and_2(self):
        for arguments in (["nonsense"], ["jobs", "--nonsense"], ["job"], ["jobs", "--limit", "x"]):
            result = run(*arguments)
            assert result.exit_code == 2
            assert "--help`)" in one_error(result)

    def test_without_a_server_say_how_to_get_one(self):
        result = run("jobs")
        assert result.exit_code == 2
        assert "`retort up`" in one_error(result)

    def test_of_an_unreachable_server_are_4(self):
        url = f"http://127.0.0.1:{services.free_port()}"
        result = run("jobs", "--url", url, "--api-key", "k")
        assert result.exit_code == 4
        assert url in one_error(result)

    def test_of_a_foreign_server_are_4(self, known):
        known.on("GET", "/v1/jobs", wires.Reply(200, b"<html>hello</html>"))
        result = run("jobs")
        assert result.exit_code == 4
        assert "did not answer like a Retort server" in one_error(result)

    def test_of_a_refusal_are_3_and_name_every_field(self, known, spec_file):
        faults = [
            {"pointer": "/training/epochs", "code": "a", "detail": "at least 1"},
            {"pointer": "/method/beta", "code": "b", "detail": "at least 0"},
        ]
        known.on("POST", "/v1/jobs", problem(422, "invalid_spec", "2 faults", errors=faults))
        result = run("submit", str(spec_file))
        assert result.exit_code == 3
        assert one_error(result).endswith("/training/epochs: at least 1; /method/beta: at least 0")

    def test_are_json_where_json_is_asked_for(self, known, spec_file):
        faults = [{"pointer": "/method", "code": "unknown", "detail": "no such method"}]
        known.on("POST", "/v1/jobs", problem(422, "invalid_spec", "one field", errors=faults))
        result = run("submit", str(spec_file), "--json")
        told = json.loads(result.stderr)
        assert (result.exit_code, told["exit_code"]) == (3, 3)
        assert (told["status"], told["code"]) == (422, "invalid_spec")
        assert told["errors"] == faults

    def test_of_a_local_file_are_5(self, known):
        result = run("submit", "none.yaml")
        assert result.exit_code == 5
        assert one_error(result) == "error: none.yaml: No such file or directory"

    def test_of_a_bad_override_are_2(self, known, spec_file):
        result = run("submit", str(spec_file), "--set", "epochs")
        assert result.exit_code == 2
        assert "KEY.PATH=VALUE" in one_error(result)

    def test_that_nobody_foresaw_are_70_and_still_one_line(self, known, monkeypatch):
        monkeypatch.setattr(shell, "emit", lambda _: 1 / 0)
        known.on("GET", "/v1/jobs", told({"data": []}))
        result = run("jobs", "--json")
        assert result.exit_code == 70
        assert "ZeroDivisionError" in json.loads(result.stderr)["detail"]
        monkeypatch.setattr(shell.Shell, "out", property(lambda _: 1 / 0))
        assert "ZeroDivisionError" in one_error(run("jobs"))
        with pytest.raises(ZeroDivisionError):
            CliRunner().invoke(app.app, ["--debug", "jobs", "--json"], catch_exceptions=False)

    def test_come_before_any_request_if_they_can(self, known, tmp_path):
        file = tmp_path / "x.pt"
        file.write_bytes(b"x")
        for extra, words in (
            ((), "--height and --mean and --std missing"),
            (("--height", "8"), "--mean and --std missing"),
            (("--height", "8", "--mean", "0.5", "--std", "1,1"), "one number for each"),
            (("--height", "8", "--mean", "0.5", "--std", "a"), "expected numbers"),
            (("--height", "8", "--mean", "0.5", "--std", "1", "--channels", "3"), "3 channels"),
            (("--height", "8", "--mean", "0.5", "--std", "1", "--arguments", "["), "not JSON"),
            (("--height", "8", "--mean", "0.5", "--std", "1", "--arguments", "[]"), "an object"),
        ):
            result = run(
                *("upload", "model", "a", str(file), "--network", "n", "--classes", "2"), *extra
            )
            assert result.exit_code == 2
            assert words in one_error(result)
        result = run("upload", "teacher", "a", str(file), "--classes", "2", "--height", "8")
        assert "--mean (or --pixels) and --std missing" in one_error(result)
        assert known.requests == []


class TestUp:
    def test_says_in_one_line_what_is_in_the_way(self, tmp_path):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = str(taken.getsockname()[1])
            result = run("up", "--data-dir", str(tmp_path / "up"), "--port", port)
        assert result.exit_code == 5
        said = one_error(result)
        assert said.startswith(f"error: port {port} on 127.0.0.1 cannot be used")
        assert "--port" in said


class TestOptions:
    @pytest.mark.parametrize("place", ["before", "after"])
    def test_may_stand_before_and_after_the_command(self, wire, place):
        wire.on("GET", "/v1/jobs", told({"data": []}))
        options = ("--url", wire.url, "--api-key", "said-key", "--json")
        result = run(*options, "jobs") if place == "before" else run("jobs", *options)
        assert json.loads(result.stdout) == []
        assert wire.requests[0].headers["authorization"] == "Bearer said-key"

    def test_for_labels_must_be_pairs(self, known):
        assert run("jobs", "--label", "team").exit_code == 2


class TestLogin:
    def test_checks_the_key_and_keeps_it(self, service, api_key):
        result = run("login", "--url", service, "--key", api_key)
        assert result.exit_code == 0
        assert api_key not in result.output
        assert config.find().api_key == api_key
        assert run("jobs", "--json").stdout == "[]\n"

    def test_takes_what_stands_before_the_command(self, service, api_key):
        assert run("--url", service, "--api-key", api_key, "login").exit_code == 0
        assert config.find().api_key == api_key

    def test_without_an_address_says_how_to_give_one(self):
        result = run("login", "--api-key", "x")
        assert result.exit_code == 2
        assert "--url" in one_error(result)

    def test_asks_for_the_key(self, service, api_key):
        assert run("login", "--url", service, stdin=f"{api_key}\n").exit_code == 0
        assert config.find().url == service

    def test_without_a_key_in_the_pipe_says_so(self, service):
        result = run("login", "--url", service, stdin="\n")
        assert result.exit_code == 2
        assert "--api-key" in one_error(result)

    def test_keeps_no_key_that_is_refused(self, service):
        result = run("login", "--url", service, "--key", "ak_test_no_no")
        assert result.exit_code == 3
        with pytest.raises(errors.NotConfigured):
            config.find()


class TestSubmit:
    def test_prints_the_id_and_nothing_else_on_stdout(self, real, staff, spec_file):
        staff.teacher()
        result = run("submit", str(spec_file), "--set", "training.epochs=5")
        assert result.exit_code == 0
        job_id = result.stdout.strip()
        shown = json.loads(run("job", job_id, "--json").stdout)
        assert shown["spec"]["training"]["epochs"] == 5
        assert f"retort watch {job_id}" in result.stderr

    def test_reads_standard_input(self, real, staff):
        staff.teacher()
        result = run("submit", "-", "--json", stdin=json.dumps(factories.spec()))
        assert json.loads(result.stdout)["state"] == "queued"

    def test_can_only_validate(self, real, staff, spec_file):
        staff.teacher()
        assert run("submit", str(spec_file), "--validate").stdout == "the spec is valid\n"
        told = json.loads(run("submit", str(spec_file), "--validate", "--json").stdout)
        assert told["max_attempts"] == 3
        assert json.loads(run("jobs", "--json").stdout) == []
        result = run("submit", str(spec_file), "--validate", "--set", "method.name=magic")
        assert result.exit_code == 3

    def test_takes_every_example(self, real, retort, staff, tmp_path):
        staff.teacher()
        staff.teacher(name="digits-student", network="retort/resnet8", arguments={})
        (tmp_path / "letters.zip").write_bytes(b"PK")
        retort.datasets.register(
            "letters", retort.uploads.send(tmp_path / "letters.zip", purpose="dataset")
        )
        staff.accept_dataset(
            classes=["a", "b", "c"],
            splits={"train": 80, "validation": 10, "test": 20},
            input=factories.DIGITS_INPUT,
        )
        retort.datasets.register(
            "few-digits", retort.uploads.send(tmp_path / "letters.zip", purpose="dataset")
        )
        staff.accept_dataset(
            classes=[str(digit) for digit in range(10)],
            splits={"train": 80, "validation": 10, "test": 20},
            labelled={"train": 9, "validation": 10, "test": 20},
            input=factories.DIGITS_INPUT,
        )
        staff.teacher(name="segmenter-teacher", **SEGMENTER)
        staff.teacher(name="detector-teacher", **DETECTOR)
        staff.teacher(
            name="digits-graph",
            network="retort/onnx",
            arguments={"output": "logits"},
        )
        staff.teacher(
            name="dino", network="retort/resnet20", arguments={}, task="embedding", classes=[]
        )
        predicted = retort.datasets.version("digits", 1)
        staff.teacher(
            name="digits-said",
            network="retort/predictions",
            arguments={
                "dataset": predicted.reference,
                "digest": predicted.digest,
                "rows": predicted.splits,
            },
        )
        job = retort.jobs.submit(factories.spec(teacher="digits-teacher@1"))
        wait = ["--set", f"teacher.job={job.id}"]
        refused = {}
        for example in EXAMPLES:
            waits = "job: job_" in example.read_text()  # a job that waits for another
            result = run("submit", str(example), "--validate", *(wait if waits else []))
            if (result.exit_code, result.stderr) != (0, ""):
                refused[example.stem] = result.stderr
        assert EXAMPLES
        assert not refused


class TestJobs:
    def test_are_listed_shown_and_steered(self, real, retort, staff):
        teacher = staff.teacher()
        job = retort.jobs.submit(factories.spec(teacher=teacher, labels={"team": "vision"}))
        retort.jobs.submit(factories.spec(teacher=teacher))
        head, *rows = run("jobs", "--label", "team=vision").stdout.splitlines()
        assert head.split()[:3] == ["ID", "NAME", "STATE"]
        assert [row.split()[0] for row in rows] == [job.id]
        assert len(json.loads(run("jobs", "--limit", "1", "--json").stdout)) == 1
        assert "team=vision" in run("job", job.id).stdout
        assert run("pause", job.id).stdout == f"{job.id} is paused\n"
        assert run("resume", job.id).stdout == f"{job.id} is queued\n"
        assert json.loads(run("cancel", job.id, "--json").stdout)["state"] == "cancelled"
        assert run("pause", job.id).exit_code == 3
        again = run("retry", job.id).stdout.strip()
        assert retort.jobs.get(again).retry_of == job.id
        assert run("jobs", "--state", "cancelled").stdout.count("job_") == 1

    def test_show_what_happened_in_each_attempt(self, real, retort, staff):
        job = retort.jobs.submit(factories.spec(teacher=staff.teacher()))
        staff.finish(staff.start(job.id), b"student")
        shown = run("attempts", job.id).stdout.splitlines()
        assert shown[0].split()[:2] == ["ATTEMPT", "OUTCOME"]
        assert shown[1].split()[:2] == ["1", "succeeded"]
        assert "attempt 1, ended" in run("logs", job.id).stdout
        assert run("logs", job.id, "--follow").stderr == f"{job.id} succeeded\n"
        assert "job.succeeded" in run("events", job.id).stdout
        assert run("metrics", job.id).exit_code == 0
        assert json.loads(run("checkpoints", job.id, "--json").stdout) == []
        assert run("delete", job.id, "--yes").stdout == f"{job.id} is deleted\n"
        assert run("job", job.id).exit_code == 3

    def test_are_deleted_only_when_confirmed(self, real, retort, staff):
        job = retort.jobs.submit(factories.spec(teacher=staff.teacher()))
        result = CliRunner().invoke(app.app, ["delete", job.id], input="n\n", prog_name="retort")
        assert result.exit_code == 130
        assert retort.jobs.get(job.id).id == job.id

    def test_show_their_scores(self, real, retort, staff):
        job = retort.jobs.submit(factories.spec(teacher=staff.teacher()))
        staff.finish(staff.start(job.id), b"student")
        shown = run("job", job.id).stdout
        assert "digits-student@1" in shown
        assert "78,042" in shown


class TestLogs:
    def test_are_followed_to_the_end(self, real, retort, staff):
        job = retort.jobs.submit(factories.spec(teacher=staff.teacher()))
        lease = staff.start(job.id)
        with staff.sessions.begin() as session:
            logs.keep(session, lease, [logs.Slice(0, 7, "step 1\n")])
        assert run("logs", job.id).stdout.splitlines() == ["attempt 1, still running", "step 1"]
        process = started("logs", job.id, "--follow", "--json")
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["lines"] == ["step 1"]
        with staff.sessions.begin() as session:
            logs.keep(session, lease, [logs.Slice(7, 14, "step 2\n")])
        assert json.loads(process.stdout.readline())["lines"] == ["step 2"]
        staff.fail(lease, "diverged", "the loss is NaN")
        _, said = process.communicate(timeout=waiting.PATIENCE_SECONDS)
        assert (process.returncode, said) == (0, f"{job.id} failed\n")


class TestWatch:
    @pytest.fixture(autouse=True)
    def swift(self, monkeypatch):
        monkeypatch.setattr(watching, "POLL_SECONDS", 0.05)

    @pytest.fixture
    def job(self, real, retort, staff):
        return retort.jobs.submit(factories.spec(teacher=staff.teacher()))

    def test_ends_with_the_scores_of_a_success(self, job, staff):
        staff.finish(staff.start(job.id), b"student")
        result = run("watch", job.id)
        assert result.exit_code == 0
        assert [line.split()[0] for line in result.stdout.splitlines()] == [
            "NETWORK",
            "teacher",
            "student",
        ]
        assert "succeeded as digits-student@1" in result.stderr
        assert "The student matches the baseline." in result.stderr
        assert "other epochs are kept: 5 (96.00%); retort download" in result.stderr
        assert "on images of 224 x 224 its accuracy is 97.50%" in result.stderr

    def test_explains_a_failure_and_ends_with_1(self, job, staff):
        lease = staff.start(job.id)
        staff.fail(lease, "diverged", "the loss is NaN", "step 119", "step \x1b[31m120")
        result = run("watch", job.id)
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-3:] == [
            f"error: {job.id} failed: diverged: the loss is NaN (attempt 1)",
            "| step 119",
            "| step [31m120",
        ]

    def test_ends_with_1_for_a_cancelled_job(self, job, retort):
        retort.jobs.cancel(job.id)
        result = run("watch", job.id, "--json")
        assert result.exit_code == 1
        assert json.loads(result.stdout)["state"] == "cancelled"

    def test_of_a_job_that_does_not_exist_is_3(self, real):
        assert run("watch", "job_nothing").exit_code == 3

    def test_follows_submission(self, known, spec_file):
        known.on("POST", "/v1/jobs", told({"id": "job_1", "state": "queued"}, 202))
        states = ["queued", "running", "succeeded"]
        known.on("GET", "/v1/jobs/job_1", *[told({"id": "job_1", "state": s}) for s in states])
        result = run("submit", str(spec_file), "--watch")
        assert result.exit_code == 0
        lines = [line.split()[0] for line in result.stderr.splitlines()]
        assert lines == ["submitted", "queued", "running", "succeeded", "succeeded;"]

    def test_leaves_the_job_running_when_it_is_interrupted(self, known):
        known.on("GET", "/v1/jobs/job_1", told({"id": "job_1", "state": "running"}))
        process = started("watch", "job_1")
        assert process.stderr is not None
        assert process.stderr.readline().startswith("running")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=waiting.PATIENCE_SECONDS)
        assert (process.returncode, out) == (130, "")
        assert err == "stopped watching; job_1 continues: retort watch job_1\n"
        assert [r.method for r in known.requests if r.method != "GET"] == []


class TestStudy:
    @pytest.fixture(autouse=True)
    def swift(self, monkeypatch):
        monkeypatch.setattr(watching, "POLL_SECONDS", 0.05)

    @pytest.fixture
    def study_file(self, tmp_path):
        path = tmp_path / "study.yaml"
        path.write_text(json.dumps(factories.study_spec()))
        return path

    @pytest.fixture
    def study(self, real, retort, staff):
        return retort.studies.submit(factories.study_spec(teacher=staff.teacher()))

    def test_is_submitted_and_followed_by_its_id(self, real, staff, study_file):
        staff.teacher()
        result = run("study", "submit", str(study_file), "--set", "seeds=[7]")
        assert result.exit_code == 0
        study_id = result.stdout.strip()
        assert result.stderr == f"3 jobs; follow them with: retort study watch {study_id}\n"
        shown = json.loads(run("study", "show", study_id, "--json").stdout)
        assert shown["spec"]["seeds"] == [7]
        assert len(json.loads(run("jobs", "--study", study_id, "--json").stdout)) == 3

    @pytest.mark.parametrize("example", STUDIES, ids=lambda path: path.stem)
    def test_takes_every_example(self, real, staff, example):
        staff.teacher()
        result = run("study", "submit", str(example), "--validate")
        assert result.exit_code == 0
        jobs, variant = {
            "digits-methods": (30, "kd temperature=8.0"),
            "digits-dkd-samples": (20, "dkd samples=most_confident"),
            "digits-search": ("at most 21", "training.optimizer.learning_rate"),
        }[example.stem]
        assert f"the study is valid and has {jobs} jobs" in result.stderr
        assert variant in result.stdout

    def test_with_a_search_tells_how_far_it_is(self, real, staff):
        staff.teacher()
        example = str(ROOT / "examples" / "studies" / "digits-search.yaml")
        result = run("study", "submit", example)
        study_id = result.stdout.strip()
        assert result.stderr.startswith("a search of 12 trials; follow them with: ")
        shown = run("study", "show", study_id).stdout
        assert "0 of 12 trials" in shown
        assert "trial  state" in run("study", "trials", study_id).stdout.lower()
        below = run("study", "leaderboard", study_id).stdout
        assert "Search: 0 of 12 trials. Its trials are no rows here" in below
        wrong = run("study", "submit", example, "--set", "search.parallel=13")
        assert wrong.exit_code == 3
        assert "parallel is 13, and there are only 12 trials" in one_error(wrong)

    def test_without_a_search_has_no_trials(self, study):
        assert "has no search" in one_error(run("study", "trials", study.id))

    def test_that_is_wrong_is_refused_with_every_field(self, real, staff, study_file):
        staff.teacher()
        result = run("study", "submit", str(study_file), "--set", "methods.0.temperature=-1")
        assert result.exit_code == 3
        assert "/methods/0/temperature" in one_error(result)

    def test_is_listed_shown_and_cancelled(self, study):
        head, row = run("study", "list", "--active").stdout.splitlines()
        assert head.split()[:3] == ["ID", "NAME", "STATE"]
        assert row.split()[0] == study.id
        assert "6: 6 queued" in run("study", "show", study.id).stdout
        told = run("study", "cancel", study.id).stdout
        assert told == f"{study.id} is cancelled: 6 cancelled\n"
        assert json.loads(run("study", "list", "--active", "--json").stdout) == []

    def test_is_watched_to_its_end_and_compared(self, study, retort, staff):
        for place, job in enumerate(retort.jobs.list(study=study.id)):
            staff.finish(staff.start(job.id), f"{place}".encode(), accuracy=0.9 + 0.01 * place)
        result = run("study", "watch", study.id)
        assert result.exit_code == 0
        assert "succeeded 100 % 6 succeeded" in result.stderr
        assert result.stderr.splitlines()[-1] == "succeeded: all 6 jobs"
        head, *rows = result.stdout.splitlines()
        assert head.split()[:3] == ["RANK", "VARIANT", "SEEDS"]
        assert {row.split()[1] for row in rows[:3]} == {"kd", "ce"}
        assert "The teacher digits-teacher@1 has 99.00%." in rows
        assert "Fewer than three seeds give no verdict." in rows
        told = json.loads(run("study", "leaderboard", study.id, "--json").stdout)
        assert [row["rank"] for row in told["rows"]] == [1, 2, 3]
        text = run("study", "leaderboard", study.id, "--csv").stdout
        assert text.splitlines()[0].startswith("rank,variant,name,")

    def test_gives_its_best_student_and_report(self, study, retort, staff):
        assert "no scored student" in one_error(run("download", study.id))
        jobs = list(retort.jobs.list(study=study.id))
        for place, job in enumerate(jobs):
            staff.finish(staff.start(job.id), f"{place}".encode(), accuracy=0.9 + 0.01 * place)
        result = run("download", study.id, "-o", "best.safetensors")
        assert result.exit_code == 0
        # Of the variant with the best mean, the best seed: not always the best job of all.
        board = retort.studies.leaderboard(study.id)
        best = max(board.rows[0].runs, key=lambda one: one.accuracy)
        place = [job.id for job in jobs].index(best.job)
        assert Path("best.safetensors").read_bytes() == f"{place}".encode()
        assert f"{best.student} ({best.job})" in result.stderr
        assert run("report", study.id, "-o", "pages").exit_code == 0
        narrow = run("study", "leaderboard", study.id).stdout
        assert best.job in narrow

    def test_of_which_a_job_failed_ends_with_1(self, study, retort, staff):
        first, *others = retort.jobs.list(study=study.id)
        staff.fail(staff.start(first.id), "diverged", "the loss is NaN")
        for job in others:
            staff.finish(staff.start(job.id), job.id.encode())
        result = run("study", "watch", study.id)
        assert result.exit_code == 1
        assert result.stderr.splitlines()[-1] == (
            f"error: {study.id} incomplete: 1 failed, 5 succeeded; retort jobs --study {study.id}"
        )

    def test_goes_on_when_watching_is_interrupted(self, known):
        body = {"id": "stu_1", "state": "running", "jobs": {"running": 1}, "job_count": 1}
        known.on("GET", "/v1/studies/stu_1", told(body))
        process = started("study", "watch", "stu_1")
        assert process.stderr is not None
        assert process.stderr.readline().startswith("running")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=waiting.PATIENCE_SECONDS)
        assert (process.returncode, out) == (130, "")
        assert err == "stopped watching; stu_1 continues: retort study watch stu_1\n"


class TestUpload:
    MODEL = ("--network", "retort/resnet8x4", "--classes", "10", "--height", "8")
    IMAGES = ("--mean", "0.3", "--std", "0.3")

    @pytest.fixture
    def weights(self, tmp_path):
        path = tmp_path / "teacher.pt"
        path.write_bytes(b"weights" * 1000)
        return path

    def test_registers_a_model(self, real, staff, weights):
        result = run("upload", "model", "digits-teacher", str(weights), *self.MODEL, *self.IMAGES)
        assert result.stdout == "digits-teacher@1\n"
        staff.accept_model(b"weights" * 1000)
        shown = json.loads(run("model", "digits-teacher@1", "--json").stdout)
        assert shown["state"] == "ready"
        assert shown["input"] == {
            "channels": 1,
            "height": 8,
            "width": 8,
            "mean": [0.3],
            "std": [0.3],
        }

    def test_waits_and_explains_a_rejection(self, known, weights):
        known.on("POST", "/v1/uploads", told({"id": "upl_1", "state": "completed"}, 201))
        known.on("POST", "/v1/uploads/upl_1/complete", told({"id": "upl_1", "state": "completed"}))
        version: dict[str, Any] = {"name": "a", "version": 1, "reference": "a@1"}
        known.on("POST", "/v1/models/a/versions", told({**version, "state": "pending"}, 202))
        rejection = {
            "code": "keys_mismatch",
            "message": "1 key is missing",
            "missing_keys": ["fc.bias"],
        }
        rejected = {**version, "state": "rejected", "rejection": rejection}
        known.on("GET", "/v1/models/a/versions/1", told(rejected))
        result = run("upload", "model", "a", str(weights), *self.MODEL, *self.IMAGES, "--wait")
        assert result.exit_code == 3
        assert result.stderr.splitlines() == [
            "a@1 is being inspected",
            "error: a@1 was rejected: 1 key is missing (keys_mismatch)",
        ]

    def test_names_classes(self, known, weights):
        known.on("POST", "/v1/uploads", told({"id": "upl_1", "state": "completed"}, 201))
        known.on("POST", "/v1/uploads/upl_1/complete", told({"id": "upl_1", "state": "completed"}))
        version = {"name": "a", "version": 1, "reference": "a@1", "state": "pending"}
        known.on("POST", "/v1/models/a/versions", told(version, 202))
        arguments = ("--network", "n", "--classes", "cat, dog", "--height", "8", *self.IMAGES)
        assert run("upload", "model", "a", str(weights), *arguments).exit_code == 0
        [request] = known.sent("POST", "/v1/models/a/versions")
        assert request.json()["classes"] == ["cat", "dog"]

    def test_registers_a_graph_that_normalises_by_itself(self, known, weights):
        known.on("POST", "/v1/uploads", told({"id": "upl_1", "state": "completed"}, 201))
        known.on("POST", "/v1/uploads/upl_1/complete", told({"id": "upl_1", "state": "completed"}))
        version = {"name": "a", "version": 1, "reference": "a@1", "state": "pending"}
        known.on("POST", "/v1/models/a/versions", told(version, 202))
        size = ("--classes", "2", "--height", "8", "--channels", "3", "--pixels", "255")
        ports = ("--output", "scores", "--arguments", '{"layout": "nhwc"}')
        assert run("upload", "teacher", "a", str(weights), *size, *ports).exit_code == 0
        [request] = known.sent("POST", "/v1/models/a/versions")
        body = request.json()
        assert body["network"] == "retort/onnx"
        assert body["arguments"] == {"output": "scores", "layout": "nhwc"}
        assert body["input"]["mean"] == [0, 0, 0]
        assert body["input"]["std"] == [1 / 255] * 3

    @pytest.mark.parametrize("kind", ["model", "teacher"])
    def test_registers_a_backbone_without_classes(self, known, weights, kind):
        known.on("POST", "/v1/uploads", told({"id": "upl_1", "state": "completed"}, 201))
        known.on("POST", "/v1/uploads/upl_1/complete", told({"id": "upl_1", "state": "completed"}))
        version = {"name": "a", "version": 1, "reference": "a@1", "state": "pending"}
        known.on("POST", "/v1/models/a/versions", told(version, 202))
        given = ["--task", "embedding", "--height", "8", *self.IMAGES]
        given += ["--network", "timm/vit_tiny_patch16_224"] if kind == "model" else []
        result = run("upload", kind, "a", str(weights), *given)
        assert result.exit_code == 0, result.stderr
        [request] = known.sent("POST", "/v1/models/a/versions")
        body = request.json()
        assert (body["task"], body["classes"]) == ("embedding", 0)
        result = run("upload", kind, "a", str(weights), *given, "--classes", "10")
        assert result.exit_code == 2
        assert "--classes 10: a model of task embedding has no classifier" in result.stderr

    def test_registers_predictions_of_a_dataset(self, known, weights):
        known.on("POST", "/v1/uploads", told({"id": "upl_1", "state": "completed"}, 201))
        known.on("POST", "/v1/uploads/upl_1/complete", told({"id": "upl_1", "state": "completed"}))
        images = {"channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.3]}
        dataset = {
            "name": "d",
            "version": 2,
            "reference": "d@2",
            "state": "ready",
            "classes": ["x", "y"],
            "input": {**images, "max_value": 4095},
        }
        known.on("GET", "/v1/datasets/d/versions/2", told(dataset))
        version = {"name": "a", "version": 1, "reference": "a@1", "state": "pending"}
        known.on("POST", "/v1/models/a/versions", told(version, 202))
        result = run("upload", "predictions", "a", str(weights), "--dataset", "d@2")
        assert result.exit_code == 0, result.stderr
        [request] = known.sent("POST", "/v1/models/a/versions")
        body = request.json()
        assert body["network"] == "retort/predictions"
        assert body["arguments"] == {"dataset": "d@2", "views": 1}
        assert (body["classes"], body["input"]) == (["x", "y"], images)

    def test_says_what_a_dense_network_is_for(self, known, weights):
        known.on("POST", "/v1/uploads", told({"id": "upl_1", "state": "completed"}, 201))
        known.on("POST", "/v1/uploads/upl_1/complete", told({"id": "upl_1", "state": "completed"}))
        version = {"name": "a", "version": 1, "reference": "a@1", "state": "pending"}
        known.on("POST", "/v1/models/a/versions", told(version, 202))
        given = (*self.MODEL, *self.IMAGES, "--task", "segmentation")
        assert run("upload", "model", "a", str(weights), *given).exit_code == 0
        [request] = known.sent("POST", "/v1/models/a/versions")
        assert request.json()["task"] == "segmentation"

    def test_says_how_to_go_on_when_it_is_cut_off(self, known, weights, monkeypatch):
        part = {"number": 1, "url": "/v1/uploads/upl_1/parts/1", "received": False}
        upload = {"id": "upl_1", "state": "open", "part_size_bytes": 10_000, "parts": [part]}
        known.on("POST", "/v1/uploads", told(upload, 201))
        known.on("PUT", "/v1/uploads/upl_1/parts/1", wires.Reply(cut_after=-1))
        monkeypatch.setattr("retort.transport.backoff_seconds", lambda *_: 0.0)
        result = run("upload", "model", "a", str(weights), *self.MODEL, *self.IMAGES)
        assert result.exit_code == 4
        assert result.stderr.startswith("resume with the same command and --resume upl_1\nerror: ")

    def test_registers_a_dataset(self, real, staff, tmp_path):
        archive = tmp_path / "shapes.zip"
        archive.write_bytes(b"PK")
        bounds = ("--max-value", "4095", "--max-bad-share", "0.1")
        result = run("upload", "dataset", "shapes", str(archive), *bounds)
        assert result.stdout == "shapes@1\n"
        facts = {"format": "imagefolder", "notes": ["the folder 'demo' was left out"]}
        splits = {"train": 8, "test": 2}
        staff.accept_dataset(classes=["round", "square"], splits=splits, **facts)
        rows = [line.split() for line in run("datasets").stdout.splitlines()]
        sent = f"{archive.stat().st_size}"
        assert ["shapes@1", "ready", "2", "8", "2", sent, "B"] in rows
        assert "shapes@1" in run("datasets", "shapes").stdout
        for reference in ("shapes@1", "shapes@latest"):
            shown = run("datasets", reference).stdout
            assert "the folder 'demo' was left out" in shown
            assert "imagefolder" in shown
        assert run("datasets", "shapes@2").exit_code == 3

    def test_registers_masks(self, real, staff, tmp_path):
        archive = tmp_path / "stripes.npz"
        archive.write_bytes(b"PK")
        given = ("--format", "npz", "--task", "segmentation")
        result = run("upload", "dataset", "stripes", str(archive), *given, "--json")
        assert json.loads(result.stdout)["task"] == "segmentation"


class TestDatasetFromSource:
    URL = "s3://photos/pets"
    VERSIONS = "/v1/datasets/pets/versions"

    def version(self, **changes):
        return told({"name": "pets", "version": 1, "reference": "pets@1", **changes})

    def test_is_registered_without_an_upload(self, known):
        pending = {"url": self.URL, "kind": None, "files": None, "size_bytes": None}
        known.on("POST", self.VERSIONS, self.version(state="pending", source=pending))
        result = run("upload", "dataset", "pets", "--source", self.URL, "--height", "96")
        assert result.stdout == "pets@1\n"
        (sent,) = known.requests
        assert (sent.method, sent.path) == ("POST", self.VERSIONS)
        assert (sent.json()["source"], sent.json()["input"]) == (
            self.URL,
            {"height": 96, "width": 96},
        )
        assert "upload" not in sent.json()

    def test_is_shown_with_what_was_pinned(self, known):
        source = {"url": self.URL, "kind": "folder", "files": 1234, "size_bytes": 2**20}
        source["digest"] = "sha256:12"
        known.on("GET", f"{self.VERSIONS}/1", self.version(state="ready", source=source))
        shown = run("datasets", "pets@1").stdout
        assert f"{self.URL} 1,234 files, 1.0 MiB, not copied; listing sha256:12" in shown

    def test_or_a_file_is_needed_and_not_both(self, known, tmp_path):
        (tmp_path / "a.zip").write_bytes(b"PK")
        for given in ((), (str(tmp_path / "a.zip"), "--source", self.URL)):
            result = run("upload", "dataset", "pets", *given)
            assert "give either FILE, to upload it, or --source URL" in one_error(result)
        result = run("upload", "dataset", "pets", "--source", self.URL, "--resume", "upl_1")
        assert "--resume goes on with an upload" in one_error(result)
        assert known.requests == []

    def test_that_the_service_does_not_allow_is_told(self, real):
        result = run("upload", "dataset", "pets", "--source", self.URL)
        assert "RETORT_SOURCES is empty" in one_error(result)


class TestDatasetFromJob:
    def test_registers_synthetic_images(self, real, staff):
        result = run("dataset", "from-job", staff.invent(), "--name", "dreams")
        assert result.stdout == "dreams@1\n"
        assert "6 train, 2 validation, 2 test" in result.stderr
        rows = [line.split() for line in run("datasets").stdout.splitlines()]
        assert ["dreams@1", "ready", "10", "6", "2", "2"] in [row[:6] for row in rows]

    def test_says_why_there_are_none(self, real, staff):
        result = run("dataset", "from-job", "job_none", "--name", "dreams")
        assert result.exit_code == 3
        assert "job_none" in one_error(result)


class TestDatasets:
    @pytest.fixture
    def stored(self, real, staff, tmp_path):
        """A data set that is ready, and the archive it was made of."""
        archive = tmp_path / "my shapes.zip"
        archive.write_bytes(b"PK" * 1000)
        run("upload", "dataset", "shapes", str(archive))
        images = {"channels": 3, "height": 16, "width": 16, "mean": [0.5] * 3, "std": [0.25] * 3}
        found = {"classes": ["round", "square"], "splits": {"train": 8}, "input": images}
        staff.accept_dataset(**found, format="imagefolder", notes=[])
        return archive

    def test_are_downloaded_as_they_were_sent(self, stored):
        result = run("download", "dataset", "shapes")
        assert result.stdout == "shapes-1-my_shapes.zip\n"
        assert Path("shapes-1-my_shapes.zip").read_bytes() == stored.read_bytes()
        assert "but a data set is: retort download dataset shapes" in one_error(
            run("download", "shapes")
        )
        assert "built in" in one_error(run("download", "dataset", "digits"))

    def test_are_deleted_by_their_kind(self, stored):
        assert "retort delete dataset shapes" in one_error(run("delete", "shapes", "--yes"))
        refused = json.loads(run("delete", "dataset", "shapes", "--json").stderr)
        assert "give --yes" in refused["detail"]
        result = run("delete", "dataset", "shapes@1", "--yes")
        assert result.stdout == "shapes@1 is deleted\n"
        assert "was deleted (410 gone)" in one_error(run("datasets", "shapes@1"))

    def test_lend_their_images_and_classes_to_an_upload(self, stored, staff, tmp_path):
        weights = tmp_path / "t.safetensors"
        weights.write_bytes(b"weights")
        given = ("upload", "model", "t", str(weights), "--network", "retort/resnet8")
        result = run(*given, "--like", "shapes", "--mean", "0.4,0.4,0.4", "--json")
        assert result.stderr.splitlines()[0] == (
            "like shapes@1: 16x16 pixels, 3 channels, std 0.25,0.25,0.25, 2 classes (round, square)"
        )
        sent = json.loads(result.stdout)
        assert sent["classes"] == ["round", "square"]
        assert (sent["input"]["mean"], sent["input"]["std"]) == ([0.4] * 3, [0.25] * 3)
        staff.accept_model(b"weights")
        again = run("upload", "dataset", "more", str(stored), "--like", "model:t")
        assert again.stderr.startswith("like t@1: 16x16 pixels, 3 channels, mean 0.4,0.4,0.4")
        assert "no data set or model" in one_error(run(*given, "--like", "nothing"))

    def test_and_models_that_were_rejected_say_why(self, real, staff, tmp_path):
        weights = tmp_path / "t.bin"
        weights.write_bytes(b"weights")
        given = ("--network", "retort/resnet8", "--like", "digits")
        run("upload", "model", "t", str(weights), *given)
        staff.reject_model(code="keys_mismatch", message="1 key is missing")
        for command in (("models",), ("model", "t")):
            shown = run(*command).stdout
            assert "rejected" in shown
            assert "1 key is missing" in shown.splitlines()[-1]


class TestCompletion:
    def complete(self, line: str, monkeypatch) -> list[str]:
        words = line.split(" ")
        monkeypatch.setenv("_RETORT_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", line)
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        return run().stdout.split()

    def test_asks_the_server(self, real, retort, staff, monkeypatch):
        monkeypatch.setattr(completion, "_SECONDS", 60.0)  # the machine may be busy
        job = retort.jobs.submit(factories.spec(teacher=staff.teacher()))
        assert self.complete("retort logs job_", monkeypatch) == [job.id]
        assert self.complete("retort model digits-t", monkeypatch) == ["digits-teacher"]
        assert "digits" in self.complete("retort delete dataset d", monkeypatch)
        assert "dkd" in self.complete("retort methods d", monkeypatch)

    def test_is_silent_without_one(self, monkeypatch):
        monkeypatch.setenv("RETORT_URL", "http://127.0.0.1:1")
        monkeypatch.setenv("RETORT_API_KEY", "key")
        assert self.complete("retort logs job_", monkeypatch) == []

    @pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
    def test_script_is_printed(self, name):
        assert "_RETORT_COMPLETE=complete_" in run("completion", name).stdout


class TestDownload:
    @pytest.fixture
    def job(self, real, retort, staff):
        job = retort.jobs.submit(factories.spec(teacher=staff.teacher(b"teacher")))
        staff.finish(staff.start(job.id), b"student" * 100_000)
        return job

    def test_writes_the_student_of_a_job(self, job):
        result = run("download", job.id)
        assert result.stdout == "digits-student-1.safetensors\n"
        assert Path("digits-student-1.safetensors").read_bytes() == b"student" * 100_000

    def test_writes_to_a_file_or_into_a_folder(self, job):
        Path("folder").mkdir()
        run("download", job.id, "--output", "folder")
        assert Path("folder/digits-student-1.safetensors").exists()
        result = run("download", "digits-teacher", "-o", "new/t.safetensors", "--json")
        assert json.loads(result.stdout) == {"files": ["new/t.safetensors"]}
        assert Path("new/t.safetensors").read_bytes() == b"teacher"

    def test_writes_every_file_of_a_version(self, job):
        result = run("download", job.id, "--all")
        assert sorted(result.stdout.split()) == [
            "digits-student-1/config.json",
            "digits-student-1/model.safetensors",
            "digits-student-1/report/accuracy.png",
            "digits-student-1/report/index.json",
        ]
        assert json.loads(Path("digits-student-1/config.json").read_text())["network"]

    def test_may_be_repeated(self, job):
        assert run("download", job.id).exit_code == 0
        assert run("download", job.id).exit_code == 0

    def test_replaces_another_file_only_when_told_to(self, job):
        Path("mine").write_bytes(b"mine")
        result = run("download", job.id, "-o", "mine")
        assert result.exit_code == 5
        assert "--force" in one_error(result)
        assert Path("mine").read_bytes() == b"mine"
        assert run("download", job.id, "-o", "mine", "--force").exit_code == 0
        assert Path("mine").read_bytes() == b"student" * 100_000

    def test_of_a_job_without_student_is_refused(self, real, retort, staff):
        job = retort.jobs.submit(factories.spec(teacher=staff.teacher()))
        assert run("download", job.id).exit_code == 3
        assert run("download", job.id, "--all").exit_code == 2

    @pytest.mark.parametrize("path", ["../x", "/x", "a/../../x", "a\\x", ""])
    def test_lets_no_server_choose_a_place_outside(self, known, path):
        file = {"path": path, "size_bytes": 1, "sha256": "0" * 64}
        version = {"name": "a", "version": 1, "reference": "a@1", "state": "ready"}
        known.on("GET", "/v1/models/a/versions/1", told({**version, "files": [file]}))
        result = run("download", "a@1", "--all")
        assert result.exit_code == 4
        assert "not safe" in one_error(result)


class TestReport:
    @pytest.fixture
    def job(self, real, retort, staff):
        job = retort.jobs.submit(factories.spec(teacher=staff.teacher()))
        staff.finish(staff.start(job.id), b"student")
        return job

    def test_writes_a_folder_and_may_be_repeated(self, job):
        for _ in range(2):
            result = run("report", job.id)
            assert result.stdout.split() == [
                f"{job.id}-report/accuracy.png",
                f"{job.id}-report/index.json",
            ]
        assert Path(f"{job.id}-report/accuracy.png").read_bytes() == b"a picture"

    def test_writes_one_archive(self, job):
        result = run("report", job.id, "--output", "new/all.zip", "--json")
        assert json.loads(result.stdout) == {"files": ["new/all.zip"]}
        with zipfile.ZipFile("new/all.zip") as archive:
            assert archive.read("report/accuracy.png") == b"a picture"
        again = run("report", job.id, "-o", "new/all.zip")
        assert (again.exit_code, "--force" in one_error(again)) == (5, True)
        assert run("report", job.id, "-o", "new/all.zip", "--force").exit_code == 0

    def test_says_so_where_there_is_none(self, known):
        known.on("GET", "/v1/jobs/job_1/report", told({"data": [], "archive": None}))
        result = run("report", "job_1")
        assert (result.exit_code, result.stdout) == (0, "")
        assert "made no report" in result.stderr

    @pytest.mark.parametrize("path", ["../x", "/x", "a\\x", ""])
    def test_lets_no_server_choose_a_place_outside(self, known, path):
        file = {"path": path, "size_bytes": 1, "sha256": "0" * 64, "url": "/x"}
        known.on("GET", "/v1/jobs/job_1/report", told({"data": [file], "archive": None}))
        assert "not safe" in one_error(run("report", "job_1"))


class TestCatalog:
    def test_lists_methods_and_shows_one(self, real):
        assert "dkd" in run("methods").stdout
        shown = run("methods", "dkd").stdout
        assert "temperature" in shown
        assert "CVPR 2022" in shown
        assert json.loads(run("methods", "dkd", "--json").stdout)["name"] == "dkd"
        assert run("methods", "magic").exit_code == 3

    def test_ranks_the_methods_that_fit_a_job(self, real, staff, tmp_path):
        staff.teacher()
        path = tmp_path / "job.yaml"
        path.write_text(
            "name: which\nteacher: digits-teacher@1\ndataset: digits@1\nbaseline: true\n"
            "student: {network: retort/mlp}\nmethod: {name: kd}\n"
        )
        shown = run("methods", "--for", str(path)).stdout
        fitting, refused = shown.split("These do not fit:")
        assert "rkd" in fitting
        assert "measured on the digits" in fitting
        assert "fitnet" in refused
        first = json.loads(run("methods", "--for", str(path), "--json").stdout)["data"][0]
        assert first["measured"]["difference"] > 0
        assert "leave one out" in one_error(run("methods", "kd", "--for", str(path)))

    def test_lists_recipes_and_formats(self, real):
        assert "cifar100" in run("recipes").stdout
        assert "weight_decay" in run("recipes", "cifar100").stdout
        assert "retort recipes" in one_error(run("recipes", "cifar1000"))
        assert "coco" in run("formats").stdout

    def test_makes_and_revokes_keys(self, real):
        made = json.loads(run("key", "create", "reader", "--role", "viewer", "--json").stdout)
        listed = run("key", "list").stdout
        assert made["id"] in listed
        assert made["api_key"] not in listed
        assert run("key", "revoke", made["id"]).stdout == f"{made['id']} is revoked\n"
        assert "revoked" in run("key", "list").stdout

    def test_points_aliases_and_lists_uploads(self, real, staff):
        staff.teacher()
        told = run("alias", "digits-teacher@1", "production").stdout
        assert told == "digits-teacher@production is now digits-teacher@1\n"
        assert run("model", "digits-teacher@production").exit_code == 0
        assert run("upload", "list").stdout.split()[:2] == ["ID", "STATE"]
        assert "by its number" in one_error(run("delete", "digits-teacher@production", "--yes"))

    def test_lists_networks_that_contain_a_text(self, real):
        names = [n["name"] for n in json.loads(run("networks", "--filter", "8x4", "--json").stdout)]
        assert names == ["retort/resnet8x4"]
        assert "retort/resnet8x4" in run("networks", "--filter", "8X4").stdout

    def test_lists_models_datasets_and_workers(self, real, staff):
        staff.teacher()
        assert "digits-teacher" in run("models").stdout
        assert "digits-teacher@1" in run("model", "digits-teacher").stdout
        told = json.loads(run("model", "digits-teacher", "--json").stdout)
        assert [version["version"] for version in told["versions"]] == [1]
        assert "retort/resnet8x4" in run("model", "digits-teacher@latest").stdout
        assert "digits@1" in run("datasets").stdout
        assert json.loads(run("workers", "--json").stdout) == []

    def test_lists_versions_of_a_model_with_the_metric_that_decides(self, known):
        version = {
            "name": "street",
            "version": 1,
            "reference": "street@1",
            "state": "ready",
            "task": "detection",
            "scores": {"ap": 0.37, "ap50": 0.6},
        }
        known.on("GET", "/v1/models/street", told({"name": "street"}))
        known.on("GET", "/v1/models/street/versions", told({"data": [version]}))
        assert "ap 0.37" in run("model", "street").stdout

    @pytest.mark.parametrize("name", ["jobs", "models", "datasets", "methods", "networks"])
    def test_prints_nothing_but_json_on_stdout_if_asked(self, real, name):
        result = run(name, "--json")
        assert isinstance(json.loads(result.stdout), list)
        assert result.stderr == ""


class TestProcess:
    def test_answers_like_the_function_does(self, real):
        process = started("jobs", "--json")
        out, err = process.communicate(timeout=waiting.PATIENCE_SECONDS)
        assert (process.returncode, json.loads(out), err) == (0, [], "")

    def test_shows_no_traceback_when_its_reader_has_enough(self, real):
        process = started("networks")
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()
        process.stderr.close()
        process.wait(timeout=waiting.PATIENCE_SECONDS)

    def test_ends_with_the_code_of_its_error(self):
        url = f"http://127.0.0.1:{services.free_port()}"
        process = started("jobs", "--url", url, "--api-key=k")
        out, err = process.communicate(timeout=waiting.PATIENCE_SECONDS)
        assert (process.returncode, out) == (4, "")
        assert len(err.splitlines()) == 1
