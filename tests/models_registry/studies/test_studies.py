"""Studies: what they consist of, that they come whole or not at all, and how they end."""

from typing import Any

import pytest
import sqlalchemy as sa

from models_registry import errors
from models_registry.access import keys
from models_registry.artifacts import datasets
from models_registry.jobs import actions, leases, lifecycle, submission
from models_registry.jobs.lifecycle import State
from models_registry.persistence import database, paging, tables
from models_registry.persistence.storage import Storage
from models_registry.studies import studies
from models_registry.studies.spec import StudySpec
from models_registry.studies.studies import StudyState, StudyStatus
from tests import factories
from tests.databases import SQLITE_ONLY
from workers.distill.config.descriptions import PRIMARY_METRICS

pytestmark = pytest.mark.usefixtures("teacher")


@pytest.fixture
def study(sessions: database.Sessions, project: tables.ProjectRow) -> tables.StudyRow:
    """A baseline and two variants of KD, with two seeds each."""
    with sessions.begin() as session:
        return factories.study(session, project_id=project.id)


def planned(
    sessions: database.Sessions, project: tables.ProjectRow, **changes: Any
) -> studies.StudyPlan:
    spec = StudySpec.model_validate(factories.study_spec(**changes))
    with sessions.begin() as session:
        return studies.plan(session, project_id=project.id, spec=spec)


def labels(plan: studies.StudyPlan) -> list[str]:
    return [studies.label_of(variant) for variant in plan.variants]


def refusal(
    sessions: database.Sessions, project: tables.ProjectRow, **changes: Any
) -> errors.Refused:
    """Return why a study is refused; nothing may be stored then."""
    with pytest.raises(errors.Refused) as refused, sessions.begin() as session:
        factories.study(session, project_id=project.id, **changes)
    with sessions.begin() as session:
        for kind in (tables.StudyRow, tables.JobRow, tables.OutboxRow):
            assert session.scalars(sa.select(kind)).all() == []
    return refused.value


class TestSubmit:
    def test_makes_all_jobs_with_their_messages(
        self, sessions: database.Sessions, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            found = factories.members(session, study)
            messages = session.scalars(sa.select(tables.OutboxRow)).all()
            assert [(job.study_seed, job.study_variant, job.method) for job in found] == [
                *((0, 1, "ce"), (0, 2, "kd"), (0, 3, "kd")),
                *((1, 1, "ce"), (1, 2, "kd"), (1, 3, "kd")),
            ]
            assert {message.payload["job_id"] for message in messages} == {job.id for job in found}
            assert {job.state for job in found} == {State.QUEUED}

    def test_writes_many_jobs_with_as_few_statements_as_two(
        self, engine: sa.Engine, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        """SQLite's other writers wait meanwhile; PostgreSQL sends rows in a few batches."""
        statements: list[str] = []
        sa.event.listen(
            engine, "before_cursor_execute", lambda *arguments: statements.append(arguments[2])
        )
        counts = []
        for seeds in ([0], list(range(20))):
            spec = StudySpec.model_validate(factories.study_spec(seeds=seeds))
            plan = planned(sessions, project, seeds=seeds)
            statements.clear()
            with sessions.begin() as session:
                studies.submit(session, project_id=project.id, spec=spec, planned=plan)
            counts.append(len(statements))
        assert counts[1] <= counts[0] + 3

    def test_looks_again_at_the_inputs_of_an_older_plan(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        teacher: tables.ModelVersionRow,
    ) -> None:
        plan = planned(sessions, project)
        with sessions.begin() as session:
            session.get_one(tables.ModelVersionRow, teacher.id).state = "rejected"
        spec = StudySpec.model_validate(factories.study_spec())
        with pytest.raises(errors.Refused, match="was rejected"), sessions.begin() as session:
            studies.submit(session, project_id=project.id, spec=spec, planned=plan)

    def test_gives_each_job_a_whole_spec_of_its_own(
        self, sessions: database.Sessions, study: tables.StudyRow, teacher: tables.ModelVersionRow
    ) -> None:
        with sessions.begin() as session:
            found = factories.members(session, study)
        for job in found:
            assert job.spec["training"]["seed"] == job.study_seed
            assert job.spec["training"]["optimizer"]["name"] == "sgd"
            assert job.spec["baseline"] is False
            assert job.spec["teacher_digest"] == f"sha256:{teacher.sha256}"
            assert job.spec["student"]["register_as"] == "digits-methods"
            assert submission.spec_of(job).model_dump(mode="json").items() <= job.spec.items()
        assert [job.spec["method"].get("temperature") for job in found[:3]] == [None, 2.0, 4.0]
        assert found[1].name == "digits-methods: kd temperature=2.0, seed 0"

    def test_queues_seed_by_seed(self, sessions: database.Sessions, study: tables.StudyRow) -> None:
        with sessions.begin() as session:
            seats = {job.id: job.study_seed for job in factories.members(session, study)}
            messages = session.scalars(sa.select(tables.OutboxRow).order_by(tables.OutboxRow.id))
            assert [seats[message.payload["job_id"]] for message in messages] == [0, 0, 0, 1, 1, 1]

    def test_hands_on_what_jobs_have_in_common(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        shared: dict[str, Any] = {
            "labels": {"team": "vision"},
            "priority": 3,
            "max_attempts": 5,
            "resources": {"accelerator": "cpu", "max_runtime_seconds": 60.0},
            "student": {"network": "retort/resnet8", "register_as": "pupil"},
        }
        with sessions.begin() as session:
            made = factories.study(session, project_id=project.id, **shared)
            for job in factories.members(session, made):
                assert (job.labels, job.priority, job.max_attempts) == ({"team": "vision"}, 3, 5)
                assert (job.queue, job.max_runtime_seconds) == ("cpu", 60.0)
                assert job.spec["student"]["register_as"] == "pupil"
                assert "No worker that takes 'cpu' jobs" in str(job.state_message)

    def test_pins_all_jobs_to_what_a_name_means_now(
        self, sessions: database.Sessions, project: tables.ProjectRow, storage: Storage
    ) -> None:
        with sessions.begin() as session:
            factories.alias(session, project_id=project.id, name="digits-teacher", alias="champion")
            made = factories.study(
                session, project_id=project.id, teacher="digits-teacher@champion", dataset="digits"
            )
            assert made.spec["teacher"] == "digits-teacher@1"
            assert made.spec["dataset"] == "digits@1"
            assert {job.spec["teacher"] for job in factories.members(session, made)} == {
                "digits-teacher@1"
            }

    def test_waits_with_all_jobs_for_an_input_that_is_inspected(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        with sessions.begin() as session:
            row = datasets.resolve(session, project_id=project.id, reference="digits@1")
            row.state = "pending"
            session.flush()
            made = factories.study(session, project_id=project.id)
            assert {job.state for job in factories.members(session, made)} == {State.VALIDATING}
            status = studies.statuses(session, [made])[made.id]
            assert status.state is StudyState.QUEUED
            row.state = "ready"


@SQLITE_ONLY
class TestVariants:
    def test_are_all_combinations_after_the_baseline(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        methods = [
            {"name": "kd", "temperature": {"grid": [2, 4]}, "kd_weight": {"grid": [0.5, 0.9]}},
            {"name": "dkd", "alpha": 1.0},
        ]
        plan = planned(sessions, project, methods=methods)
        assert labels(plan) == [
            "ce",
            "kd temperature=2 kd_weight=0.5",
            "kd temperature=2 kd_weight=0.9",
            "kd temperature=4 kd_weight=0.5",
            "kd temperature=4 kd_weight=0.9",
            "dkd",
        ]
        assert plan.job_count == 12
        assert [variant.number for variant in plan.variants] == [1, 2, 3, 4, 5, 6]
        assert [variant.is_baseline for variant in plan.variants] == [True] + [False] * 5
        assert [variant.compared_with for variant in plan.variants] == [None] + [1] * 5

    def test_are_named_by_what_differs_and_with_defaults_where_they_matter(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        methods = [{"name": "kd", "kd_weight": 0.5}, {"name": "kd", "temperature": 8}]
        plan = planned(sessions, project, methods=methods, baseline=False)
        assert labels(plan) == [
            "kd kd_weight=0.5 temperature=4.0",
            "kd kd_weight=0.9 temperature=8",
        ]

    def test_multiply_with_those_of_the_training_each_with_its_baseline(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        training = {"epochs": 2, "optimizer": {"learning_rate": {"grid": [0.05, 0.1]}}}
        plan = planned(sessions, project, methods=[{"name": "kd"}], training=training)
        rate = "training.optimizer.learning_rate"
        assert labels(plan) == [f"{m} {rate}={r}" for r in (0.05, 0.1) for m in ("ce", "kd")]
        assert [variant.compared_with for variant in plan.variants] == [None, 1, None, 3]
        rates = [spec.training["optimizer"]["learning_rate"] for spec in plan.specs]
        assert rates == [0.05, 0.05, 0.1, 0.1]

    def test_share_a_baseline_where_they_differ_in_what_only_a_teacher_changes(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        training = {"epochs": 2, "teacher_cache": {"grid": [None, {"views": 2}]}}
        plan = planned(sessions, project, methods=[{"name": "kd"}], training=training)
        assert labels(plan) == [
            "ce training.teacher_cache=null",
            "kd training.teacher_cache=null",
            'kd training.teacher_cache={"views":2}',
        ]
        assert [variant.compared_with for variant in plan.variants] == [None, 1, 1]
        assert plan.specs[0].training["teacher_cache"] is None

    def test_of_a_combination_reach_into_its_parts(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        parts = [{"name": "kd", "weight": {"grid": [0.5, 1.0]}}, {"name": "dkd", "beta": 2}]
        plan = planned(sessions, project, methods=[{"name": "combine", "methods": parts}])
        assert labels(plan) == ["ce", "kd+dkd methods.0.weight=0.5", "kd+dkd methods.0.weight=1.0"]

    def test_without_a_baseline_are_compared_with_nothing(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        plan = planned(sessions, project, baseline=False)
        assert [variant.compared_with for variant in plan.variants] == [None, None]
        assert not any(variant.is_baseline for variant in plan.variants)

    def test_that_are_the_baseline_take_its_place(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        plan = planned(sessions, project, methods=[{"name": "kd"}, {"name": "ce"}])
        assert labels(plan) == ["kd", "ce"]
        assert [variant.is_baseline for variant in plan.variants] == [False, True]
        assert [variant.compared_with for variant in plan.variants] == [2, None]

    def test_without_data_are_compared_with_the_same_student_on_noise(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        methods = [{"name": "fast", "synthesis": {"steps": {"grid": [2, 5]}}}, {"name": "cmi"}]
        plan = planned(sessions, project, methods=methods, dataset=None)
        assert labels(plan) == [
            "noise",
            "fast synthesis.steps=2",
            "fast synthesis.steps=5",
            "cmi",
        ]
        assert [variant.compared_with for variant in plan.variants] == [None, 1, 1, 1]
        noise, fast = plan.specs[0].method, plan.specs[1].method
        for name in ("student_steps", "calls_per_epoch"):
            assert noise["synthesis"][name] == fast["synthesis"][name]
        assert noise["temperature"] == fast["temperature"]
        assert plan.spec.dataset is None

    def test_have_a_noise_baseline_for_each_number_of_the_students_steps(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        steps = {"student_steps": {"grid": [10, 20]}, "batch_size": {"grid": [32, 64]}}
        methods = [{"name": "fast", "synthesis": steps}]
        plan = planned(sessions, project, methods=methods, dataset=None)
        assert labels(plan)[:2] == [
            "noise synthesis.student_steps=10",
            "noise synthesis.student_steps=20",
        ]
        told = [spec.method["synthesis"]["student_steps"] for spec in plan.specs]
        assert told == [10, 20, 10, 10, 20, 20]
        assert [variant.compared_with for variant in plan.variants] == [None, None, 1, 1, 2, 2]

    def test_of_both_kinds_have_each_their_own_baseline(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        plan = planned(sessions, project, methods=[{"name": "kd"}, {"name": "dafl"}])
        assert labels(plan) == ["ce", "noise", "kd", "dafl"]
        assert [variant.is_baseline for variant in plan.variants] == [True, True, False, False]
        assert [variant.compared_with for variant in plan.variants] == [None, None, 1, 2]

    def test_of_clients_have_a_baseline_on_the_same_private_images(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        methods = [{"name": "dsfl"}, {"name": "fedmd"}, {"name": "fedavg"}]
        plan = planned(sessions, project, methods=methods, teacher=None)
        baselines = [variant for variant in plan.variants if variant.is_baseline]
        # The open set of dsfl and fedmd is a fifth; fedavg has none.
        assert [one.method["federation"]["open_images"] for one in baselines] == [0.2, None]
        assert {one.method["name"] for one in baselines} == {"local"}
        compared = [one.compared_with for one in plan.variants if not one.is_baseline]
        assert compared == [baselines[0].number, baselines[0].number, baselines[1].number]

    def test_of_clients_with_and_without_an_open_set_are_told_that_the_images_differ(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        methods = [{"name": "dsfl"}, {"name": "local"}, {"name": "fedavg"}]
        plan = planned(sessions, project, methods=methods, teacher=None, baseline=False)
        told = [[(w.code, w.detail) for w in warnings] for warnings in plan.warnings]
        assert told[0] == []
        assert told[1] == [
            (
                "more_training_images",
                "the clients of local train on all images, and those of dsfl (0.2) on what the "
                "open set leaves; with federation.open_images 0.2, local trains on the same images",
            )
        ]
        assert [code for code, _ in told[2]] == ["more_training_images"]

    @pytest.mark.parametrize(
        "methods",
        [
            [{"name": "local"}, {"name": "fedavg"}],
            [{"name": "dsfl"}, {"name": "local", "federation": {"open_images": 0.2}}],
            [{"name": "dsfl"}, {"name": "local", "federation": {"open_images": 0}}],
            [{"name": "dsfl"}, {"name": "kd"}],
        ],
        ids=["no open set", "the same", "chosen", "no clients"],
    )
    def test_are_told_of_no_images_that_are_the_same_or_were_chosen(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        methods: list[dict[str, Any]],
    ) -> None:
        plan = planned(sessions, project, methods=methods, baseline=False)
        assert "more_training_images" not in {one.code for one in plan.all_warnings}

    def test_that_are_the_noise_baseline_take_its_place(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        noise = {"name": "noise", "temperature": 1.0}
        plan = planned(sessions, project, methods=[noise, {"name": "dafl"}], dataset=None)
        assert labels(plan) == ["noise", "dafl"]
        budgets = [spec.method["synthesis"] for spec in plan.specs]
        assert budgets[0]["student_steps"] == budgets[1]["student_steps"]
        assert [variant.compared_with for variant in plan.variants] == [None, 1]

    def test_store_nothing_while_they_are_planned(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        planned(sessions, project)
        with sessions.begin() as session:
            assert session.scalars(sa.select(tables.JobRow)).all() == []


@SQLITE_ONLY
class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "pointer", "code"),
        [
            ({"teacher": "nobody@1"}, "/teacher", "not_found"),
            ({"dataset": "digit@1"}, "/dataset", "not_found"),
            ({"student": {"network": "retort/resnet9"}}, "/student/network", "unknown_network"),
            ({"teacher": None, "methods": [{"name": "kd"}]}, "/teacher", "required"),
            (
                {"methods": [{"name": "kd"}, {"name": "dkk"}]},
                "/methods/1/name",
                "unknown_method",
            ),
            (
                {"methods": [{"name": "kd"}, {"name": "dkd", "temprature": 1}]},
                "/methods/1/temprature",
                "unknown_field",
            ),
            (
                {"methods": [{"name": "kd", "temperature": {"grid": [4, 0]}}]},
                "/methods/0/temperature/grid/1",
                "invalid_exclusiveMinimum",
            ),
            (
                {"training": {"epochs": {"grid": [1, 0]}}},
                "/training/epochs/grid/1",
                "invalid_minimum",
            ),
            ({"training": {"recipe": "smal"}}, "/training/recipe", "unknown_recipe"),
            ({"training": {"seed": 1}}, "/training/seed", "seed_of_study"),
            ({"training": {"grid": [{"epochs": 1}]}}, "/training/grid", "grid_misplaced"),
            ({"methods": [{"name": "kd", "grid": [1]}]}, "/methods/0/grid", "grid_misplaced"),
            (
                {"methods": [{"name": "kd", "temperature": {"grid": []}}]},
                "/methods/0/temperature/grid",
                "bad_grid",
            ),
            (
                {"methods": [{"name": "kd"}, {"name": "kd", "temperature": 4}]},
                "/methods/1",
                "duplicate_variant",
            ),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_name_the_field_of_the_study_once(
        self,
        sessions: database.Sessions,
        project: tables.ProjectRow,
        changes: dict[str, Any],
        pointer: str,
        code: str,
    ) -> None:
        refused = refusal(sessions, project, **changes)
        assert [(fault.pointer, fault.code) for fault in refused.faults] == [(pointer, code)]

    def test_come_all_together(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        methods = [
            {"name": "kd", "temperature": {"grid": [0, -1]}},
            {"name": "combine", "methods": [{"name": "kd"}, {"name": "dkd", "beta": -1}]},
        ]
        refused = refusal(sessions, project, teacher="nobody@1", methods=methods)
        assert {fault.pointer for fault in refused.faults} == {
            "/teacher",
            "/methods/0/temperature/grid/0",
            "/methods/0/temperature/grid/1",
            "/methods/1/methods/1/beta",
        }

    def test_of_grids_hide_no_others(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        methods = [{"name": "kd", "temperature": {"grid": []}}, {"name": "dkk"}]
        training = {"seed": 1, "epochs": 0}
        refused = refusal(sessions, project, teacher="nobody@1", methods=methods, training=training)
        assert {fault.pointer for fault in refused.faults} == {
            "/methods/0/temperature/grid",
            "/methods/1/name",
            "/training/seed",
            "/training/epochs",
            "/teacher",
        }

    def test_of_too_many_jobs_show_the_product(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        values = list(range(1, 41))
        methods = [{"name": "kd", "temperature": {"grid": values}}, {"name": "dkd"}]
        training = {"epochs": {"grid": [1, 2, 3]}}
        refused = refusal(
            sessions, project, methods=methods, training=training, seeds=list(range(10))
        )
        assert refused.code == "too_many_jobs"
        assert refused.message == (
            "(41 variants of the methods + 1 baseline) x 3 of the training x 10 seeds make 1,260 "
            "jobs; a study has at most 1,000"
        )

    def test_of_grids_that_could_never_be_expanded_come_at_once(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        grid = {"grid": list(range(1000))}
        method = {"name": "ce", **{f"x{place}": grid for place in range(20)}}
        assert refusal(sessions, project, methods=[method]).code == "too_many_jobs"


@SQLITE_ONLY
class TestRefusalsWithoutData:
    def test_lead_to_the_value_within_an_object(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        methods = [{"name": "dafl", "synthesis": {"steps": {"grid": [2, 0]}, "stps": 1}}]
        refused = refusal(sessions, project, methods=methods, dataset=None)
        assert {fault.pointer: fault.code for fault in refused.faults} == {
            "/methods/0/synthesis/steps/grid/1": "invalid_minimum",
            "/methods/0/synthesis/stps": "unknown_field",
        }

    def test_name_what_the_other_methods_miss(
        self, sessions: database.Sessions, project: tables.ProjectRow
    ) -> None:
        methods = [{"name": "dafl"}, {"name": "kd"}]
        refused = refusal(sessions, project, methods=methods, dataset=None)
        assert {fault.pointer: fault.code for fault in refused.faults} == {"/dataset": "required"}
        training = {"epochs": 2, "teacher_cache": {}}
        refused = refusal(sessions, project, methods=methods, training=training)
        assert {fault.pointer: fault.code for fault in refused.faults} == {
            "/training/teacher_cache": "images_not_fixed"
        }


class TestGet:
    def test_finds_only_what_is_of_the_project(
        self, sessions: database.Sessions, project: tables.ProjectRow, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            other = keys.create_project(session, name="other")
            assert studies.get(session, project_id=project.id, study_id=study.id).id == study.id
            with pytest.raises(errors.NotFound):
                studies.get(session, project_id=other.id, study_id=study.id)


class TestPage:
    def test_filters(self, sessions: database.Sessions, project: tables.ProjectRow) -> None:
        one = {"seeds": [0], "methods": [{"name": "kd"}], "baseline": False}
        with sessions.begin() as session:
            first, second = (
                factories.study(
                    session, project_id=project.id, name=name, labels={"team": name}, **one
                )
                for name in ("a", "b")
            )
            studies.cancel(session, project_id=project.id, study_id=second.id)
            empty = keys.create_project(session, name="other")

            def found(project_id: str = project.id, **filters: Any) -> list[str]:
                page = studies.page(
                    session,
                    project_id=project_id,
                    filters=studies.StudyFilters(**filters),
                    wanted=paging.PageRequest(b"secret", "list"),
                )
                return [study.name for study in page.rows]

            assert found() == ["b", "a"]
            assert found(name="a") == ["a"]
            assert found(is_active=True) == ["a"]
            assert found(is_active=False) == ["b"]
            assert found(labels={"team": "b"}) == ["b"]
            assert found(created_after=first.created_at) == ["b"]
            assert found(created_before=second.created_at) == ["a"]
            assert found(empty.id) == []


@SQLITE_ONLY
class TestStudyStatus:
    def test_has_the_state_of_its_jobs(self) -> None:
        for states, amount_to in (
            ("validating queued", "queued"),
            ("queued running", "running"),
            ("succeeded queued", "running"),
            ("cancelled cancelling", "running"),
            ("paused", "running"),
            ("succeeded", "succeeded"),
            ("failed", "failed"),
            ("succeeded failed", "incomplete"),
            ("succeeded failed cancelled", "cancelled"),
            ("succeeded cancelled", "cancelled"),
        ):
            counts = {State(state): 2 for state in states.split()}
            assert StudyStatus(counts, 0.5, None, None).state == amount_to

    def test_counts_a_job_that_ended_as_done(
        self, sessions: database.Sessions, storage: Storage, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            first, second, *_ = factories.members(session, study)
            actions.cancel(session, project_id=study.project_id, job_id=first.id)
            lease = factories.running(session, second)
            leases.report(session, lease, progress=0.5, estimated_end_at=None, samples=[])
            status = studies.statuses(session, [study])[study.id]
            assert status.progress == pytest.approx(1.5 / 6)
            assert status.counts == {State.CANCELLED: 1, State.RUNNING: 1, State.QUEUED: 4}
            assert status.started_at == session.get_one(tables.JobRow, second.id).started_at
            assert status.finished_at is None


class TestCancel:
    def test_ends_what_waits_asks_what_runs_and_leaves_what_ended(
        self, sessions: database.Sessions, storage: Storage, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            done, running, *waiting = factories.members(session, study)
            factories.succeeded(session, storage, done)
            factories.running(session, running)
            studies.cancel(session, project_id=study.project_id, study_id=study.id)
            for job in (done, running, *waiting):
                session.refresh(job)
            assert (done.state, running.state) == (State.SUCCEEDED, State.CANCELLING)
            assert {job.state for job in waiting} == {State.CANCELLED}
            assert {job.state_reason for job in waiting} == {"cancelled_by_caller"}
            # Again is harmless.
            studies.cancel(session, project_id=study.project_id, study_id=study.id)


class TestRetry:
    def test_takes_over_the_seat_of_its_job_once(
        self, sessions: database.Sessions, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            old = factories.members(session, study)[1]
            actions.cancel(session, project_id=study.project_id, job_id=old.id)
            new = actions.retry(session, project_id=study.project_id, job_id=old.id)
            assert (new.study_id, new.study_variant, new.study_seed) == (study.id, 2, 0)
            assert (old.study_id, old.study_variant, old.study_seed) == (None, None, None)
            assert new.retry_of == old.id
            assert len(factories.members(session, study)) == 6
            status = studies.statuses(session, [study])[study.id]
            assert status.counts == {State.QUEUED: 6}
            # The old job has lost its seat: what is retried of it is a job of its own.
            other = actions.retry(session, project_id=study.project_id, job_id=old.id)
            assert other.study_id is None

    def test_leaves_no_seat_twice(
        self, sessions: database.Sessions, study: tables.StudyRow
    ) -> None:
        with sessions() as session:
            first, second, *_ = factories.members(session, study)
            second.study_variant = first.study_variant
            with pytest.raises(sa.exc.IntegrityError):
                session.flush()


class TestDelete:
    def test_hides_study_and_jobs_once_all_have_ended(
        self, sessions: database.Sessions, storage: Storage, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            done, *_ = factories.members(session, study)
            factories.succeeded(session, storage, done)
            with pytest.raises(errors.IllegalMove, match="running cannot be deleted"):
                studies.delete(session, project_id=study.project_id, study_id=study.id)
            studies.cancel(session, project_id=study.project_id, study_id=study.id)
            studies.delete(session, project_id=study.project_id, study_id=study.id)
            with pytest.raises(errors.Gone):
                studies.get(session, project_id=study.project_id, study_id=study.id)
            for job in factories.members(session, study):
                with pytest.raises(errors.Gone):
                    actions.get(session, project_id=study.project_id, job_id=job.id)
            student = session.get_one(tables.ModelVersionRow, done.student_version_id)
            assert student.deleted_at is None

    def test_of_one_of_its_jobs_is_refused(
        self, sessions: database.Sessions, study: tables.StudyRow
    ) -> None:
        with sessions.begin() as session:
            job, *_ = factories.members(session, study)
            actions.cancel(session, project_id=study.project_id, job_id=job.id)
            with pytest.raises(errors.InUse, match=study.id):
                actions.delete(session, project_id=study.project_id, job_id=job.id)


class TestCompare:
    def test_reads_what_the_jobs_have_measured(
        self, sessions: database.Sessions, storage: Storage, study: tables.StudyRow
    ) -> None:
        accuracies = {(0, 1): 0.90, (0, 2): 0.92, (0, 3): 0.91, (1, 1): 0.92, (1, 2): 0.95}
        with sessions.begin() as session:
            for job in factories.members(session, study):
                accuracy = accuracies.get((job.study_seed or 0, job.study_variant or 0))
                if accuracy is not None:
                    factories.succeeded(session, storage, job, accuracy=accuracy)
            board = studies.compare(session, study)
        best, *_ = board.rows
        assert (best.rank, best.variant.settings) == (1, {"temperature": 2.0})
        assert best.parameters == 78_042
        assert best.difference is not None
        assert best.difference.mean == pytest.approx(0.025)
        assert (best.difference.pairs, best.difference.seeds_above) == (2, 2)
        assert [row.variant.number for row in board.rows] == [2, 1, 3]
        assert [row.unfinished for row in board.rows] == [0, 0, 1]
        assert board.rows[0].runs[0].student == "digits-student@2"
        assert board.metric == "accuracy"

    @pytest.mark.parametrize(
        ("task", "metric"),
        [({"task": task}, metric) for task, metric in PRIMARY_METRICS.items()]
        + [({}, "accuracy")],  # stored before there was a second task
    )
    def test_ranks_by_the_metric_of_the_studys_task(
        self,
        sessions: database.Sessions,
        study: tables.StudyRow,
        task: dict[str, str],
        metric: str,
    ) -> None:
        spec = {key: value for key, value in study.spec.items() if key != "task"}
        study.spec = {**spec, **task}
        with sessions() as session:
            assert studies.compare(session, study).metric == metric


@SQLITE_ONLY
class TestRunOf:
    def test_takes_only_finite_numbers(self) -> None:
        result = {"scores": {"student": {"accuracy": "NaN", "ece": 0.1}, "teacher": None}}
        run = studies.run_of(1, 0, "job_1", State.SUCCEEDED, result)
        assert (run.scores, run.ece, run.teacher_scores) == ({}, 0.1, {})
        assert studies.run_of(1, 0, "job_1", State.FAILED, None).scores == {}

    def test_takes_the_metrics_that_decide(self) -> None:
        scores = {"student": {"ap": 0.3, "ap50": 0.5, "agreement": 0.8}, "teacher": {"ap": 0.6}}
        run = studies.run_of(1, 0, "job_1", State.SUCCEEDED, {"scores": scores})
        assert (run.scores, run.teacher_scores, run.agreement) == ({"ap": 0.3}, {"ap": 0.6}, 0.8)
        assert lifecycle.is_final(run.state)
