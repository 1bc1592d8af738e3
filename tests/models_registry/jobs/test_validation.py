"""What a spec's parts ask of each other, from the catalog and the rows of the inputs."""

from typing import Any

import pytest

from models_registry import catalog, errors
from models_registry.jobs import validation
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import tables

COMBINED = {"name": "combine", "methods": [{"name": "kd"}, {"name": "dkd", "weight": 0.5}]}
IMAGES = {"channels": 3, "height": 32, "width": 32, "mean": [0.0] * 3, "std": [1.0] * 3}


def told(
    method: dict[str, Any],
    *,
    student: str = "retort/resnet8",
    teacher: str | None = "retort/resnet20",
    side: int = 32,
    has_dataset: bool = True,
    training: dict[str, Any] | None = None,
    task: str = "classification",
    arguments: dict[str, Any] | None = None,
    start_classes: int | None = None,
) -> list[errors.Fault]:
    """Return the faults of a spec with ten classes; start weights are of so many, if any."""
    size = {**IMAGES, "height": side, "width": side}
    classes = [str(label) for label in range(10)]
    spec = JobSpec.model_validate(
        {
            "name": "n",
            "task": task,
            "method": method,
            "training": training or {},
            "student": {
                "network": student,
                "arguments": arguments or {},
                "initial": None if start_classes is None else "start@1",
            },
            "teacher": teacher and "teacher@1",
            "dataset": "data@1" if has_dataset else None,
        }
    )
    inputs = validation.JobInputs(
        teacher=None
        if teacher is None
        else tables.ModelVersionRow(
            network=teacher,
            arguments=arguments or {},
            task=task,
            classes=classes,
            input=size,
            state="ready",
        ),
        initial=None
        if start_classes is None
        else tables.ModelVersionRow(
            network=student,
            arguments=arguments or {},
            task=task,
            classes=[f"other {label}" for label in range(start_classes)],
            input=size,
            state="ready",
        ),
        dataset=tables.DatasetVersionRow(task=task, classes=classes, input=size, state="ready")
        if has_dataset
        else None,
    )
    document = validation.read(spec.parts)
    return [*document.faults, *validation.faults_of_inputs(document, inputs)]


def faults(method: dict[str, Any], **case: Any) -> list[tuple[str, str]]:
    networks = {key: case.pop(key) for key in ("student", "teacher", "side") if key in case}
    return [(fault.pointer, fault.code) for fault in told(method, **networks, training=case)]


class TestStartWeights:
    def test_of_a_probe_may_be_of_any_classes_and_must_be_there(self) -> None:
        probe = {"name": "linear_probe"}
        assert told(probe, teacher=None, start_classes=7) == []
        (fault,) = told(probe, teacher=None)
        assert (fault.pointer, fault.code) == ("/student/initial", "required")
        (fault,) = told({"name": "ce"}, teacher=None, start_classes=7)
        assert (fault.pointer, fault.code) == ("/student/initial", "class_count")


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
        asked = catalog.read_method(COMBINED).description
        assert asked is not None
        assert set(asked.needs) == {"labels", "teacher", "equal_classes"}
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
        assert faults({"name": "ofd"}, student="timm/resnet18", teacher="timm/resnet18") == []

    def test_images_must_be_large_enough_for_the_student(self) -> None:
        (fault,) = told({"name": "kd"}, student="retort/mobilenetv2", side=8)
        assert (fault.pointer, fault.code) == ("/student/network", "image_too_small")
        assert fault.detail == "retort/mobilenetv2 needs images of at least 16x16, got 8x8"

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
            ({"keep_best_epochs": 3}, "/training/keep_best_epochs", "never_chosen"),
            ({"precision": "float16"}, "/training/precision", "precision_refused"),
            ({"optimizer": {"name": "dot"}}, "/training/optimizer/name", "optimizer_refused"),
        ],
    )
    def test_what_needs_images_of_a_data_set_is_refused(
        self, training: dict[str, Any], pointer: str, code: str
    ) -> None:
        assert faults({"name": "dafl"}, **training) == [(pointer, code)]

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
    def test_a_budget_says_how_many_steps_the_student_makes(
        self, budget: dict[str, Any], has_dataset: bool, found: list[str]
    ) -> None:
        refused = told({"name": "dafl", "synthesis": budget}, has_dataset=has_dataset)
        assert [fault.pointer for fault in refused] == found

    @pytest.mark.parametrize(
        ("reuse", "average_decay", "found"),
        [
            ("none", 0.9, []),
            ("latent", None, []),
            ("latent", 0.9, ["/method/synthesis/average_decay"]),
            ("images", 0.9, ["/method/synthesis/average_decay"]),
        ],
    )
    def test_an_average_makes_new_images(
        self, reuse: str, average_decay: float | None, found: list[str]
    ) -> None:
        budget = {"reuse": reuse, "average_decay": average_decay}
        refused = told({"name": "dafl", "synthesis": budget})
        assert [fault.pointer for fault in refused] == found


NAMES = sorted(catalog.load().methods.keys() - {"combine"})


class TestContradictions:
    @pytest.mark.parametrize("name", NAMES)
    def test_ordinary_methods_have_none(self, name: str) -> None:
        task = catalog.load().methods[name]["tasks"][0]
        networks = {
            "classification": "retort/resnet8",
            "segmentation": "retort/fcn",
            "detection": "retort/fcos",
        }
        needed = catalog.describe_method(name).required_features("student", task)
        network = "retort/fasterrcnn" if "proposals" in needed else networks[task]
        arguments = {"reg_max": 16} if "distributions" in needed else {}
        starts = "initial" in catalog.describe_method(name).needs
        found = told(
            {"name": name},
            student=network,
            teacher=network,
            task=task,
            arguments=arguments,
            start_classes=10 if starts else None,
        )
        assert found == []

    @pytest.mark.parametrize(
        "name", [name for name in NAMES if validation.is_data_free({"name": name})]
    )
    def test_images_that_only_the_student_moves_wait_for_it(self, name: str) -> None:
        found = told({"name": name, "synthesis": {"warmup_calls": 2}})
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
        refused = told({"name": "spaceshipnet", **values})
        assert [fault.pointer for fault in refused] == found

    @pytest.mark.parametrize(("prioritise", "found"), [(True, []), (False, ["/method/eviction"])])
    def test_images_leave_by_priority_where_there_are_priorities(
        self, prioritise: bool, found: list[str]
    ) -> None:
        refused = told({"name": "ssdkd", "eviction": "lowest", "prioritise": prioritise})
        assert [fault.pointer for fault in refused] == found


class TestTask:
    def test_must_be_one_that_the_method_is_for(self) -> None:
        asked = catalog.describe_method("dafl")
        assert asked.tasks == ("classification", "segmentation")

    def test_of_a_combination_is_one_that_all_parts_are_for(self) -> None:
        asked = catalog.read_method(COMBINED).description
        assert asked is not None
        assert asked.tasks == ("classification",)


def of_backbone(
    method: dict[str, Any],
    *,
    task: str = "embedding",
    teacher_classes: int = 0,
    start_classes: int | None = None,
    network: str = "timm/vit_tiny_patch16_224",
    traits: dict[str, Any] | None = None,
    count: int = 1,
) -> tuple[list[str], list[str]]:
    """Return the sentences of the faults and warnings of a job with so many backbones to teach."""
    spec = JobSpec.model_validate(
        {
            "name": "n",
            "task": task,
            "method": method,
            "student": {
                "network": "retort/resnet8",
                "initial": None if start_classes is None else "start@1",
            },
            "dataset": "data@1",
            **(
                {"teacher": "dino@1"}
                if count == 1
                else {"teachers": [f"dino@{number + 1}" for number in range(count)]}
            ),
        }
    )

    def model(network: str, classes: int) -> tables.ModelVersionRow:
        return tables.ModelVersionRow(
            network=network,
            arguments={},
            task="classification" if classes else "embedding",
            classes=[str(label) for label in range(classes)],
            input=IMAGES,
            state="ready",
            traits={
                "shows": ["embedding", "stages"],
                "has_batch_norm": False,
                **(traits or {}),
            },
        )

    inputs = validation.JobInputs(
        teacher=model(network, teacher_classes) if count == 1 else None,
        several=tuple(model(network, 0) for _ in range(count)) if count > 1 else (),
        initial=None if start_classes is None else model("retort/resnet8", start_classes),
        dataset=tables.DatasetVersionRow(
            task="classification",
            classes=[],
            splits={"train": 9, "validation": 3, "test": 3},
            labelled={"train": 0, "validation": 0, "test": 0},
            input=IMAGES,
            state="ready",
        ),
    )
    document = validation.read(spec.parts)
    faults = [*document.faults, *validation.faults_of_inputs(document, inputs)]
    warnings = validation.warnings_of_inputs(document, inputs)
    return [one.detail for one in faults], [one.code for one in warnings]


class TestBackbone:
    @pytest.mark.parametrize("method", ["embedkd", "fitnet", "sp", "rkd"])
    def test_teaches_without_logits_and_labels(self, method: str) -> None:
        assert of_backbone({"name": method}) == ([], [])

    @pytest.mark.parametrize(
        ("method", "sentence"),
        [
            ({"name": "kd"}, "a backbone has no logits or labels to learn from; choose a method"),
            ({"name": "mmd", "compare": "logits"}, "compares logits, which a backbone has none of"),
        ],
    )
    def test_is_refused_by_methods_of_logits_with_a_way_out(
        self, method: dict[str, Any], sentence: str
    ) -> None:
        [fault] = of_backbone(method)[0]
        assert sentence in fault

    def test_whose_maps_are_unknown_is_refused_by_methods_of_maps(self) -> None:
        [fault] = of_backbone({"name": "fitnet"}, traits={"shows": ["embedding"]})[0]
        assert "needs feature maps of its stages" in fault
        assert fault.endswith("choose another teacher, or a method that compares embeddings")

    def test_that_is_a_graph_is_refused_by_methods_of_maps_with_the_reason(self) -> None:
        """As an inspection describes it; `test_inspection.py` has where that comes from."""
        limits = "of a graph without classes, nothing but its embedding is read"
        graph = {"shows": ["embedding"], "gives_gradients": False, "limits": limits}
        [fault] = of_backbone({"name": "fitnet"}, network="retort/onnx", traits=graph)[0]
        assert f"shows none ({limits}); choose another teacher, or a method" in fault
        assert of_backbone({"name": "embedkd"}, network="retort/onnx", traits=graph)[0] == []

    def test_is_alone(self) -> None:
        [fault] = of_backbone({"name": "embedkd"}, count=2)[0]
        assert "several teachers have logits in common, and no features" in fault
        assert fault.endswith("; name one of them as teacher")

    def test_is_refused_in_another_task_with_a_way_out(self) -> None:
        [fault, *_] = of_backbone({"name": "fitnet"}, task="classification")[0]
        assert "has no classifier, and the task is classification; set task to embedding" in fault

    def test_tells_of_a_classifier_that_is_not_used(self) -> None:
        told = of_backbone({"name": "embedkd"}, teacher_classes=10, start_classes=3)
        assert told == ([], ["classifier_not_used", "classifier_not_used"])


class TestAllAtOnce:
    def test_a_value_out_of_range_hides_no_contradiction_of_other_fields(self) -> None:
        assert faults(
            {"name": "dkd", "beta": -1},
            epochs="ten",
            mixing={"name": "mixup"},
            patience_epochs=1,
            evaluate_every_epochs=3,
        ) == [
            ("/method/beta", "invalid_minimum"),
            ("/training/epochs", "invalid_type"),
            ("/training/patience_epochs", "patience_too_short"),
            ("/training/mixing", "mixing_refused"),
        ]

    def test_a_field_at_fault_contradicts_nothing(self) -> None:
        found = faults({"name": "kd"}, epochs=0, schedule={"name": "cosine", "warmup_epochs": 5})
        assert found == [("/training/epochs", "invalid_minimum")]

    def test_an_unknown_preset_hides_no_contradiction_of_given_fields(self) -> None:
        found = faults({"name": "kd"}, recipe="nowhere", optimizer={"name": "dot"}, compile="on")
        assert found == [
            ("/training/recipe", "unknown_recipe"),
            ("/training/compile", "dot_compile"),
        ]

    def test_all_weights_off_is_a_fault_before_anything_is_synthesized(self) -> None:
        off = {"name": "fast", "bn_weight": 0, "onehot_weight": 0, "adversarial_weight": 0}
        assert faults(off) == [("/method/bn_weight", "nothing_to_learn_from")]
        waiting = {**off, "adversarial_weight": 1, "synthesis": {"warmup_calls": 1}}
        assert faults(waiting) == [("/method/synthesis/warmup_calls", "nothing_to_learn_from")]
