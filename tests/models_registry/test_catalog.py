"""What can be asked for: suggestions, bounds, defaults, and agreement with the engine."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models_registry import catalog, errors
from workers.distill.config.training import expand


def refusal_of_training(given_fields: dict[str, Any]) -> errors.Refused:
    with pytest.raises(errors.Refused) as refused:
        catalog.complete_training(given_fields)
    return refused.value


def pointers(refused: errors.Refused) -> list[tuple[str, str]]:
    return [(fault.pointer, fault.code) for fault in refused.faults]


class TestNearest:
    def test_suggests_a_close_name(self) -> None:
        assert catalog.nearest("resnet9", ["resnet8", "vgg8"]) == "; did you mean 'resnet8'?"

    def test_says_nothing_where_none_is_close(self) -> None:
        assert catalog.nearest("zebra", ["resnet8", "vgg8"]) == ""


class TestLoad:
    def test_reads_the_file_once(self) -> None:
        assert catalog.load() is catalog.load()

    def test_holds_recipes_that_pass_their_own_check(self) -> None:
        for name, full in catalog.load().recipes.items():
            assert catalog.complete_training({"recipe": name}) == full

    def test_holds_methods_whose_defaults_pass_their_own_check(self) -> None:
        for name, method in catalog.load().methods.items():
            if not method["params_schema"].get("required"):
                assert catalog.complete_method({"name": name})["name"] == name


class TestMethod:
    def test_fills_in_defaults_and_keeps_what_was_given(self) -> None:
        found = catalog.complete_method({"name": "kd", "temperature": 2})
        properties = catalog.load().methods["kd"]["params_schema"]["properties"]
        assert found["temperature"] == 2
        assert found["kd_weight"] == properties["kd_weight"]["default"]
        assert set(found) == {"name", *properties}

    def test_suggests_the_nearest_when_unknown(self) -> None:
        with pytest.raises(errors.Refused, match="did you mean 'dkd'") as refused:
            catalog.complete_method({"name": "dkdd"})
        assert pointers(refused.value) == [("/method/name", "unknown_method")]

    def test_suggests_the_nearest_hyper_parameter(self) -> None:
        with pytest.raises(errors.Refused, match="did you mean 'temperature'") as refused:
            catalog.complete_method({"name": "kd", "temperatur": 4})
        assert pointers(refused.value) == [("/method/temperatur", "unknown_field")]

    def test_names_bound_and_value_of_one_out_of_range(self) -> None:
        with pytest.raises(errors.Refused, match=r"temperature must be .* got -4") as refused:
            catalog.complete_method({"name": "kd", "temperature": -4})
        assert refused.value.code == "invalid_hyperparameters"
        assert refused.value.faults[0].pointer == "/method/temperature"

    def test_names_every_fault_at_once(self) -> None:
        with pytest.raises(errors.Refused) as refused:
            catalog.complete_method({"name": "kd", "b": 1, "a": 1, "temperature": "hot"})
        assert {fault.pointer for fault in refused.value.faults} == {
            "/method/a",
            "/method/b",
            "/method/temperature",
        }


class TestNestedParameters:
    def test_may_be_given_in_part_and_are_filled_with_the_methods_own_defaults(self) -> None:
        """The same object has other defaults in another method."""
        for name in ("dafl", "fast"):
            default = catalog.load().methods[name]["params_schema"]["properties"]["synthesis"]
            found = catalog.complete_method({"name": name, "synthesis": {"steps": 7}})
            assert found["synthesis"] == {**default["default"], "steps": 7}
            assert found["temperature"] == catalog.complete_method({"name": name})["temperature"]

    def test_completing_twice_changes_nothing(self) -> None:
        budget = {"student_steps": None, "data_scale": 0.5}
        once = catalog.complete_method({"name": "fast", "synthesis": budget})
        assert once["synthesis"]["student_steps"] is None
        assert catalog.complete_method(once) == once

    @pytest.mark.parametrize(
        ("synthesis", "pointer", "code", "hint"),
        [
            ({"stps": 7}, "/method/synthesis/stps", "unknown_field", "did you mean 'steps'"),
            ({"steps": 0}, "/method/synthesis/steps", "invalid_minimum", "at least 1, got 0"),
            (
                {"generator": "huge"},
                "/method/synthesis/generator",
                "invalid_enum",
                "generator must be one of",
            ),
            (7, "/method/synthesis", "invalid_type", "must be of type object"),
        ],
    )
    def test_that_are_wrong_are_named_where_they_stand(
        self, synthesis: object, pointer: str, code: str, hint: str
    ) -> None:
        with pytest.raises(errors.Refused, match=hint) as refused:
            catalog.complete_method({"name": "dafl", "synthesis": synthesis})
        assert pointers(refused.value) == [(pointer, code)]


class TestCheckNetwork:
    def test_takes_ours_with_their_arguments(self) -> None:
        catalog.check_network("retort/resnet8", {"widths": [8, 8, 16, 32]}, pointer="/student")

    def test_takes_foreign_ones_and_tags_of_pretrained_weights(self) -> None:
        catalog.check_network("timm/resnet18", {}, pointer="/student")
        catalog.check_network("timm/resnet18.a1_in1k", {"drop_rate": 0.1}, pointer="/student")
        catalog.check_network("torchvision/resnet18", {}, pointer="/student")

    @pytest.mark.parametrize(
        ("name", "meant"),
        [
            ("retort/resnet9", "retort/resnet8"),
            ("resnet8", "retort/resnet8"),
            ("timm/resnet181", "timm/resnet18"),
            ("torchvision/resnet18.a1_in1k", "resnet18"),
        ],
    )
    def test_suggests_the_nearest_when_unknown(self, name: str, meant: str) -> None:
        with pytest.raises(errors.Refused, match=f"did you mean '.*{meant}") as refused:
            catalog.check_network(name, {}, pointer="/student")
        assert pointers(refused.value) == [("/student/network", "unknown_network")]

    def test_refuses_arguments_that_ours_do_not_take(self) -> None:
        with pytest.raises(errors.Refused, match="did you mean 'widths'") as refused:
            catalog.check_network("retort/resnet8", {"width": 3}, pointer="/student")
        assert pointers(refused.value) == [("/student/arguments/width", "unknown_field")]

    def test_points_into_a_list(self) -> None:
        with pytest.raises(errors.Refused, match="widths/2 must be at least 1, got 0") as refused:
            catalog.check_network("retort/resnet8", {"widths": [8, 8, 0, 8]}, pointer="")
        assert refused.value.faults[0].pointer == "/arguments/widths/2"


class TestTraining:
    def test_starts_from_the_small_recipe(self) -> None:
        assert catalog.complete_training({}) == catalog.load().recipes["small"]

    def test_suggests_the_nearest_recipe(self) -> None:
        refused = refusal_of_training({"recipe": "cifar10"})
        assert pointers(refused) == [("/training/recipe", "unknown_recipe")]
        assert "did you mean 'cifar100'" in str(refused)

    @pytest.mark.parametrize("name", [None, [], {}, 3, True])
    def test_refuses_a_recipe_that_is_not_a_name(self, name: object) -> None:
        assert pointers(refusal_of_training({"recipe": name})) == [
            ("/training/recipe", "unknown_recipe")
        ]

    def test_milestones_follow_epochs(self) -> None:
        found = catalog.complete_training({"recipe": "cifar100", "epochs": 24})
        assert found["schedule"]["milestones"] == [15, 18, 21]

    def test_milestones_follow_epochs_also_beside_another_factor(self) -> None:
        found = catalog.complete_training({"epochs": 100, "schedule": {"factor": 0.5}})
        assert found["schedule"] == {
            "name": "step",
            "milestones": [50, 75, 90],
            "factor": 0.5,
            "warmup_epochs": 0.0,
        }

    def test_milestones_stay_where_the_caller_puts_them(self) -> None:
        found = catalog.complete_training({"epochs": 10, "schedule": {"milestones": [1]}})
        assert found["schedule"] == {
            "name": "step",
            "milestones": [1],
            "factor": 0.1,
            "warmup_epochs": 0.0,
        }

    def test_milestones_never_drop_the_rate_before_the_first_epoch(self) -> None:
        found = catalog.complete_training({"epochs": 1})
        assert found["schedule"]["milestones"] == []

    def test_another_kind_brings_its_own_defaults_and_none_of_the_old_ones(self) -> None:
        found = catalog.complete_training(
            {"schedule": {"name": "cosine"}, "optimizer": {"name": "adamw", "beta1": 0.8}}
        )
        assert found["schedule"] == {"name": "cosine", "warmup_epochs": 0, "final_factor": 0.0}
        assert found["optimizer"] == {
            "name": "adamw",
            "beta1": 0.8,
            "beta2": 0.999,
            "learning_rate": 0.001,
            "weight_decay": 0.05,
        }

    @pytest.mark.parametrize(
        ("fields", "pointer", "sentence"),
        [
            ({"epoch": 3}, "/training/epoch", "did you mean 'epochs'"),
            ({"epochs": 0}, "/training/epochs", "epochs must be at least 1, got 0"),
            ({"epochs": "ten"}, "/training/epochs", 'of type integer, got "ten"'),
            ({"epochs": True}, "/training/epochs", "of type integer, got true"),
            ({"epochs": 10**400}, "/training/epochs", "epochs must be at most"),
            ({"precision": "float8"}, "/training/precision", "must be one of"),
            ({"clip_norm": 0}, "/training/clip_norm", "must be greater than 0, got 0"),
            ({"clip_norm": "x"}, "/training/clip_norm", "of type number or null"),
            (
                {"optimizer": {"learning_rat": 1}},
                "/training/optimizer/learning_rat",
                "did you mean 'learning_rate'",
            ),
            (
                {"optimizer": {"name": "adamw", "learning_rate": -1}},
                "/training/optimizer/learning_rate",
                "must be greater than 0, got -1",
            ),
            ({"optimizer": {"name": "adam"}}, "/training/optimizer/name", "did you mean 'adamw'"),
            ({"optimizer": {"name": []}}, "/training/optimizer/name", "no optimizer is called"),
            ({"schedule": "cosine"}, "/training/schedule", "of type object"),
            ({"schedule": None}, "/training/schedule", "of type object"),
            ({"teacher_cache": "x"}, "/training/teacher_cache", "of type object or null"),
            (
                {"schedule": {"milestones": [3, -1]}},
                "/training/schedule/milestones/1",
                "milestones/1 must be at least 0",
            ),
            (
                {"schedule": {"name": "cosine", "milestones": [1]}},
                "/training/schedule/milestones",
                "unknown field 'milestones'",
            ),
            ({"a/b~c": 1}, "/training/a~1b~0c", "unknown field"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_says_which_field_is_wrong_and_what_would_be_right(
        self, fields: dict[str, Any], pointer: str, sentence: str
    ) -> None:
        refused = refusal_of_training(fields)
        assert refused.code == "invalid_training"
        assert [fault.pointer for fault in refused.faults] == [pointer]
        assert sentence in refused.faults[0].detail
        assert len(refused.faults[0].detail) < 500

    @given(
        fields=st.fixed_dictionaries(
            {},
            optional={
                "recipe": st.sampled_from(["small", "cifar100", "imagenet"]),
                "epochs": st.integers(1, 400),
                "batch_size": st.integers(2, 512),
                "seed": st.integers(0, 2**31 - 1),
                "augmentation": st.sampled_from(["none", "standard"]),
                "clip_norm": st.none() | st.floats(0.1, 10),
                "optimizer": st.sampled_from(
                    [{}, {"name": "sgd"}, {"name": "adamw"}, {"learning_rate": 0.3}]
                ),
                "schedule": st.sampled_from(
                    [
                        {},
                        {"name": "step"},
                        {"factor": 0.2},
                        {"milestones": [1, 2]},
                        {"milestones": None},
                        {"name": "cosine", "warmup_epochs": 1},
                        {"name": "constant"},
                    ]
                ),
            },
        ).filter(
            # What the recipe resizes, nothing else may leave as it is: refused, with the way out.
            lambda fields: (
                (fields.get("recipe"), fields.get("augmentation")) != ("imagenet", "none")
            )
        )
    )
    def test_fills_in_what_the_engine_would(self, fields: dict[str, Any]) -> None:
        assert catalog.complete_training(fields) == expand(fields).model_dump(mode="json")

    def test_leaves_the_catalog_as_it_was(self) -> None:
        catalog.complete_training({"epochs": 7})["schedule"]["milestones"].append(99)
        assert catalog.load().recipes["small"]["schedule"]["milestones"] == [15, 22, 27]


class TestCombinationWithoutParts:
    def test_is_refused_by_the_missing_field_not_by_a_crash(self) -> None:
        with pytest.raises(errors.Refused) as refused:
            catalog.complete_method({"name": "combine"})
        assert "methods" in refused.value.faults[0].detail
