"""What a spec's parts ask of each other, from the catalog alone."""

from typing import Any

import pytest
from pydantic import ValidationError

from models_registry import catalog, errors
from models_registry.jobs import validation
from workers.distill.config.synthesis import StreamSynthesis, resolve_budget
from workers.distill.config.training import Training
from workers.distill.errors import BadRecipe
from workers.distill.methods import catalog as engine

COMBINED = {"name": "combine", "methods": [{"name": "kd"}, {"name": "dkd", "weight": 0.5}]}


def faults(
    method: dict[str, Any],
    *,
    student: str = "retort/resnet8",
    teacher: str | None = "retort/resnet20",
    **training: Any,
) -> list[tuple[str, str]]:
    asked = validation.of(catalog.complete_method(method))
    complete = catalog.complete_training(training)
    found = validation.faults(asked, complete, student=student, teacher=teacher)
    return [(fault.pointer, fault.code) for fault in found]


class TestCombination:
    def test_fills_in_every_parts_defaults_and_weight(self) -> None:
        found = catalog.complete_method(COMBINED)
        assert found["task_weight"] == 1.0
        assert [part["name"] for part in found["methods"]] == ["kd", "dkd"]
        assert [part["weight"] for part in found["methods"]] == [1.0, 0.5]
        assert found["methods"][0]["temperature"] == 4.0
        assert all("task_weight" not in part for part in found["methods"])

    def test_completing_twice_changes_nothing(self) -> None:
        once = catalog.complete_method(COMBINED)
        assert catalog.complete_method(once) == once

    @pytest.mark.parametrize(
        ("part", "pointer", "code"),
        [
            ({"name": "kdd"}, "/method/methods/1/name", "unknown_method"),
            ({"name": "ce"}, "/method/methods/1/name", "unknown_method"),
            ({"name": "ssdkd"}, "/method/methods/1/name", "unknown_method"),
            ({}, "/method/methods/1/name", "unknown_method"),
            (
                {"name": "kd", "task_weight": 1},
                "/method/methods/1/task_weight",
                "task_weight_twice",
            ),
            (
                {"name": "kd", "temperature": 0},
                "/method/methods/1/temperature",
                "invalid_exclusiveMinimum",
            ),
            ({"name": "kd", "weight": -1}, "/method/methods/1/weight", "invalid_minimum"),
            ({"name": "kd", "bta": 1}, "/method/methods/1/bta", "unknown_field"),
        ],
    )
    def test_names_the_part_that_is_wrong(
        self, part: dict[str, Any], pointer: str, code: str
    ) -> None:
        with pytest.raises(errors.Refused) as refused:
            catalog.complete_method({"name": "combine", "methods": [{"name": "dkd"}, part]})
        assert [(fault.pointer, fault.code) for fault in refused.value.faults] == [(pointer, code)]

    def test_takes_no_method_that_exists_for_misspelt(self) -> None:
        with pytest.raises(errors.Refused, match="it learns alone") as refused:
            catalog.complete_method({"name": "combine", "methods": [{"name": "ssdkd"}] * 2})
        assert "did you mean" not in str(refused.value)

    def test_needs_at_least_two_parts(self) -> None:
        with pytest.raises(errors.Refused) as refused:
            catalog.complete_method({"name": "combine", "methods": [{"name": "kd"}]})
        assert [fault.pointer for fault in refused.value.faults] == ["/method/methods"]

    def test_asks_for_what_any_part_asks_for(self) -> None:
        asked = validation.of(catalog.complete_method(COMBINED))
        assert asked.needs == {"labels", "teacher", "equal_classes"}
        assert not asked.accepts_mixed


class TestFaults:
    def test_ordinary_specs_have_none(self) -> None:
        assert faults({"name": "kd"}, mixing={"name": "mixup"}, teacher_cache=None) == []

    def test_images_are_not_mixed_where_each_needs_one_class(self) -> None:
        assert faults({"name": "dkd"}, mixing={"name": "mixup"}) == [
            ("/training/mixing", "mixing_refused")
        ]
        assert faults(COMBINED, mixing={"name": "cutmix"}) == [
            ("/training/mixing", "mixing_refused")
        ]

    def test_dot_needs_labels_and_batches_need_enough_images(self) -> None:
        dot: dict[str, Any] = {"optimizer": {"name": "dot"}}
        assert faults({"name": "kd"}, **dot) == faults({"name": "ce"}, **dot) == []
        assert faults({"name": "simkd"}, **dot) == [
            ("/training/optimizer/name", "optimizer_refused")
        ]

    def test_networks_must_show_what_a_method_looks_at(self) -> None:
        found = faults({"name": "ofd"}, student="retort/mobilenetv2", teacher="retort/mobilenetv2")
        assert ("/student/network", "not_shown") in found
        assert ("/teacher", "not_shown") in found
        assert faults({"name": "ofd"}) == []
        assert faults({"name": "ofd"}, student="timm/resnet18", teacher=None) == []

    def test_a_teacher_cache_holds_no_maps_and_needs_a_teacher(self) -> None:
        where = "/training/teacher_cache"
        assert faults({"name": "kd"}, teacher_cache={}) == []
        assert faults({"name": "fitnet"}, teacher_cache={}) == [(where, "maps_not_stored")]
        assert faults({"name": "ce"}, teacher_cache={}) == [(where, "no_teacher")]
        assert faults({"name": "mlld"}, teacher_cache={}) == [(where, "strong_not_stored")]


class TestDataFree:
    def test_recipes_of_ordinary_kinds_fit(self) -> None:
        assert faults({"name": "dafl"}, augmentation="none", precision="bfloat16") == []

    @pytest.mark.parametrize(
        ("training", "pointer", "code"),
        [
            ({"mixing": {"name": "mixup"}}, "/training/mixing", "mixing_refused"),
            ({"label_noise": 0.1}, "/training/label_noise", "no_labels"),
            ({"teacher_cache": {}}, "/training/teacher_cache", "images_not_fixed"),
            ({"augmentation": "autoaugment"}, "/training/augmentation", "augmentation_refused"),
            ({"augmentation": "randaugment"}, "/training/augmentation", "augmentation_refused"),
            ({"patience_epochs": 3}, "/training/patience_epochs", "never_chosen"),
            ({"precision": "float16"}, "/training/precision", "precision_refused"),
            ({"optimizer": {"name": "dot"}}, "/training/optimizer/name", "optimizer_refused"),
        ],
    )
    def test_what_needs_images_of_a_data_set_is_refused(
        self, training: dict[str, Any], pointer: str, code: str
    ) -> None:
        assert faults({"name": "dafl"}, **training) == [(pointer, code)]

    @pytest.mark.parametrize(
        ("training", "agrees"),
        [
            ({}, True),
            ({"augmentation": "none"}, True),
            ({"label_noise": 0.1}, False),
            ({"teacher_cache": {}}, False),
            ({"augmentation": "autoaugment"}, False),
            ({"patience_epochs": 3}, False),
            ({"precision": "float16"}, False),
            ({"mixing": {"name": "mixup"}}, False),
        ],
    )
    def test_the_engine_refuses_the_same(self, training: dict[str, Any], agrees: bool) -> None:
        method, _ = engine.find({"name": "dafl"})
        complete = catalog.complete_training(training)
        full = Training.model_validate(complete)
        if agrees:
            engine.check(method, full)
        else:
            with pytest.raises(BadRecipe):
                engine.check(method, full)
        assert (faults({"name": "dafl"}, **training) == []) is agrees

    @pytest.mark.parametrize(
        ("budget", "has_dataset", "found"),
        [
            ({"student_steps": 5}, False, []),
            ({"student_steps": None}, True, ["/method/synthesis/student_steps"]),
            (
                {"student_steps": 5, "data_scale": 0.5},
                True,
                ["/method/synthesis/student_steps"],
            ),
            (
                {"student_steps": None, "data_scale": 0.5},
                False,
                ["/method/synthesis/original_images"],
            ),
            ({"student_steps": None, "data_scale": 0.5}, True, []),
            ({"student_steps": None, "data_scale": 0.5, "original_images": 60_000}, False, []),
        ],
    )
    def test_a_budget_is_open_where_the_engine_finds_it_so(
        self, budget: dict[str, Any], has_dataset: bool, found: list[str]
    ) -> None:
        complete = catalog.complete_method({"name": "dafl", "synthesis": budget})["synthesis"]
        told = validation.faults_of_synthesis(complete, has_dataset=has_dataset)
        assert [fault.pointer for fault in told] == found
        value = StreamSynthesis.model_validate(complete)
        known = 1000 if has_dataset else None
        if found:
            with pytest.raises(BadRecipe):
                resolve_budget(value, batch_size=64, known_images=known)
        else:
            resolve_budget(value, batch_size=64, known_images=known)

    @pytest.mark.parametrize(
        ("reuse", "average_decay", "found"),
        [
            ("none", 0.9, []),
            ("latent", None, []),
            ("latent", 0.9, ["/method/synthesis/average_decay"]),
            ("images", 0.9, ["/method/synthesis/average_decay"]),
        ],
    )
    def test_an_average_makes_new_images_as_the_engine_says(
        self, reuse: str, average_decay: float | None, found: list[str]
    ) -> None:
        budget = {"reuse": reuse, "average_decay": average_decay}
        complete = catalog.complete_method({"name": "dafl", "synthesis": budget})["synthesis"]
        told = list(validation.faults_of_synthesis(complete, has_dataset=True))
        assert [fault.pointer for fault in told] == found
        if found:
            with pytest.raises(ValidationError) as refused:
                StreamSynthesis.model_validate(complete)
            assert told[0].detail in str(refused.value)
        else:
            StreamSynthesis.model_validate(complete)


class TestContradictions:
    """Held equal to the engine's, sentence by sentence."""

    def told(self, method: dict[str, Any]) -> list[errors.Fault]:
        complete = catalog.complete_method(method)
        found = list(validation.faults_of_method(complete))
        if found:
            with pytest.raises(BadRecipe) as refused:
                engine.find(complete)
            assert all(fault.detail in str(refused.value) for fault in found)
        else:
            engine.find(complete)
        return found

    @pytest.mark.parametrize("name", sorted(engine.METHODS))
    def test_ordinary_methods_have_none(self, name: str) -> None:
        assert self.told({"name": name}) == []

    @pytest.mark.parametrize(
        "name", sorted(n for n in engine.METHODS if validation.is_data_free({"name": n}))
    )
    def test_images_that_only_the_student_moves_wait_for_it(self, name: str) -> None:
        found = self.told({"name": name, "synthesis": {"warmup_calls": 2}})
        wanted = ["/method/synthesis/warmup_calls"] if name in ("dfad", "zskt") else []
        assert [fault.pointer for fault in found] == wanted

    @pytest.mark.parametrize(
        ("values", "found"),
        [
            ({"synthesis": {"keep": "best"}}, ["/method/synthesis/keep"]),
            ({"synthesis": {"keep": "best"}, "exchange_probability": 0}, []),
        ],
    )
    def test_exchanged_channels_are_those_of_the_last_images(
        self, values: dict[str, Any], found: list[str]
    ) -> None:
        told = self.told({"name": "spaceshipnet", **values})
        assert [fault.pointer for fault in told] == found

    @pytest.mark.parametrize(("prioritise", "found"), [(True, []), (False, ["/method/eviction"])])
    def test_images_leave_by_priority_where_there_are_priorities(
        self, prioritise: bool, found: list[str]
    ) -> None:
        told = self.told({"name": "ssdkd", "eviction": "lowest", "prioritise": prioritise})
        assert [fault.pointer for fault in told] == found


class TestTask:
    def test_must_be_one_that_the_method_is_for(self) -> None:
        asked = validation.of(catalog.complete_method({"name": "dafl"}))
        assert asked.tasks == ("classification", "segmentation")
        assert list(validation.faults_of_task(asked, "segmentation")) == []
        asked = validation.of(catalog.complete_method({"name": "crd"}))
        (fault,) = validation.faults_of_task(asked, "segmentation")
        assert (fault.pointer, fault.code) == ("/method/name", "wrong_task")
        assert "crd is for classification" in fault.detail

    def test_of_a_combination_is_one_that_all_parts_are_for(self) -> None:
        assert validation.of(catalog.complete_method(COMBINED)).tasks == ("classification",)
