"""Graphs, predictions and several teachers in the registry: bound, kept, told, refused."""

from typing import Any

import pytest

from models_registry import errors
from models_registry.artifacts import job_teachers, lineage, models, teacher_kinds
from models_registry.jobs import ranking, submission
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import database, paging, tables
from models_registry.persistence.storage import Storage
from tests import factories
from tests.databases import SQLITE_ONLY
from workers import inputs
from workers.distill.config import teachers

pytestmark = SQLITE_ONLY
GRAPH_TRAITS = {
    "shows": ["embedding"],
    "has_batch_norm": False,
    "gives_gradients": False,
    "limits": "its graph cannot be converted to torch: the operator Sign",
}


class Project:
    """A project with ways to add teachers and to submit jobs."""

    def __init__(
        self, sessions: database.Sessions, storage: Storage, project: tables.ProjectRow
    ) -> None:
        self.sessions, self.storage, self.id = sessions, storage, project.id

    def teacher(self, name: str, network: str = "retort/resnet8", **changes: Any) -> str:
        traits = changes.pop("traits", None)
        with self.sessions.begin() as session:
            path = teachers.file_of(network)
            file = factories.stored(session, self.storage, name.encode(), path=path)
            row = models.add_version(
                session,
                project_id=self.id,
                new=factories.new_version(name, network=network, **changes),
                files={file.path: file.sha256},
                state="ready",
            )
            row.traits = traits
            return models.reference_of(row)

    def predictions(self, **changes: Any) -> str:
        with self.sessions.begin() as session:
            new = factories.new_version(
                "table",
                network=teachers.PREDICTIONS,
                arguments={"dataset": "digits", **changes},
            )
            bound, faults = teacher_kinds.of_registration(session, project_id=self.id, new=new)
        assert faults == []
        traits = {"shows": [], "has_batch_norm": False, "gives_gradients": False, "limits": "it"}
        return self.teacher("table", teachers.PREDICTIONS, arguments=bound.arguments, traits=traits)

    def faults(self, **changes: Any) -> list[tuple[str, str, str]]:
        spec = JobSpec.model_validate(factories.spec(**changes))
        with self.sessions.begin() as session, pytest.raises(errors.Refused) as caught:
            submission.submit(session, project_id=self.id, spec=spec)
        return [(fault.pointer, fault.code, fault.detail) for fault in caught.value.faults]


@pytest.fixture
def mine(sessions: database.Sessions, storage: Storage, project: tables.ProjectRow) -> Project:
    return Project(sessions, storage, project)


class TestGraph:
    def test_teaches_what_it_shows_and_ranks_say_why_not_more(self, mine: Project) -> None:
        teacher = mine.teacher("graph", teachers.GRAPH, traits=GRAPH_TRAITS)
        wanted = {k: v for k, v in factories.spec(teacher=teacher).items() if k != "method"}
        with mine.sessions.begin() as session:
            request = ranking.MethodsRequest.model_validate(wanted)
            ranked = ranking.rank(session, project_id=mine.id, request=request)
        refusals = {one.name: [fault.detail for fault in one.refusals] for one in ranked}
        assert refusals["kd"] == refusals["rkd"] == []
        assert "the operator Sign" in refusals["fitnet"][0]
        assert "follows gradients through its teacher" in refusals["dafl"][0]

    def test_is_kept_and_given_to_the_engine_as_its_own_file(self, mine: Project) -> None:
        teacher = mine.teacher("graph", teachers.GRAPH, traits=GRAPH_TRAITS)
        with mine.sessions.begin() as session:
            job = factories.job(session, project_id=mine.id, teacher=teacher)
            assert job.spec["teacher_kinds"] == ["graph"]
            assert "teacher/model.onnx" in inputs.of(session, job.id).shared

    def test_is_never_a_student(self, mine: Project) -> None:
        mine.teacher("digits-teacher")
        (fault,) = mine.faults(student={"network": teachers.GRAPH})
        assert fault[:2] == ("/student/network", "only_teaches")


class TestPredictions:
    def test_are_bound_to_a_data_set_and_teach_on_it_alone(self, mine: Project) -> None:
        teacher = mine.predictions()
        unmoved = {"augmentation": "none"}
        with mine.sessions.begin() as session:
            job = factories.job(session, project_id=mine.id, teacher=teacher, training=unmoved)
            recipe = inputs.of(session, job.id).recipe
        assert recipe["teacher"]["arguments"]["digest"].startswith("sha256:")
        assert recipe["teacher"]["arguments"]["rows"]["train"] == 1257
        (fault,) = mine.faults(teacher=teacher)
        assert fault[:2] == ("/training/augmentation", "predictions_augmented")
        other = mine.faults(teacher=teacher, dataset="digit_scenes@1", training=unmoved)
        assert ("/teacher", "other_dataset") in [one[:2] for one in other]

    def test_of_several_views_need_their_seed(
        self, mine: Project, sessions: database.Sessions
    ) -> None:
        new = factories.new_version(
            network=teachers.PREDICTIONS, arguments={"dataset": "digits@1", "views": 4}
        )
        with sessions.begin() as session:
            _, (fault,) = teacher_kinds.of_registration(session, project_id=mine.id, new=new)
        assert fault.pointer == "/arguments/views"

    @pytest.mark.parametrize(
        ("changes", "pointer"),
        [
            ({"arguments": {"dataset": "nothing@1"}}, "/arguments/dataset"),
            ({"arguments": {"dataset": "digits@1"}, "classes": 9}, "/classes"),
            ({"arguments": {"dataset": "digits@1"}, "task": "segmentation"}, "/task"),
            ({"arguments": {"dataset": "digits@1"}, "reading": {"strict": False}}, "/strict"),
        ],
    )
    def test_are_refused_by_the_field(
        self, mine: Project, changes: dict[str, Any], pointer: str
    ) -> None:
        new = factories.new_version(network=teachers.PREDICTIONS, **changes)
        with mine.sessions.begin() as session:
            _, faults = teacher_kinds.of_registration(session, project_id=mine.id, new=new)
        assert pointer in [fault.pointer for fault in faults]


class TestSeveral:
    def test_are_pinned_kept_and_named_in_lineage(self, mine: Project) -> None:
        names = [mine.teacher("one"), mine.teacher("two", teachers.GRAPH, traits=GRAPH_TRAITS)]
        with mine.sessions.begin() as session:
            job = factories.job(
                session,
                project_id=mine.id,
                teacher=None,
                teachers=["one", "two@1"],
                teacher_weighting="confidence",
            )
            assert job.spec["teachers"] == names
            assert job.spec["teacher_kinds"] == ["weights", "graph"]
            assert [row.network for row in job_teachers.of_job(session, job)] == [
                "retort/resnet8",
                teachers.GRAPH,
            ]
            given = inputs.of(session, job.id)
            assert {"teacher-1/model.safetensors", "teacher-2/model.onnx"} <= set(given.shared)
            assert given.recipe["teacher"] is None
            assert given.recipe["teacher_weighting"] == "confidence"
            assert set(inputs.sizes(session, job.id)) >= {
                blob.sha256 for blob in given.shared.values()
            }
            student = models.add_version(
                session,
                project_id=mine.id,
                new=factories.new_version("student", job_id=job.id),
                files={},
                state="ready",
            )
            origins = lineage.backward(session, student)
            assert [models.reference_of(row) for row in origins.teachers] == names
            taught = models.get_version(session, project_id=mine.id, name="two", version=1)
            wanted = paging.PageRequest(secret=b"s", binding="b")
            assert lineage.forward(session, taught, wanted=wanted).rows == [student]

    def test_are_not_deleted_while_a_job_has_them(self, mine: Project) -> None:
        mine.teacher("one"), mine.teacher("two")
        with mine.sessions.begin() as session:
            factories.job(session, project_id=mine.id, teacher=None, teachers=["one", "two"])
        with mine.sessions.begin() as session, pytest.raises(errors.InUse):
            models.delete_version(session, project_id=mine.id, name="two", version=1)

    @pytest.mark.parametrize(
        ("changes", "place"),
        [
            ({"teachers": ["one", "one"]}, ("/teachers", "teacher_and_teachers")),
            ({"teacher": None, "teachers": ["one"]}, ("/teachers", "one_of_several")),
            ({"teacher_weighting": "logits"}, ("/teacher_weighting", "no_effect")),
        ],
    )
    def test_contradictions_are_named(
        self, mine: Project, changes: dict[str, Any], place: tuple[str, str]
    ) -> None:
        mine.teacher("one"), mine.teacher("digits-teacher")
        assert place in [fault[:2] for fault in mine.faults(**changes)]

    def test_of_other_classes_or_without_features_are_refused_by_name(self, mine: Project) -> None:
        mine.teacher("one"), mine.teacher("other", classes=9)
        found = mine.faults(teacher=None, teachers=["one", "other"])
        assert found[0][0] == "/teachers/1"
        assert "teacher 2" in found[0][2]
        mine.teacher("two")
        (fault,) = mine.faults(teacher=None, teachers=["one", "two"], method={"name": "fitnet"})
        assert teachers.SEVERAL_LIMITS in fault[2]
