"""What a submission chooses for its caller, and what it says of that."""

from typing import Any, ClassVar

import pytest

from models_registry.jobs import validation
from models_registry.jobs.spec import JobSpec


def document(
    method: dict[str, Any], training: dict[str, Any] | None = None, **changes: Any
) -> validation.Document:
    spec = {
        "name": "n",
        "teacher": "teacher@1",
        "dataset": "data@1",
        "student": {"network": "retort/resnet8"},
        "method": method,
        "training": training or {},
    }
    return validation.read(JobSpec.model_validate({**spec, **changes}).parts)


def told(read: validation.Document) -> list[str]:
    inputs = validation.JobInputs(teacher=None, initial=None, dataset=None)
    return [fault.code for fault in validation.warnings_of_inputs(read, inputs)]


class TestBalance:
    @pytest.mark.parametrize(
        ("recipe", "balance"),
        [("small", "auto"), ("tiny_imagenet", "auto"), ("cifar100", "published")],
    )
    def test_follows_the_recipe(self, recipe: str, balance: str) -> None:
        assert document({"name": "at"}, {"recipe": recipe}).method.document["balance"] == balance

    def test_is_the_callers_where_given(self) -> None:
        given = {"name": "at", "balance": 0.5}
        assert document(given, {"recipe": "cifar100"}).method.document["balance"] == 0.5

    def test_is_of_a_whole_combination(self) -> None:
        parts = [{"name": "kd"}, {"name": "at"}]
        found = document({"name": "combine", "methods": parts})
        assert found.method.document["balance"] == "auto"
        assert not any("balance" in part for part in found.method.document["methods"])

    @pytest.mark.parametrize("name", ["ce", "labelsmoothing", "simkd", "dafl", "fd"])
    def test_is_not_there_where_it_would_have_no_effect(self, name: str) -> None:
        assert "balance" not in document({"name": name}).method.document
        faults = document({"name": name, "balance": "auto"}).faults
        assert [fault.pointer for fault in faults] == ["/method/balance"]

    def test_of_a_number_needs_labels_to_compare_with(self) -> None:
        faults = document({"name": "at", "task_weight": 0, "balance": 1}).faults
        assert [fault.code for fault in faults] == ["balance_without_task"]
        assert not document({"name": "at", "task_weight": 0}).faults


class TestLabels:
    @pytest.mark.parametrize(
        "method",
        [
            {"name": "mlld"},
            {"name": "mlld", "balance": 0.5},
            {"name": "kd", "standardize": "sample"},
        ],
    )
    def test_have_weight_1_beside_a_teacher_that_is_held(self, method: dict[str, Any]) -> None:
        read = document(method)
        assert read.method.document["task_weight"] == 1
        assert told(read) == ["raised_labels"]

    @pytest.mark.parametrize(
        ("method", "training"),
        [
            ({"name": "kd"}, {}),
            ({"name": "mlld", "balance": "published"}, {}),
            ({"name": "kd", "standardize": "sample"}, {"recipe": "cifar100"}),
            ({"name": "mlld", "task_weight": 0.1}, {}),
        ],
    )
    def test_keep_their_published_weight_elsewhere(
        self, method: dict[str, Any], training: dict[str, Any]
    ) -> None:
        read = document(method, training)
        assert read.method.document["task_weight"] == 0.1
        assert not told(read)

    def test_keep_the_weight_that_a_caller_gives(self) -> None:
        read = document({"name": "mlld", "task_weight": 0.5})
        assert read.method.document["task_weight"] == 0.5
        assert not told(read)

    @pytest.mark.parametrize(("name", "codes"), [("kd", ["small_labels"]), ("ce", [])])
    def test_weigh_little_beside_a_teacher_with_a_mean_over_classes(
        self, name: str, codes: list[str]
    ) -> None:
        assert told(document({"name": name}, {"task_loss": {"name": "bce"}})) == codes

    def test_are_told_of_in_a_spec_that_was_completed(self) -> None:
        completed = document({"name": "mlld"})
        again = document(completed.method.document, completed.training.document)
        assert told(again) == ["raised_labels"]

    def test_of_a_combination_are_learned_once(self) -> None:
        parts = [{"name": "mlld"}, {"name": "kd"}]
        read = document({"name": "combine", "methods": parts})
        assert read.method.document["task_weight"] == 1
        assert not told(read)


class TestMeasuredBelow:
    SEGMENTER: ClassVar[dict[str, Any]] = {
        "task": "segmentation",
        "student": {"network": "retort/segmenter"},
    }

    def test_is_told_of_a_method_that_did_harm_in_the_task(self) -> None:
        read = document({"name": "densepcka"}, **self.SEGMENTER)
        inputs = validation.JobInputs(teacher=None, initial=None, dataset=None)
        [fault] = validation.warnings_of_inputs(read, inputs)
        assert (fault.code, fault.pointer) == ("measured_below", "/method/name")
        assert "method densepcka ended" in fault.detail
        assert "scenes of 96x96 pixels" in fault.detail
        assert told(document({"name": "simkd"})) == ["measured_below"]

    @pytest.mark.parametrize(
        ("method", "changes"),
        [
            ({"name": "cwd"}, SEGMENTER),
            ({"name": "densepcka", "balance": "published"}, SEGMENTER),
            ({"name": "densepcka", "axis": "batch", "centered": True}, SEGMENTER),
            ({"name": "densepcka"}, {"task": "detection", "student": {"network": "retort/fcos"}}),
            ({"name": "dkd"}, {}),
        ],
    )
    def test_is_not_told_of_others(self, method: dict[str, Any], changes: dict[str, Any]) -> None:
        assert not told(document(method, **changes))


class TestShareOfEpochs:
    @pytest.mark.parametrize(
        ("method", "field", "epochs", "expected"),
        [
            ("dkd", "warmup_epochs", 240, 20),
            ("dkd", "warmup_epochs", 15, 2),
            ("dkd", "warmup_epochs", 1, 1),
            ("reviewkd", "warmup_epochs", 30, 3),
            ("ctkd", "curriculum_epochs", 240, 10),
            ("ctkd", "curriculum_epochs", 50, 3),
        ],
    )
    def test_is_written_into_the_spec(
        self, method: str, field: str, epochs: int, expected: int
    ) -> None:
        found = document({"name": method}, {"epochs": epochs})
        assert found.method.document[field] == expected

    def test_is_of_each_part_of_a_combination(self) -> None:
        parts = [{"name": "dkd"}, {"name": "dkd", "warmup_epochs": 7}]
        found = document({"name": "combine", "methods": parts}, {"epochs": 48})
        assert [part["warmup_epochs"] for part in found.method.document["methods"]] == [4, 7]

    def test_is_left_to_the_method_where_a_task_has_another_one(self) -> None:
        student = {"network": "retort/fcos"}
        found = document({"name": "reviewkd"}, task="detection", student=student)
        assert found.method.document["warmup_epochs"] is None


class TestLearningRate:
    @pytest.mark.parametrize(
        ("network", "method", "rate"),
        [
            ("retort/shufflev2", "kd", 0.01),
            ("retort/mobilenetv2", "mlld", 0.01),
            ("retort/resnet8", "mlld", 0.025),
            ("retort/resnet8", "kd", 0.05),
        ],
    )
    def test_is_that_of_the_papers_and_says_so(
        self, network: str, method: str, rate: float
    ) -> None:
        recipe = {"recipe": "cifar100"}
        read = document({"name": method}, recipe, student={"network": network})
        assert not read.faults
        assert read.training.document["optimizer"]["learning_rate"] == rate
        assert told(read) == ["published_rate"] * (rate != 0.05)

    @pytest.mark.parametrize(
        ("training", "rate"),
        [
            ({"recipe": "small"}, 0.05),
            ({"recipe": "cifar100", "optimizer": {"learning_rate": 0.2}}, 0.2),
            ({"recipe": "cifar100", "optimizer": {"name": "adamw"}}, 1e-3),
        ],
    )
    def test_is_the_callers_or_the_recipes_otherwise(
        self, training: dict[str, Any], rate: float
    ) -> None:
        read = document({"name": "mlld"}, training)
        assert read.training.document["optimizer"]["learning_rate"] == rate
        assert "published_rate" not in told(read)
