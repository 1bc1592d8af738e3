"""JobSpec: what can be said without knowing the engine or the registry."""

from typing import Any

import pydantic
import pytest

from models_registry.jobs.spec import JobSpec
from models_registry.studies.spec import StudySpec
from tests import factories


def read(**changes: Any) -> JobSpec:
    return JobSpec.model_validate(factories.spec(**changes))


class TestJobSpec:
    def test_fills_in_what_is_left_out(self) -> None:
        found = read()
        assert (found.max_attempts, found.priority, found.baseline) == (3, 0, False)
        assert found.resources.accelerator == "any"
        assert found.student.register_as is None

    def test_survives_json(self) -> None:
        found = read(labels={"team": "vision"}, resources={"max_runtime_seconds": 60})
        assert JobSpec.model_validate_json(found.model_dump_json()) == found

    def test_never_changes(self) -> None:
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            setattr(read(), "name", "another")  # noqa: B010 - mypy knows it already

    @pytest.mark.parametrize(
        ("changes", "where"),
        [
            ({"surprise": 1}, ("surprise",)),
            ({"student": {"network": "retort/resnet8", "depth": 8}}, ("student", "depth")),
            ({"resources": {"gpus": 1}}, ("resources", "gpus")),
            ({"name": ""}, ("name",)),
            ({"name": "n" * 201}, ("name",)),
            ({"task": "poetry"}, ("task",)),
            ({"method": {"temperature": 4}}, ("method",)),
            ({"method": {"name": 7}}, ("method",)),
            ({"max_attempts": 0}, ("max_attempts",)),
            ({"max_attempts": 11}, ("max_attempts",)),
            ({"priority": 10}, ("priority",)),
            ({"priority": -1}, ("priority",)),
            ({"resources": {"devices": 0}}, ("resources", "devices")),
            ({"resources": {"devices": 17}}, ("resources", "devices")),
            ({"resources": {"accelerator": "tpu"}}, ("resources", "accelerator")),
            ({"resources": {"max_runtime_seconds": 0}}, ("resources", "max_runtime_seconds")),
            (
                {"resources": {"queue_deadline_seconds": -1}},
                ("resources", "queue_deadline_seconds"),
            ),
            (
                {"student": {"network": "n", "register_as": "Has Capitals"}},
                ("student", "register_as"),
            ),
            ({"student": {"network": "n", "register_as": "name\n"}}, ("student", "register_as")),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_refuses_what_is_misspelt_or_out_of_range(
        self, changes: dict[str, Any], where: tuple[str, ...]
    ) -> None:
        with pytest.raises(pydantic.ValidationError) as refused:
            read(**changes)
        assert [error["loc"] for error in refused.value.errors()] == [where]


class TestLabels:
    @pytest.mark.parametrize(
        "labels",
        [
            {},
            {"k" * 63: "v" * 255},
            {"empty": ""},
            {f"label-{number}": "x" for number in range(32)},
        ],
        ids=["none", "longest", "without value", "most"],
    )
    def test_within_their_limits_are_kept(self, labels: dict[str, str]) -> None:
        assert read(labels=labels).labels == labels

    @pytest.mark.parametrize(
        "labels",
        [
            {"k" * 64: "v"},
            {"k": "v" * 256},
            {"": "v"},
            {"k": 1},
            {f"label-{number}": "x" for number in range(33)},
        ],
        ids=["long key", "long value", "empty key", "not text", "too many"],
    )
    def test_beyond_their_limits_are_refused(self, labels: dict[str, Any]) -> None:
        with pytest.raises(pydantic.ValidationError, match="labels"):
            read(labels=labels)


class TestStudySpec:
    def read(self, **changes: Any) -> StudySpec:
        return StudySpec.model_validate(factories.study_spec(**changes))

    def test_has_a_baseline_unless_told_otherwise(self) -> None:
        assert self.read().baseline is True
        assert self.read(baseline=False).baseline is False

    def test_survives_json(self) -> None:
        found = self.read(labels={"team": "vision"})
        assert StudySpec.model_validate_json(found.model_dump_json()) == found

    @pytest.mark.parametrize(
        ("changes", "where"),
        [
            ({"method": {"name": "kd"}}, ("method",)),
            ({"methods": []}, ("methods",)),
            ({"methods": [{"name": "kd"}, {"temperature": 4}]}, ("methods", 1)),
            ({"methods": [{"name": {"grid": ["kd", "dkd"]}}]}, ("methods", 0)),
            ({"seeds": []}, ("seeds",)),
            ({"seeds": list(range(101))}, ("seeds",)),
            ({"seeds": [1, 2, 1]}, ("seeds",)),
            ({"seeds": [0, -1]}, ("seeds", 1)),
            ({"seeds": [2**31]}, ("seeds", 0)),
            ({"name": ""}, ("name",)),
            ({"labels": {"": "v"}}, ("labels",)),
        ],
        ids=lambda value: str(value)[:50],
    )
    def test_refuses_what_is_misspelt_or_out_of_range(
        self, changes: dict[str, Any], where: tuple[str | int, ...]
    ) -> None:
        with pytest.raises(pydantic.ValidationError) as refused:
            self.read(**changes)
        assert [error["loc"] for error in refused.value.errors()] == [where]

    def test_needs_seeds(self) -> None:
        body = factories.study_spec()
        del body["seeds"]
        with pytest.raises(pydantic.ValidationError, match="seeds"):
            StudySpec.model_validate(body)


class TestAllFaults:
    def test_a_missing_name_hides_no_misspelt_method_and_no_contradiction(self) -> None:
        with pytest.raises(pydantic.ValidationError) as refused:
            JobSpec.model_validate(
                {
                    "student": {"network": "retort/resnet9"},
                    "method": {"name": "kdd"},
                    "training": {"epochs": 0, "optimizer": {"nesterov": True, "momentum": 0}},
                    "priority": 99,
                }
            )
        assert [(fault["loc"], fault["type"]) for fault in refused.value.errors()] == [
            (("name",), "missing"),
            (("priority",), "less_than_equal"),
            (("method", "name"), "unknown_method"),
            (("training", "epochs"), "invalid_minimum"),
            (("training", "optimizer", "nesterov"), "nesterov_without_momentum"),
            (("student", "network"), "unknown_network"),
        ]

    def test_a_part_at_fault_is_told_once_and_the_others_beside_it(self) -> None:
        with pytest.raises(pydantic.ValidationError) as refused:
            JobSpec.model_validate(
                {
                    "name": "n",
                    "task": "nothing",
                    "student": {"network": 3},
                    "method": {"temperature": 4},
                    "training": {"recipe": "nowhere"},
                }
            )
        assert [fault["loc"] for fault in refused.value.errors()] == [
            ("task",),
            ("student", "network"),
            ("method",),
            ("training", "recipe"),
        ]

    def test_of_a_study_come_together_each_at_its_place(self) -> None:
        with pytest.raises(pydantic.ValidationError) as refused:
            StudySpec.model_validate(
                {
                    "teacher": "teacher@1",
                    "student": {"network": "retort/resnet9"},
                    "dataset": "digits@1",
                    "methods": [
                        {"temperature": 4},
                        {"name": "kdd"},
                        {"name": "kd", "temperature": {"grid": [4, 0]}},
                        {"name": "kd", "temperature": {"grid": []}},
                    ],
                    "training": {"epochs": {"grid": [1, 0]}, "mixing": {"name": "mixupp"}},
                    "seeds": [],
                }
            )
        faults = [(fault["loc"], fault["type"]) for fault in refused.value.errors()]
        assert len(faults) == len(set(faults))
        assert set(faults) == {
            (("name",), "missing"),
            (("methods", 0), "value_error"),
            (("seeds",), "too_short"),
            (("methods", "3", "temperature", "grid"), "bad_grid"),
            (("methods", "1", "name"), "unknown_method"),
            (("training", "mixing", "name"), "unknown_name"),
            (("student", "network"), "unknown_network"),
            (("methods", "2", "temperature", "grid", "1"), "invalid_exclusiveMinimum"),
            (("training", "epochs", "grid", "1"), "invalid_minimum"),
        }

    @pytest.mark.parametrize(
        "changes",
        [
            {"methods": []},
            {"methods": "kd"},
            {"methods": [7]},
            {"methods": [{"temperature": 4}]},
            {"seeds": 3},
            {"baseline": "maybe"},
        ],
        ids=str,
    )
    def test_of_the_training_of_a_study_are_told_whatever_else_is(
        self, changes: dict[str, Any]
    ) -> None:
        body = factories.study_spec(**changes, training={"epochs": {"grid": [0, 1]}})
        with pytest.raises(pydantic.ValidationError) as refused:
            StudySpec.model_validate(body)
        first, last = refused.value.errors()
        assert first["loc"][0] in changes
        assert last["loc"] == ("training", "epochs", "grid", "0")

    @pytest.mark.parametrize("training", [7, {"grid": [1]}], ids=str)
    def test_of_the_methods_of_a_study_are_told_whatever_the_training_is(
        self, training: object
    ) -> None:
        body = factories.study_spec(name="", methods=[{"name": "kdd"}], training=training)
        with pytest.raises(pydantic.ValidationError) as refused:
            StudySpec.model_validate(body)
        assert ("methods", "0", "name") in [fault["loc"] for fault in refused.value.errors()]
