"""The client against the real service: one test for each thing that a caller can do."""

import json
import threading
import zipfile

import pytest

from models_registry.jobs import leases
from retort import client, config, errors
from tests import factories

TEACHER = bytes(range(256)) * 45_000  # 11.5 MB: three parts of at most 5 MiB


@pytest.fixture
def settings(settings):
    return settings.model_copy(update={"upload_part_bytes": 5 * 2**20})


@pytest.fixture
def teacher_file(tmp_path):
    path = tmp_path / "teacher.pt"
    path.write_bytes(TEACHER)
    return path


@pytest.fixture
def job(retort, staff):
    """A job that waits for a worker."""
    return retort.jobs.submit(factories.spec(teacher=staff.teacher()))


class TestConnect:
    def test_finds_the_server_that_was_started_here(self, service, api_key, home):
        path = home / "here" / "retort-data" / "client.json"
        path.parent.mkdir()
        path.write_text(json.dumps({"url": service, "api_key": api_key}))
        with client.connect() as found:
            assert list(found.jobs.list()) == []

    def test_is_told_that_its_key_is_wrong(self, service):
        with client.Client(service, "ak_test_nobody_nothing") as stranger:
            with pytest.raises(errors.ProblemError) as caught:
                next(stranger.jobs.list())
            assert caught.value.status == 401

    def test_keeps_an_address_with_a_slash_at_the_end(self, service, api_key):
        config.save(f"{service}/", api_key)
        with client.connect() as found:
            assert found.url == service


class TestUploads:
    def test_arrive_whole(self, retort, teacher_file):
        seen: list[tuple[int, int]] = []
        done = retort.uploads.send(
            teacher_file, purpose="model", progress=lambda now, all_: seen.append((now, all_))
        )
        assert (done.state, done.size_bytes) == ("completed", len(TEACHER))
        assert len(done.parts) == 3
        assert seen[-1] == (len(TEACHER), len(TEACHER))

    def test_go_on_where_they_were_cut_off(self, retort, teacher_file, monkeypatch):
        begun = retort.uploads.begin(teacher_file, purpose="model")
        first = begun.model_copy(update={"parts": begun.parts[:1]})
        with pytest.raises(errors.ProblemError, match="2 of 3 parts are missing"):
            retort.uploads.finish(first, teacher_file)
        seen: list[int] = []
        done = retort.uploads.send(
            teacher_file,
            purpose="model",
            resume=begun.id,
            progress=lambda now, _: seen.append(now),
        )
        assert done.state == "completed"
        assert seen[0] == 5 * 2**20

    def test_can_be_completed_twice(self, retort, teacher_file):
        done = retort.uploads.send(teacher_file, purpose="model")
        again = retort.uploads.send(teacher_file, purpose="model", resume=done.id)
        assert again.blob == done.blob

    def test_can_be_given_up(self, retort, teacher_file):
        begun = retort.uploads.begin(teacher_file, purpose="model")
        retort.uploads.discard(begun.id)
        with pytest.raises(errors.ProblemError) as caught:
            retort.uploads.get(begun.id)
        assert caught.value.status == 410


class TestModels:
    def register(self, retort, file):
        upload = retort.uploads.send(file, purpose="model")
        return retort.models.register(
            "digits-teacher",
            upload,
            network="retort/resnet8x4",
            classes=10,
            input=factories.DIGITS_INPUT,
            tags={"team": "vision"},
        )

    def test_become_ready_once_inspected(self, retort, staff, teacher_file):
        version = self.register(retort, teacher_file)
        assert (version.reference, version.state) == ("digits-teacher@1", "pending")
        staff.accept_model(TEACHER)
        ready = retort.models.wait("digits-teacher", 1)
        assert (ready.state, ready.parameters) == ("ready", 78_042)
        assert ready.tags == {"team": "vision"}

    def test_that_are_rejected_say_why(self, retort, staff, teacher_file):
        self.register(retort, teacher_file)
        staff.reject_model(
            code="keys_mismatch", message="2 keys are missing", missing_keys=["fc.weight"]
        )
        with pytest.raises(errors.Rejected, match="2 keys are missing"):
            retort.models.wait("digits-teacher", 1)
        version = retort.models.version("digits-teacher", 1)
        assert version.rejection is not None
        assert version.rejection.missing_keys == ["fc.weight"]

    def test_are_found_by_every_kind_of_reference(self, retort, staff):
        staff.teacher(b"first")
        staff.teacher(b"second")
        retort.models.set_alias("digits-teacher", "champion", 1)
        found = {
            reference: retort.models.resolve(f"digits-teacher{reference}").version
            for reference in ("", "@1", "@2", "@latest", "@champion")
        }
        assert found == {"": 2, "@1": 1, "@2": 2, "@latest": 2, "@champion": 1}
        with pytest.raises(errors.ProblemError, match="404"):
            retort.models.resolve("digits-teacher@nobody")

    def test_are_listed_with_their_versions(self, retort, staff):
        staff.teacher(b"first")
        staff.teacher(b"second")
        assert [model.latest_version for model in retort.models.list()] == [2]
        versions = retort.models.versions("digits-teacher", page_size=1)
        assert [version.version for version in versions] == [2, 1]
        assert retort.models.get("digits-teacher").name == "digits-teacher"

    def test_have_aliases_that_move(self, retort, staff):
        staff.teacher(b"first")
        staff.teacher(b"second")
        retort.models.set_alias("digits-teacher", "champion", 1)
        assert retort.models.set_alias("digits-teacher", "champion", 2).version == 2
        assert retort.models.set_alias("digits-teacher", "champion", 2).version == 2
        assert retort.models.get("digits-teacher").aliases == {"champion": 2}

    def test_come_back_byte_for_byte(self, retort, staff, tmp_path):
        staff.teacher(TEACHER)
        version = retort.models.resolve("digits-teacher")
        target = tmp_path / "copy.safetensors"
        digest = version.digest.removeprefix("sha256:")
        partial = target.with_name(f"{target.name}.{digest[:12]}.part")
        partial.write_bytes(TEACHER[:1_000_000])
        seen: list[int] = []
        retort.models.download(version, target, progress=lambda now, _: seen.append(now))
        assert target.read_bytes() == TEACHER
        assert 1_000_000 < seen[0] < seen[-1] == len(TEACHER)

    def test_have_no_other_files_than_they_say(self, retort, staff, tmp_path):
        staff.teacher()
        version = retort.models.resolve("digits-teacher")
        with pytest.raises(errors.ProblemError, match=r"has no file x: it has model\.safetensors"):
            retort.models.download(version, tmp_path / "x", file="x")

    def test_know_where_they_come_from(self, retort, staff, job):
        staff.finish(staff.start(job.id), b"student")
        lineage = retort.models.lineage("digits-student", 1)
        assert job.id in json.dumps(lineage)

    def test_can_be_deleted(self, retort, staff):
        staff.teacher(b"first")
        staff.teacher(b"second")
        retort.models.delete("digits-teacher", 1)
        assert [v.version for v in retort.models.versions("digits-teacher")] == [2]
        retort.models.delete("digits-teacher")
        assert list(retort.models.list()) == []


class TestDatasets:
    def test_are_registered_from_an_archive(self, retort, staff, tmp_path):
        archive = tmp_path / "shapes.zip"
        archive.write_bytes(b"PK")
        upload = retort.uploads.send(archive, purpose="dataset")
        version = retort.datasets.register("shapes", upload, format="imagefolder")
        assert (version.reference, version.state) == ("shapes@1", "pending")
        staff.accept_dataset(classes=["round", "square"], splits={"train": 8, "test": 2})
        ready = retort.datasets.wait("shapes", 1)
        assert (ready.classes, ready.splits["train"]) == (["round", "square"], 8)

    def test_are_made_of_the_synthetic_images_of_a_job(self, retort, staff):
        job_id = staff.invent()
        version = retort.datasets.register_job("dreams", job_id, tags={"site": "b"})
        assert (version.reference, version.state, version.job) == ("dreams@1", "ready", job_id)
        assert version.lineage["teacher"] == "digits-teacher@1"
        assert retort.datasets.version("dreams", 1) == version
        with pytest.raises(errors.ProblemError, match="job_none"):
            retort.datasets.register_job("dreams", "job_none")

    def test_are_listed_with_the_one_that_is_built_in(self, retort):
        assert "digits" in [dataset.name for dataset in retort.datasets.list()]
        assert retort.datasets.get("digits").latest_version == 1
        [version] = retort.datasets.versions("digits")
        assert version.splits == {"train": 1257, "validation": 180, "test": 360}


class TestOffers:
    def test_list_methods_and_networks(self, retort):
        assert "kd" in [method.name for method in retort.offers.methods()]
        assert "temperature" in retort.offers.method("kd").params_schema["properties"]
        found = [network.name for network in retort.offers.networks(search="retort/resnet8")]
        assert "retort/resnet8" in found
        assert list(retort.offers.workers()) == []


class TestJobs:
    def test_are_validated_without_being_stored(self, retort, staff):
        spec = retort.jobs.validate(factories.spec(teacher=staff.teacher()))
        assert spec["max_attempts"] == 3
        assert list(retort.jobs.list()) == []

    def test_that_cannot_work_are_refused_with_every_field(self, retort):
        with pytest.raises(errors.ProblemError) as caught:
            retort.jobs.submit(factories.spec(method={"name": "kd", "temperature": -1}))
        pointers = {error.pointer for error in caught.value.errors}
        assert pointers == {"/teacher", "/method/temperature"}

    def test_are_submitted_once_for_one_key(self, retort, staff):
        spec = factories.spec(teacher=staff.teacher())
        first = retort.jobs.submit(spec, idempotency_key="k")
        assert retort.jobs.submit(spec, idempotency_key="k").id == first.id
        assert len(list(retort.jobs.list())) == 1

    def test_are_listed_page_by_page_and_by_filter(self, retort, staff):
        teacher = staff.teacher()
        made = [
            retort.jobs.submit(factories.spec(teacher=teacher, labels={"n": str(n)})).id
            for n in range(3)
        ]
        assert [job.id for job in retort.jobs.list(page_size=2)] == made[::-1]
        assert [job.id for job in retort.jobs.list(labels={"n": "1"})] == [made[1]]
        retort.jobs.cancel(made[2])
        assert [job.id for job in retort.jobs.list(state="cancelled")] == [made[2]]

    def test_can_be_paused_resumed_cancelled_and_tried_again(self, retort, job):
        assert retort.jobs.pause(job.id).state == "paused"
        assert retort.jobs.resume(job.id).state == "queued"
        assert retort.jobs.cancel(job.id).state == "cancelled"
        again = retort.jobs.retry(job.id)
        assert (again.retry_of, again.state) == (job.id, "queued")
        with pytest.raises(errors.ProblemError) as caught:
            retort.jobs.pause(job.id)
        assert caught.value.status == 409
        retort.jobs.delete(job.id)

    def test_show_their_measurements(self, retort, staff, job):
        lease = staff.start(job.id)
        points = [leases.MetricSample("loss/total", step, 1, 1.0 / step) for step in (1, 2, 3)]
        staff.report(lease, 0.5, *points, leases.MetricSample("loss/kd", 3, 1, float("nan")))
        [series] = retort.jobs.metrics(job.id, keys=("loss/total",))
        assert [point.step for point in series.points] == [1, 2, 3]
        now = retort.jobs.get(job.id)
        assert (now.progress, now.metrics["loss/total"]) == (0.5, pytest.approx(1 / 3))
        assert now.metrics["loss/kd"] != now.metrics["loss/kd"]

    def test_list_their_events(self, retort, job):
        page = retort.jobs.events(job.id)
        assert [event.type for event in page.data] == ["job.validating", "job.queued"]
        assert retort.jobs.events(job.id, after=2, wait_seconds=0.1).data == []

    def test_stream_their_events_to_the_end(self, retort, staff, job):
        def work() -> None:
            lease = staff.start(job.id)
            staff.report(lease, 0.5, leases.MetricSample("loss/total", 1, 1, 1.0))
            staff.finish(lease, b"student")

        worker: threading.Thread | None = None
        seen = []
        for event in retort.jobs.stream(job.id):
            seen.append((event.sequence, event.type))
            if event.type == "job.queued":
                worker = threading.Thread(target=work)
                worker.start()
        assert worker is not None
        worker.join()
        kinds = ("validating", "queued", "starting", "running", "succeeded")
        assert seen == [(n, f"job.{kind}") for n, kind in enumerate(kinds, 1)]

    def test_are_waited_for(self, retort, staff, job):
        staff.finish(staff.start(job.id), b"student")
        done = retort.jobs.wait(job.id)
        assert done.result is not None
        assert done.result.student == "digits-student@1"

    def test_hand_their_student_over(self, retort, staff, job, tmp_path):
        with pytest.raises(errors.ProblemError):
            retort.jobs.download_student(job.id, tmp_path / "early.safetensors")
        staff.finish(staff.start(job.id), TEACHER)
        target = retort.jobs.download_student(job.id, tmp_path / "student.safetensors")
        assert target.read_bytes() == TEACHER
        assert [path.name for path in tmp_path.glob("*.part")] == []

    def test_hand_their_report_over(self, retort, staff, job, tmp_path):
        staff.finish(staff.start(job.id), b"weights")
        files = {file.path: file for file in retort.jobs.report(job.id)}
        assert set(files) == {"index.json", "accuracy.png"}
        assert files["accuracy.png"].media_type == "image/png"
        target = tmp_path / "accuracy.png"
        retort.jobs.download_report_file(job.id, files["accuracy.png"], target)
        assert target.read_bytes() == b"a picture"
        archive = retort.jobs.download_report(job.id, tmp_path / "all.zip")
        with zipfile.ZipFile(archive) as opened:
            assert opened.testzip() is None
            assert opened.namelist() == ["report/accuracy.png", "report/index.json"]


class TestStudies:
    @pytest.fixture
    def study(self, retort, staff):
        """A study that waits for workers."""
        return retort.studies.submit(factories.study_spec(teacher=staff.teacher()))

    def test_are_planned_without_being_stored(self, retort, staff):
        plan = retort.studies.validate(factories.study_spec(teacher=staff.teacher()))
        assert plan.job_count == 6
        assert [variant.is_baseline for variant in plan.variants] == [True, False, False]
        assert list(retort.studies.list()) == []

    def test_are_submitted_once_for_one_key(self, retort, staff):
        spec = factories.study_spec(teacher=staff.teacher())
        first = retort.studies.submit(spec, idempotency_key="k")
        assert retort.studies.submit(spec, idempotency_key="k").id == first.id
        assert len(list(retort.jobs.list())) == 6

    def test_are_listed_with_their_jobs(self, retort, staff, study):
        other = retort.studies.submit(
            factories.study_spec(name="other", labels={"n": "1"}, seeds=[0])
        )
        assert [found.id for found in retort.studies.list(page_size=1)] == [other.id, study.id]
        assert [found.id for found in retort.studies.list(labels={"n": "1"})] == [other.id]
        assert [found.id for found in retort.studies.list(name="other")] == [other.id]
        jobs = list(retort.jobs.list(study=study.id, page_size=4))
        assert (len(jobs), {job.study for job in jobs}) == (6, {study.id})
        assert retort.studies.cancel(other.id).is_final
        assert [found.id for found in retort.studies.list(active=True)] == [study.id]
        retort.studies.delete(other.id)
        assert [found.id for found in retort.studies.list()] == [study.id]

    def test_are_waited_for_and_compared(self, retort, staff, study):
        jobs = sorted(retort.jobs.list(study=study.id), key=lambda job: job.variant)
        for place, job in enumerate(jobs):
            content = f"student {place}".encode()
            staff.finish(staff.start(job.id), content, accuracy=0.9 + 0.01 * place)
        done = retort.studies.wait(study.id)
        assert (done.state, done.jobs) == ("succeeded", {"succeeded": 6})
        board = retort.studies.leaderboard(study.id)
        assert board.teacher_accuracy == 0.99
        assert [row.variant for row in board.rows] == [3, 2, 1]
        best, *_ = board.rows
        assert best.accuracy is not None
        assert best.accuracy.mean == pytest.approx(0.945)
        assert best.difference is not None
        assert (best.difference.pairs, best.difference.seeds_above) == (2, 2)
        assert best.runs[0].student is not None
        text = retort.studies.leaderboard_csv(study.id)
        assert text.splitlines()[1].startswith("1,3,kd temperature=4.0,false,1,2,0,0,")
