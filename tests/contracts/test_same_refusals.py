"""The API refuses exactly what the engine refuses at preparation: same field, same sentence.

Specs are generated from values that are right by themselves, since the rules are about what does
not fit together. The API's side reads the spec and the rows of its inputs; the engine's side goes
through preparation up to the built networks and method, and trains nothing.

Left to the engine, and so not held against the API: what the machine at hand cannot do, and the
shapes of feature maps, which some methods compare in their constructors.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from models_registry import catalog
from models_registry.jobs import validation
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import tables
from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.job import Input, JobConfig
from workers.distill.config.synthesis import GeneratorSynthesis
from workers.distill.config.training import expand
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.methods import catalog as methods
from workers.distill.methods.base import Method
from workers.distill.methods.datafree.base import DataFreeMethod
from workers.distill.run import prepare

Json = dict[str, Any]
CPU = torch.device("cpu")
NAMES = sorted(methods.METHODS)
DATA_FREE = [name for name in NAMES if catalog.describe_method(name).is_data_free]
FEDERATED = [name for name in NAMES if catalog.describe_method(name).is_federated]
PARTS = [name for name in NAMES if catalog.describe_method(name).combines]

NETWORKS = st.sampled_from(
    [
        ("retort/convnet", {}),
        ("retort/convnet", {}),
        ("retort/mlp", {}),
        ("retort/resnet8", {}),
        ("retort/mobilenetv2", {}),
        ("retort/shufflev2", {}),
        ("retort/fcn", {}),
        ("retort/imagenet_resnet18", {}),
        ("retort/reused_classifier", {"backbone": {"network": "retort/convnet"}}),
        ("retort/reused_classifier", {"backbone": {"network": "retort/mobilenetv2"}}),
    ]
)
TRAININGS = st.fixed_dictionaries(
    {},
    optional={
        "epochs": st.integers(1, 4),
        "batch_size": st.sampled_from([2, 12]),
        "optimizer": st.sampled_from(
            [
                {"name": "adamw"},
                {"name": "lamb"},
                {"name": "dot"},
                {"name": "dot", "momentum": 0.9, "delta": 0.1},
                {"nesterov": True},
                {"nesterov": True, "momentum": 0.0},
            ]
        ),
        "schedule": st.sampled_from(
            [{"name": "cosine", "warmup_epochs": 3}, {"warmup_epochs": 1}, {"milestones": [1]}]
        ),
        "augmentation": st.sampled_from(["none", "standard", "autoaugment"]),
        "flip": st.sampled_from([None, True, False]),
        "mixing": st.sampled_from([None, {"name": "mixup"}, {"name": "cutmix"}]),
        "label_noise": st.sampled_from([0.0, 0.2]),
        "pseudo_labels": st.sampled_from([None, None, {}, {"threshold": 0}]),
        "class_weights": st.sampled_from(["none", "none", "auto", [1.0, 0.0, 2.0], [0, 0, 0]]),
        "teacher_cache": st.sampled_from([None, {}, {"views": 1}, {"views": 2, "per_visit": 3}]),
        "precision": st.sampled_from(["auto", "float32", "float16"]),
        "compile": st.sampled_from(["auto", "on"]),
        "patience_epochs": st.sampled_from([None, 2]),
        "keep_best_epochs": st.sampled_from([1, 1, 2]),
        "sync_batch_norm": st.sampled_from([False] * 3 + [True]),
        "task_loss": st.sampled_from([{}, {}, {"name": "bce"}]),
        "evaluate_sizes": st.sampled_from([[], [], [], [40], [40, 40], [8]]),
        "evaluate_every_epochs": st.sampled_from([1, 3]),
    },
)


@dataclass(frozen=True)
class Images:
    """What a teacher or a data set is made for."""

    classes: int
    channels: int
    height: int
    width: int

    @property
    def input(self) -> Json:
        return {
            "channels": self.channels,
            "height": self.height,
            "width": self.width,
            "mean": [0.5] * self.channels,
            "std": [0.5] * self.channels,
        }


SIDES = st.sampled_from([16, 16, 32, 20, 8, 4])
IMAGES = st.builds(
    Images,
    classes=st.sampled_from([3, 3, 3, 2, 1]),
    channels=st.sampled_from([3, 3, 1, 4]),
    height=SIDES,
    width=SIDES,
)


@st.composite
def a_method(draw: st.DrawFn) -> Json:
    """Return a method with some weights off, and of a data-free one a budget."""
    kind = draw(st.sampled_from(["any", "any", "data-free", "federated", "combine"]))
    if kind == "combine":
        names = draw(st.lists(st.sampled_from(PARTS), min_size=2, max_size=3))
        parts = [{"name": name, **draw(CHOOSING.get(name, st.just({})))} for name in names]
        return {"name": "combine", "methods": parts}
    named = {"data-free": DATA_FREE, "federated": FEDERATED}
    name = draw(st.sampled_from(named.get(kind, NAMES)))
    properties = catalog.load().methods[name]["params_schema"]["properties"]
    may_be_off = [
        key for key, field in properties.items() if "weight" in key and field.get("minimum") == 0
    ]
    off = draw(st.just([]) | st.just(may_be_off) | st.lists(st.sampled_from(may_be_off or ["-"])))
    method: Json = {"name": name, **{key: 0 for key in off if key in properties}}
    method |= draw(CHOOSING.get(name, st.just({})))
    for key, values in (
        ("eviction", ["oldest", "lowest"]),
        ("prioritise", [True, False]),
        ("exchange_probability", [0, 0.5]),
    ):
        if key in properties and draw(st.booleans()):
            method[key] = draw(st.sampled_from(values))
    if "synthesis" in properties:
        method["synthesis"] = draw(a_budget(properties["synthesis"]["default"]))
    if "federation" in properties:
        method["federation"] = draw(FEDERATIONS)
    return method


CHOOSING = {
    # Which maps of a network are wanted is chosen by a hyper-parameter.
    "reviewkd": st.fixed_dictionaries(
        {},
        optional={
            "student_maps": st.sampled_from(["post", "pre"]),
            "teacher_maps": st.sampled_from(["post", "pre"]),
        },
    ),
    "mmd": st.fixed_dictionaries({}, optional={"compare": st.sampled_from(["pooled", "logits"])}),
}
FEDERATIONS = st.fixed_dictionaries(
    {},
    optional={
        "clients": st.sampled_from([1, 3, "remote"]),
        "rounds": st.sampled_from([None, 2, 3]),
        "participation": st.sampled_from([1, 0.5]),
        "dropout": st.sampled_from([0, 0.2]),
        "min_clients": st.sampled_from([None, 2, 3]),
        "open_images": st.sampled_from([None, 0, 5, 0.2]),
        "open_images_per_round": st.sampled_from([None, 9]),
        "networks": st.sampled_from(
            [None, [{"network": "retort/convnet"}], [{"network": "retort/resnet8"}]]
        ),
        "privacy": st.sampled_from([None, {}, {"clip": 2.0}]),
        "partition": st.sampled_from(
            [{}, {"kind": "given"}, {"kind": "iid", "indices": [[0], [1]]}, {"alpha": 0.1}]
        ),
    },
)


@st.composite
def a_budget(draw: st.DrawFn, default: Json) -> Json:
    values: dict[str, list[object]] = {
        "warmup_calls": [0, 2],
        "student_steps": [5, None],
        "data_scale": [None, 0.5],
        "original_images": [None, 100],
        "generator": ["small", "dcgan"],
        "reuse": ["none", "latent"],
        "average_decay": [None, 0.9],
        "keep": ["best", "last"],
    }
    return {
        key: draw(st.sampled_from(choices))
        for key, choices in values.items()
        if key in default and draw(st.booleans())
    }


@dataclass(frozen=True)
class Case:
    """A spec with what its references lead to."""

    spec: JobSpec
    teacher: tuple[tuple[str, Json], Images] | None
    dataset: tuple[str, Images] | None
    labelled: dict[str, int] | None = None
    """Images with a label of the data set's `SPLITS`; None: all."""
    is_encoded: bool = False
    """Whether the data set's pictures are stored encoded."""

    @property
    def classes(self) -> int | None:
        """How many classes the data set names; None where there is none, or where it has none."""
        if self.dataset is None or (self.labelled is not None and not any(self.labelled.values())):
            return None
        return self.dataset[1].classes


SPLITS = {"train": 20, "validation": 4, "test": 6}
LABELLED = st.sampled_from(
    [
        *[None] * 6,
        {**SPLITS, "train": 5},
        {**SPLITS, "train": 0},
        {**SPLITS, "test": 0},
        {"train": 0, "validation": 0, "test": 0},
    ]
)


@st.composite
def a_case(draw: st.DrawFn) -> Case:
    method = draw(a_method())
    network, arguments = draw(NETWORKS)
    task = draw(st.sampled_from(["classification"] * 4 + ["embedding"] * 2 + ["segmentation"]))
    images = draw(IMAGES)
    # Mostly what belongs together, so that more than the first rule is reached.
    teacher = draw(st.just(images) | IMAGES), draw(NETWORKS), draw(st.integers(0, 7)) > 0
    if draw(st.integers(0, 7)) < (6 if task == "embedding" else 1):
        teacher = without_classifier(*teacher)
    is_data_free = validation.is_data_free(method)
    has_dataset = not is_data_free or draw(st.booleans())
    spec = JobSpec.model_validate(
        {
            "name": "case",
            "task": task,
            "teacher": "teacher@1" if teacher[2] else None,
            "student": {"network": network, "arguments": arguments},
            "dataset": "data@1" if has_dataset else None,
            "method": method,
            "training": draw(st.just({}) | TRAININGS),
            "resources": {
                "accelerator": draw(st.sampled_from(["any", "cpu"])),
                "devices": draw(st.sampled_from([1] * 6 + [2, 16])),
            },
            "baseline": draw(st.booleans()),
        }
    )
    own = "classification" if task == "embedding" else task
    for_task = draw(st.sampled_from([own] * 7 + ["segmentation"]))
    return Case(
        spec,
        (teacher[1], teacher[0]) if teacher[2] else None,
        (for_task, images) if has_dataset else None,
        draw(LABELLED) if own == for_task == "classification" else None,
        is_encoded=for_task == "classification" and draw(st.integers(0, 3)) == 0,
    )


def without_classifier(
    images: Images, network: tuple[str, Json], is_there: bool
) -> tuple[Images, tuple[str, Json], bool]:
    """Return a teacher as a backbone, where its network can be one."""
    if catalog.task_of_network(network[0]) == "classification":
        images = dataclasses.replace(images, classes=0)
    return images, network, is_there


def told_by_api(case: Case) -> list[tuple[str, str]]:
    document = validation.read(case.spec.parts)
    teacher, dataset = case.teacher, case.dataset
    inputs = validation.JobInputs(
        teacher=None
        if teacher is None
        else tables.ModelVersionRow(
            network=teacher[0][0],
            arguments=teacher[0][1],
            task=catalog.task_of_network(teacher[0][0]) if teacher[1].classes else "embedding",
            classes=[str(label) for label in range(teacher[1].classes)],
            input=teacher[1].input,
            state="ready",
        ),
        initial=None,
        dataset=None
        if dataset is None
        else tables.DatasetVersionRow(
            task=dataset[0],
            classes=[str(label) for label in range(case.classes or 0)],
            splits=SPLITS,
            labelled=case.labelled,
            encoded={"kinds": {"jpg": 30}} if case.is_encoded else None,
            input=dataset[1].input,
            state="ready",
        ),
    )
    faults = [*document.faults, *validation.faults_of_inputs(document, inputs)]
    return [(fault.pointer, fault.detail) for fault in faults]


def recipe_of(case: Case) -> Json:
    """Return what the worker hands to the engine."""
    spec, teacher, dataset = case.spec, case.teacher, case.dataset
    source = teacher[1] if teacher and validation.is_data_free(spec.method) else None
    source = source or (dataset[1] if dataset else Images(3, 3, 16, 16))
    classes = source.classes
    if dataset and source is dataset[1] and case.classes is None:
        classes = teacher[1].classes if teacher else 1
    if spec.task == "embedding":
        classes = 0
    return {
        "task": spec.task,
        "teacher": teacher
        and {
            "network": teacher[0][0],
            "arguments": teacher[0][1],
            "classes": teacher[1].classes,
            "input": teacher[1].input,
        },
        "student": {
            "network": spec.student.network,
            "arguments": spec.student.arguments,
            "classes": classes,
            "input": source.input,
        },
        "method": spec.method,
        "training": spec.training,
        "accelerator": spec.resources.accelerator,
        "devices": spec.resources.devices,
        "baseline": spec.baseline,
    }


def prepare_on_the_engine(case: Case) -> None:
    """Do what a run does before its first step, in the engine's order."""
    config = JobConfig.model_validate(recipe_of(case))
    dataset = case.dataset[1] if case.dataset else None
    prepare.check_config(config, has_dataset=dataset is not None)
    if case.dataset:
        prepare.check_task(case.dataset[0], config.task)  # type: ignore[arg-type]  # drawn from both
        if not validation.is_data_free(case.spec.method):
            prepare.check_storage(config, is_encoded=case.is_encoded)
            prepare.check_labels(config, SPLITS, case.labelled)
        if case.classes is not None:
            prepare.check_label_noise(config, case.classes)
            prepare.check_class_weights(config, case.classes)
    classes = case.classes or config.student.classes
    for role, choice in (("teacher", config.teacher), ("student", config.student)):
        if choice is not None and dataset is not None:
            prepare.check_classes(role, choice, classes, config.task)
            Preprocessor(role, choice.input, Input.model_validate(dataset.input), CPU)
    teacher = None
    if config.teacher is not None:
        teacher = prepare.build("teacher", config.teacher, config.task).eval()
    student = prepare.build("student", config.student, config.task)
    method = methods.build(config.method, student, teacher)
    if isinstance(method, DataFreeMethod) and isinstance(
        method.params.synthesis, GeneratorSynthesis
    ):
        method.make_generator()


def told_by_engine(case: Case) -> tuple[str, str] | None:
    """Return the field and the sentence of the engine's refusal, if it refuses."""
    try:
        prepare_on_the_engine(case)
    except pydantic.ValidationError as error:
        return f"/{methods.first_field(error, recipe_of(case))}", methods.first_complaint(error)
    except errors.DistillError as error:
        if "field" not in error.details:
            # Only what a method's constructor finds may come without a field.
            return type(error).__name__, "shapes of maps"
        return f"/{error.details['field']}", error.message
    return None


@pytest.mark.slow
@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], database=None
)
@given(case=a_case())
def test_the_api_refuses_exactly_what_the_engine_refuses(case: Case) -> None:
    by_api, by_engine = told_by_api(case), told_by_engine(case)
    event(by_engine[0] if by_engine else "accepted")
    if by_engine is None:
        assert by_api == []
    elif by_engine != ("IncompatibleNetworks", "shapes of maps"):
        assert by_engine in by_api


def a_job(method: Json, training: Json, **changes: Any) -> Case:
    """Return a job whose networks and data set fit together."""
    images = Images(3, 3, 16, 16)
    network: tuple[str, Json] = ("retort/resnet8", {})
    spec = JobSpec.model_validate(
        {
            "name": "case",
            "teacher": "teacher@1",
            "student": {"network": network[0]},
            "dataset": "data@1",
            "method": method,
            "training": training,
            "resources": {"accelerator": "cpu"},
            **changes,
        }
    )
    return Case(spec, (network, images), ("classification", images))


WITH_ONE_PART = [
    *({"name": name} for name in NAMES),
    *({"name": "combine", "methods": [{"name": "kd"}, {"name": name}]} for name in PARTS),
]


@pytest.mark.parametrize("method", WITH_ONE_PART, ids=str)
@pytest.mark.parametrize(
    "training",
    [
        {"teacher_cache": {}},
        {"mixing": {"name": "mixup"}},
        {"precision": "float16"},
        {"task_loss": {"name": "bce"}},
    ],
)
def test_both_know_what_each_method_can_be_trained_with(method: Json, training: Json) -> None:
    case = a_job(method, training)
    by_api, by_engine = told_by_api(case), None
    try:
        prepare.check_config(JobConfig.model_validate(recipe_of(case)), has_dataset=True)
    except errors.DistillError as error:
        by_engine = f"/{error.details['field']}", error.message
    if by_engine is None:
        assert by_api == []
    else:
        assert by_engine in by_api


def test_a_method_that_changes_its_teacher_or_wants_a_second_view_has_no_teacher_cache() -> None:
    cached = expand({"teacher_cache": {}}).model_dump()
    mixed = expand({"mixing": {"name": "mixup"}}).model_dump()
    for name, kind in methods.METHODS.items():
        found = {fault.field for fault in rules.of_method_and_training(kind.describe(), cached)}
        if kind.uses_strong_view or kind.teacher_trains is not Method.teacher_trains:
            assert found == {"training/teacher_cache"}, name
        if kind.uses_strong_view:
            found = {fault.field for fault in rules.of_method_and_training(kind.describe(), mixed)}
            assert found == {"training/mixing"}, name


def test_two_views_are_not_mixed_even_where_mixed_labels_would_do() -> None:
    described = methods.METHODS["mlld"].describe().model_copy(update={"accepts_mixed": True})
    mixed = expand({"mixing": {"name": "mixup"}}).model_dump()
    (fault,) = rules.of_method_and_training(described, mixed)
    assert (fault.field, fault.code) == ("training/mixing", "strong_not_mixed")


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"training": {"epochs": "10"}}, "training/epochs"),
        ({"training": {"epochs": 2.5}}, "training/epochs"),
        ({"training": {"epochs": True}}, "training/epochs"),
        ({"training": {"seed": None}}, "training/seed"),
        ({"training": {"label_noise": "0.1"}}, "training/label_noise"),
        ({"training": {"augmentation": 1}}, "training/augmentation"),
        ({"training": {"optimizer": {"learning_rate": "0.1"}}}, "training/optimizer/learning_rate"),
        ({"training": {"optimizer": {"nesterov": 1}}}, "training/optimizer/nesterov"),
        ({"training": {"schedule": {"milestones": ["1"]}}}, "training/schedule/milestones/0"),
        ({"method": {"name": "kd", "temperature": "4"}}, "method/temperature"),
        ({"method": {"name": "kd", "temperature": True}}, "method/temperature"),
        ({"method": {"name": "dafl", "synthesis": {"steps": "3"}}}, "method/synthesis/steps"),
        (
            {"method": {"name": "combine", "methods": [{"name": "kd", "weight": "1"}] * 2}},
            "method/methods/0/weight",
        ),
    ],
    ids=str,
)
def test_both_refuse_a_value_of_another_type(part: dict[str, Json], field: str) -> None:
    case = a_job(part.get("method", {"name": "kd"}), part.get("training", {}))
    assert f"/{field}" in [pointer for pointer, _ in told_by_api(case)]
    told = told_by_engine(case)
    assert told is not None
    assert told[0] == f"/{field}"


@pytest.mark.parametrize(
    "part",
    [
        {"training": {"epochs": 2.0, "schedule": {"milestones": [1.0]}}},
        {"training": {"label_noise": 0, "optimizer": {"learning_rate": 1}}},
        {"method": {"name": "kd", "temperature": 4}},
        {"method": {"name": "noise", "synthesis": {"student_steps": 3.0}}},
    ],
    ids=str,
)
def test_both_accept_what_json_schema_takes_for_the_same_number(part: dict[str, Json]) -> None:
    case = a_job(part.get("method", {"name": "kd"}), part.get("training", {}))
    assert told_by_api(case) == []
    assert told_by_engine(case) is None


@pytest.mark.parametrize("role", ["student", "teacher"])
@pytest.mark.parametrize("is_combined", [False, True])
def test_both_refuse_maps_that_a_hyper_parameter_asks_for_in_vain(
    role: str, is_combined: bool
) -> None:
    method: Json = {"name": "reviewkd", f"{role}_maps": "pre"}
    if is_combined:
        method = {"name": "combine", "methods": [{"name": "kd"}, method, method]}
    case = a_job(method, {}, student={"network": "retort/mobilenetv2"})
    images = Images(3, 3, 32, 32)
    teacher = "retort/mobilenetv2" if role == "teacher" else "retort/resnet8"
    case = Case(case.spec, ((teacher, {}), images), ("classification", images))
    told = told_by_engine(case)
    assert told is not None
    assert told[0] == ("/teacher" if role == "teacher" else "/student/network")
    assert f"another {role}_maps" in told[1]
    assert told_by_api(case) == [told]


DENSE = Images(3, 3, 96, 96)


def a_dense_job(task: str, network: str, arguments: Json, method: Json) -> Case:
    """Return a job of a task with masks or boxes, whose networks and data set fit together."""
    spec = a_job(method, {}, task=task, student={"network": network, "arguments": arguments}).spec
    return Case(spec, ((network, {"levels": 2} if "fcos" in network else {}), DENSE), (task, DENSE))


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"levels": 4}, "levels"),
        ({"anchor_sizes": [2]}, "anchor_sizes"),
        ({"levels": 1, "anchor_sizes": [2, 4]}, "anchor_sizes"),
        ({"reg_max": 8}, "reg_max"),
        ({"reg_max": 4, "levels": 1, "anchor_sizes": [8]}, "reg_max"),
        ({"backbone": "timm/resnet18", "levels": 1, "anchor_sizes": [2, 4]}, "anchor_sizes"),
        ({"reg_max": 12, "levels": 3, "anchor_sizes": [2, 4, 8]}, None),
        ({}, None),
    ],
    ids=str,
)
def test_both_refuse_arguments_of_a_detector_that_do_not_fit(
    arguments: Json, field: str | None
) -> None:
    case = a_dense_job("detection", "retort/fcos", arguments, {"name": "pkd"})
    told = told_by_engine(case)
    assert told_by_api(case) == ([] if told is None else [told])
    assert (told and told[0]) == (field and f"/student/arguments/{field}")


@pytest.mark.parametrize(
    "method",
    [
        {"name": "cwd", "levels": [0]},
        {"name": "combine", "methods": [{"name": "pixelkd"}, {"name": "mimic", "levels": [1]}]},
    ],
    ids=str,
)
def test_both_refuse_levels_of_a_segmenter(method: Json) -> None:
    case = a_dense_job("segmentation", "retort/segmenter", {}, method)
    told = told_by_engine(case)
    assert told is not None
    assert told[0].endswith("/levels")
    assert told_by_api(case) == [told]


@pytest.mark.parametrize(
    ("method", "arguments", "missing"),
    [
        ({"name": "ld"}, {}, "reg_max"),
        ({"name": "ld"}, {"reg_max": 16}, None),
        ({"name": "crosskd"}, {}, None),
    ],
    ids=str,
)
def test_both_know_which_detectors_have_distributions(
    method: Json, arguments: Json, missing: str | None
) -> None:
    case = a_dense_job("detection", "retort/fcos", arguments, method)
    case = Case(case.spec, (("retort/fcos", {"reg_max": 16}), DENSE), case.dataset)
    told = told_by_engine(case)
    assert told_by_api(case) == ([] if told is None else [told])
    assert (told is not None and missing is not None and missing in told[1]) == (
        missing is not None
    )


@pytest.mark.parametrize(
    ("network", "images"),
    [("retort/fcn", DENSE), ("torchvision/fcn_resnet50", DENSE), ("retort/mobilenetv2", None)],
)
def test_the_engine_refuses_a_student_before_it_reads_the_data(
    network: str, images: Images | None
) -> None:
    images = images or Images(3, 3, 8, 8)
    case = a_job({"name": "ce"}, {}, student={"network": network}, teacher=None)
    config = JobConfig.model_validate(recipe_of(Case(case.spec, None, ("classification", images))))
    with pytest.raises(errors.IncompatibleNetworks) as refused:
        prepare.check_config(config, has_dataset=True)
    assert refused.value.details["field"] == "student/network"
