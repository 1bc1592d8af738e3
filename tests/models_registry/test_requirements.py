"""What a spec's parts ask of each other, from the catalog alone."""

from typing import Any

import pytest

from models_registry import catalog, errors, requirements

COMBINED = {"name": "combine", "methods": [{"name": "kd"}, {"name": "dkd", "weight": 0.5}]}


def faults(
    method: dict[str, Any],
    *,
    student: str = "retort/resnet8",
    teacher: str | None = "retort/resnet20",
    **training: Any,
) -> list[tuple[str, str]]:
    asked = requirements.of(catalog.complete_method(method))
    complete = catalog.complete_training(training)
    found = requirements.faults(asked, complete, student=student, teacher=teacher)
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

    def test_needs_at_least_two_parts(self) -> None:
        with pytest.raises(errors.Refused) as refused:
            catalog.complete_method({"name": "combine", "methods": [{"name": "kd"}]})
        assert [fault.pointer for fault in refused.value.faults] == ["/method/methods"]

    def test_asks_for_what_any_part_asks_for(self) -> None:
        asked = requirements.of(catalog.complete_method(COMBINED))
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
