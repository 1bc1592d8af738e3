"""The promise that all methods keep."""

import copy
import dataclasses
import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill import folders
from tests.distill.methods.dense import scenes as dense_scenes
from workers import export_catalog
from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.job import Input
from workers.distill.config.training import expand
from workers.distill.data import dataset
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch, Mixed
from workers.distill.methods import catalog
from workers.distill.methods.base import Method, Moment, Terms
from workers.distill.methods.datafree.base import DataFreeMethod
from workers.distill.networks import catalog as networks
from workers.distill.networks import weights
from workers.distill.networks.interface import Features, Network
from workers.distill.runtime.precision import Precision
from workers.distill.training.optimizers import TrainOptimizer

EVERY = sorted(catalog.METHODS)
# Those of clients have a promise of their own (test_every_federated_method.py).
NAMES = sorted(name for name, method in catalog.METHODS.items() if method.loop != "federated")
CPU = torch.device("cpu")
MOMENT = Moment(epoch=1, step=1, steps_per_epoch=1)
IMAGES = 9
SCALE = 4
"""Images of detectors are so many times larger than others."""

CHOICES: dict[str, dict[str, Any]] = {
    # As many negatives as nine images can give.
    "crd": {"negatives": 4},
    # The last stage is two pixels high.
    "pcka": {"patch": 1},
    # Its critic is off by default.
    "skd": {"holistic_weight": 0.1, "critic_width": 8},
}
ORDERED = {
    "cirkd": "draws what it compares with from its memories",
    "cc": "compares neighbours in the batch",
    "crd": "draws other images for each place in the batch",
    "skd": "draws maps between both networks' at each place in the batch",
}
SAMPLED = {
    "roidkd": "proposals are drawn at random, in training mode only",
    "roikd": "the same",
}
UNTRAINED = {"simkd": "the teacher's classifier takes the place of the student's"}
PROBES = {"linear_probe": "everything before the classifier stays as it is"}
WITH_CLASSIFIER = {"catkd": "maps of classes are made with the classifier's weights"}
# What a method learns beside a resnet8x4 of 100 classes with a resnet32x4 as its teacher.
PUBLISHED_PARAMETERS = {
    "fitnet": 16_768,
    "ofd": 86_912,
    "reviewkd": 1_808_774,
    "vid": 258_048 + 448,  # of its regressors, and a variance for each of the teacher's channels
}
COMBINED = {"name": "combine", "methods": [{"name": "kd"}, {"name": "fitnet"}, {"name": "rkd"}]}


# Of detectors; those that learn nothing else are among `NAMES` alone.
DETECTING = [
    f"{name} of detectors" for name in NAMES if {"detection"} < set(catalog.METHODS[name].tasks)
]
DETECTING_COMBINED = {
    "name": "combine",
    "methods": [{"name": "densepcka"}, {"name": "mimic"}, {"name": "headkd"}],
}


def choice(name: str) -> dict[str, Any]:
    known, _, detecting = name.partition(" ")
    if known == "combine":
        return DETECTING_COMBINED if detecting else COMBINED
    return {"name": known, **CHOICES.get(known, {})}


def task_of(name: str) -> str:
    """Return the task of a name: methods for several are tried on one, and on detection."""
    tasks = catalog.find(choice(name))[0].tasks
    if " " in name:
        return "detection"
    return next(task for task in ("classification", "segmentation", "detection") if task in tasks)


@functools.cache
def built_network(seed: int, widths: tuple[int, ...], width: int, *, dense: bool) -> Network:
    """Return a network that all methods have copies of: to build takes longer than most tests."""
    torch.manual_seed(seed)
    reference, arguments = (
        ("retort/fcn", {"widths": list(widths[2:])})
        if dense
        else (folders.NETWORK, {"widths": list(widths)})
    )
    network = networks.build(
        reference, classes=3, channels=1, height=8, width=width, arguments=arguments
    )
    if dense:
        # A fresh segmenter's logits are so near to 0 that losses without a scale (DIST, PCKA) leap.
        torch.nn.init.normal_(network.get_submodule("classifier").get_parameter("weight"))
    return network


def masks(seed: int, width: int) -> torch.Tensor:
    """Return a class for each pixel of the scene's images; some have none."""
    draw = torch.Generator().manual_seed(seed)
    drawn = torch.randint(0, 4, (IMAGES, 8, width), generator=draw)
    return drawn.masked_fill(drawn == 3, dataset.IGNORE_INDEX).to(torch.uint8)


@functools.cache
def built_detector(seed: int, reference: str, stem: int, width: int, **arguments: int) -> Network:
    """Return a detector that all methods have copies of."""
    # Levels of several patches, of both networks.
    size = SCALE * 8, SCALE * width
    return dense_scenes.detector(seed, reference, size=size, width=stem, **arguments)


def a_detector(name: str, seed: int, stem: int, width: int) -> Network:
    needed = catalog.find(choice(name))[0].describe().required_features("student", "detection")
    reference = "retort/fasterrcnn" if "proposals" in needed else "retort/fcos"
    more = {"reg_max": 8} if "distributions" in needed else {}
    return copy.deepcopy(built_detector(seed, reference, stem, width, **more))


def boxes_of(width: int) -> torch.Tensor:
    """Return a box in most of the scene's images, in some another one, in one none."""
    size = SCALE * 8, SCALE * width
    rows: list[list[list[float]]] = [
        [[index % 3, 2.0 + index, 3, 14 + index, 20 + index], [1, 12, 14, 30, 30]]
        for index in range(IMAGES)
    ]
    rows[1], rows[2] = rows[1][:1], []
    return dense_scenes.boxes_batch(*rows, size=size).labels


class Scene:
    """A method between two networks of other widths, with a batch of images 8 pixels high.

    Those of detectors are four times as large.
    """

    def __init__(self, name: str, width: int = 8) -> None:
        self.task = task_of(name)
        images, labels = folders.images(IMAGES, 3, 0)
        strong, _ = folders.images(IMAGES, 3, 1)
        # Wider ones begin again at their right edge.
        images, strong = (torch.cat([one] * 2, dim=3)[..., :width] for one in (images, strong))
        self.input = {**folders.INPUT, "width": width}
        if self.task == "detection":
            self.student, self.teacher = (
                a_detector(name, seed, stem, width) for seed, stem in ((1, 4), (2, 6))
            )
            labels = boxes_of(width)
            images, strong = (
                one.repeat_interleave(SCALE, 2).repeat_interleave(SCALE, 3)
                for one in (images, strong)
            )
            self.input.update(height=SCALE * 8, width=SCALE * width)
        else:
            dense = self.task == "segmentation"
            self.student, self.teacher = (
                copy.deepcopy(built_network(seed, widths, width, dense=dense))
                for seed, widths in ((1, (4, 4, 6, 8)), (2, (4, 6, 8, 12)))
            )
            labels = masks(0, width) if dense else labels
        self.teacher.eval().requires_grad_(False)
        index = torch.arange(IMAGES)
        self.batch = Batch(images=images, labels=labels, index=index, strong=strong)
        torch.manual_seed(3)
        self.method: Method = catalog.build(choice(name), self.student, self.teacher)
        self.method.prepare(labels)
        size = Input.model_validate(self.input)
        self.view = Preprocessor("student", size, size, CPU)
        training = expand({"optimizer": {"learning_rate": 0.01}, "schedule": {"name": "constant"}})
        precision = Precision("float32", CPU)
        # What a data-free method learns is moved by its synthesis, which has tests of its own.
        self.is_data_free = isinstance(self.method, DataFreeMethod)
        learning = (self.student,) if self.is_data_free else (self.student, self.method)
        self.optimizer = TrainOptimizer(learning, training, precision)
        self.beginning = self.state()
        roots = (self.student, self.teacher, self.method)
        self.modes = [(part, part.training) for root in roots for part in root.modules()]

    def observe(self, network: Network, batch: Batch) -> Features:
        features = network.observe(self.view(batch.images))
        if not self.method.uses_strong_view or batch.strong is None:
            return features
        return dataclasses.replace(features, strong=network.observe(self.view(batch.strong)))

    def terms(
        self,
        batch: Batch | None = None,
        changed: Callable[[Features], Features] = lambda features: features,
    ) -> Terms:
        batch = batch or self.batch
        with torch.no_grad():
            teacher_out = self.observe(self.teacher, batch)
        student_out = self.observe(self.student, batch)
        return self.method.terms(changed(student_out), changed(teacher_out), batch, MOMENT)

    def step(self) -> float:
        total = float(self.optimizer.step(self.terms(), MOMENT).detach())
        self.method.after_step(MOMENT)
        return total

    def state(self) -> dict[str, Any]:
        return copy.deepcopy(
            {
                "student": self.student.state_dict(),
                "method": self.method.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": torch.get_rng_state(),
            }
        )

    def restore(self, state: dict[str, Any]) -> None:
        self.student.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])

    def begin_again(self) -> None:
        """Forget what a test has done: networks are built once for each method."""
        self.restore(self.beginning)
        for part, training in self.modes:
            part.training = training
            for parameter in part.parameters(recurse=False):
                parameter.grad = None


@pytest.fixture(scope="module", params=[*NAMES, "combine", *DETECTING, "combine of detectors"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def built(name: str) -> Scene:
    return Scene(name)


@pytest.fixture
def scene(built: Scene) -> Scene:
    built.begin_again()
    return built


def part_of(batch: Batch, count: int) -> Batch:
    assert batch.strong is not None
    return Batch(
        images=batch.images[:count],
        labels=batch.labels[:count],
        index=batch.index[:count],
        strong=batch.strong[:count],
    )


def total(terms: Terms) -> torch.Tensor:
    return torch.stack(list(terms.values())).sum()


def is_bounded(says: dict[str, Any]) -> bool:
    """Whether a field's schema leaves out some values of its type."""
    kinds: list[dict[str, Any]] = says.get("anyOf", [says])
    bounds = {"minimum", "exclusiveMinimum", "enum", "minItems", "maxItems"}
    is_switch = any(kind.get("type") == "boolean" for kind in kinds)
    return is_switch or any(bounds & set(kind) for kind in kinds)


class TestEveryMethod:
    def test_terms_are_finite_scalars_and_one_of_them_the_task(self, scene: Scene) -> None:
        terms = scene.terms()
        assert all(term.shape == () and term.isfinite() for term in terms.values())
        assert ("task" in terms) is scene.method.has_task
        assert len(terms) > ("teacher" in scene.method.needs) * scene.method.has_task
        assert list(scene.terms()) == list(terms)

    def test_student_and_learned_parts_receive_a_gradient_and_the_teacher_none(
        self, scene: Scene, name: str
    ) -> None:
        before = {name: value.clone() for name, value in scene.teacher.state_dict().items()}
        total(scene.terms()).backward()
        head: set[int] = set()
        if name in PROBES:
            assert scene.student.get_parameter("fc.weight").grad is not None
            kept = scene.student.named_parameters()
            head = {id(p) for path, p in kept if not path.startswith("fc.")}
        if name in UNTRAINED:
            head = {id(p) for p in scene.student.get_submodule("fc").parameters()}
        learning = (scene.student,) if scene.is_data_free else (scene.student, scene.method)
        for module in learning:
            for path, parameter in module.named_parameters():
                if id(parameter) in head:
                    assert parameter.grad is None
                else:
                    assert parameter.grad is not None, path
        assert all(parameter.grad is None for parameter in scene.teacher.parameters())
        for path, value in scene.teacher.state_dict().items():
            assert torch.equal(value, before[path]), path
        theirs = {value.data_ptr() for value in scene.teacher.parameters()}
        assert not theirs & {value.data_ptr() for value in scene.method.parameters()}

    @pytest.mark.parametrize(
        "known", [name for name in NAMES if catalog.METHODS[name].family == "feature"]
    )
    def test_terms_about_features_leave_the_classifier_alone(self, known: str) -> None:
        scene = Scene(known)
        terms = scene.terms()
        terms.pop("task", None)
        total(terms).backward()
        assert scene.student.get_parameter("conv1.weight").grad is not None
        touched = scene.student.get_parameter("fc.weight").grad is not None
        assert touched is (known in WITH_CLASSIFIER)

    @pytest.mark.parametrize("known", PUBLISHED_PARAMETERS)
    def test_adds_as_many_parameters_as_published(self, known: str) -> None:
        size = {"classes": 100, "channels": 3, "height": 32, "width": 32}
        with torch.device("meta"):
            student, teacher = (
                networks.build(f"retort/{network}", arguments={}, **size)
                for network in ("resnet8x4", "resnet32x4")
            )
            method = catalog.build(choice(known), student, teacher)
        added = sum(parameter.numel() for parameter in method.parameters())
        assert added == PUBLISHED_PARAMETERS[known]

    def test_takes_images_that_are_not_square(self, name: str) -> None:
        terms = Scene(name, width=12).terms()
        assert all(term.isfinite() for term in terms.values())

    def test_the_order_of_the_batch_is_irrelevant(self, scene: Scene, name: str) -> None:
        scene.student.train(name in SAMPLED)
        scene.method.eval()
        order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(0))
        assert scene.batch.strong is not None
        turned = Batch(
            images=scene.batch.images[order],
            labels=scene.batch.labels[order],
            index=scene.batch.index[order],
            strong=scene.batch.strong[order],
        )
        one, other = scene.terms(), scene.terms(turned)
        if name in ORDERED or name in SAMPLED:
            assert any(not torch.allclose(one[key], other[key], rtol=1e-5) for key in one)
            return
        for key in one:
            # float32 sums in another order.
            assert torch.allclose(one[key], other[key], rtol=1e-4, atol=1e-6), key

    def test_a_few_steps_lower_the_total(self, scene: Scene, name: str) -> None:
        steps = 16 if name in SAMPLED else 6
        first, *_ = [scene.step() for _ in range(3)]
        assert any(scene.step() < first for _ in range(3, steps))

    def test_continues_exactly_from_its_state(self, scene: Scene, name: str) -> None:
        scene.step()
        kept = scene.state()
        going_on = scene.step()
        resumed = Scene(name)
        resumed.restore(kept)
        assert resumed.step() == going_on
        for part, other in ((scene.student, resumed.student), (scene.method, resumed.method)):
            state = other.state_dict()
            for key, value in part.state_dict().items():
                assert torch.equal(value, state[key]), key

    def test_a_tiny_batch_gives_finite_terms_and_gradients(self, scene: Scene) -> None:
        for count in (1, 2):
            if count < scene.method.smallest_batch:
                assert type(scene.method).smallest_batch > count
                continue
            scene.begin_again()
            terms = scene.terms(part_of(scene.batch, count))
            assert all(term.isfinite() for term in terms.values()), count
            total(terms).backward()
            for module in (scene.student, scene.method):
                for path, parameter in module.named_parameters():
                    assert parameter.grad is None or parameter.grad.isfinite().all(), (count, path)

    def test_extreme_logits_give_finite_terms_and_gradients(self, scene: Scene) -> None:
        for factor in (0.0, 1e4):

            def stretched(features: Features, factor: float = factor) -> Features:
                strong = None if features.strong is None else stretched(features.strong)
                return dataclasses.replace(features, logits=factor * features.logits, strong=strong)

            scene.begin_again()
            terms = scene.terms(changed=stretched)
            assert all(term.isfinite() for term in terms.values()), factor
            total(terms).backward()
            for path, parameter in scene.student.named_parameters():
                assert parameter.grad is None or parameter.grad.isfinite().all(), (factor, path)

    def test_features_of_nothing_give_finite_terms_and_gradients(self, scene: Scene) -> None:
        def emptied(features: Features) -> Features:
            return Features(
                logits=features.logits,
                pooled=0 * features.pooled,
                stem=features.stem,
                stages=tuple(0 * stage for stage in features.stages),
                pre_activations=tuple(0 * stage for stage in features.pre_activations),
                final=None if features.final is None else 0 * features.final,
                strong=features.strong,
                detector=features.detector,
            )

        terms = scene.terms(changed=emptied)
        assert all(term.isfinite() for term in terms.values())
        total(terms).backward()
        for path, parameter in scene.student.named_parameters():
            assert parameter.grad is None or parameter.grad.isfinite().all(), path

    def test_says_whether_mixed_images_are_welcome(self, scene: Scene) -> None:
        if not scene.method.accepts_mixed:
            with pytest.raises(errors.BadRecipe) as refused:
                catalog.check(type(scene.method), expand({"mixing": {"name": "mixup"}}))
            assert refused.value.details["field"] == "training/mixing"
            return
        if scene.task == "detection":
            mixing = expand({"mixing": {"name": "mixup"}}).model_dump()
            (fault,) = rules.of_task_and_training(scene.task, mixing)
            assert fault.field == "training/mixing"
            return
        labels, share = scene.batch.labels.roll(1), torch.full((IMAGES,), 0.3)
        mixed = dataclasses.replace(scene.batch, mixed=Mixed(labels, share))
        terms = scene.terms(mixed)
        assert all(term.isfinite() for term in terms.values())
        task = scene.terms().get("task")
        if task is not None and float(task.detach()) != 0:  # not where its weight is 0, as in FKD
            assert not torch.allclose(terms["task"], task)

    @pytest.mark.parametrize("known", EVERY)
    def test_hyperparameters_survive_json(self, known: str) -> None:
        params = catalog.METHODS[known].Params()
        restored = catalog.METHODS[known].Params.model_validate_json(params.model_dump_json())
        assert restored == params

    @pytest.mark.parametrize("known", EVERY)
    def test_every_hyperparameter_is_bounded_described_and_optional(self, known: str) -> None:
        schema = catalog.METHODS[known].Params.model_json_schema()
        assert schema["additionalProperties"] is False
        assert "required" not in schema
        assert "weight" not in schema["properties"]  # a combination's word for a part's share
        left = list(schema["properties"].items())
        while left:
            field, says = left.pop()
            assert says["description"].endswith("."), field
            assert "default" in says, field
            kinds = says.get("anyOf", [says])
            groups = [kind["$ref"].rpartition("/")[2] for kind in kinds if "$ref" in kind]
            for group in groups:
                left.extend(schema["$defs"][group]["properties"].items())
            assert groups or is_bounded(says), field

    @pytest.mark.parametrize("known", EVERY)
    def test_name_file_and_key_are_one_word(self, known: str) -> None:
        kind = catalog.METHODS[known]
        assert kind.name == kind.__module__.rpartition(".")[2] == known
        assert kind.__module__.split(".")[-2] == kind.family

    @pytest.mark.parametrize("known", EVERY)
    def test_every_method_has_its_own_test(self, known: str) -> None:
        family = catalog.METHODS[known].family
        assert (Path(__file__).parent / family / f"test_{known}.py").exists()


LOADER = """
import sys
from pathlib import Path
import torch

class Forbidden:
    def find_spec(self, name, path=None, target=None):
        if name.startswith(("workers.distill.methods", "workers.distill.methods.base")):
            raise ImportError(f"{name} is code of a method")

sys.meta_path.insert(0, Forbidden())
from workers.distill.networks import weights

for path in sys.argv[1:]:
    images = torch.load(path + ".images", weights_only=True)
    network, _ = weights.rebuild(Path(path))
    torch.save(network.eval()(images).detach(), path + ".logits")
"""


@pytest.mark.slow
class TestDelivered:
    def test_every_student_loads_without_the_code_of_methods(self, tmp_path: Path) -> None:
        said: dict[Path, torch.Tensor] = {}
        for name in [*NAMES, "combine", "combine of detectors"]:
            scene = Scene(name)
            delivered = scene.method.deliver(scene.student).eval()
            header = {
                "network": delivered.reference,
                "arguments": dict(delivered.arguments),
                "classes": ["a", "b", "c"],
                "input": scene.input,
            }
            path = tmp_path / f"{name}.safetensors"
            texts = {"format": "pt", weights.HEADER_KEY: json.dumps(header)}
            weights.save_student(path, delivered, texts)
            images = scene.view(scene.batch.images)
            said[path] = delivered(images).detach()
            torch.save(images, f"{path}.images")
        subprocess.run(
            [sys.executable, "-c", LOADER, *said],
            check=True,
            cwd=folders.ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for path, logits in said.items():
            stored = torch.load(f"{path}.logits", weights_only=True)
            assert torch.allclose(stored, logits, rtol=1e-4, atol=1e-5), path.name


class TestExport:
    def test_methods_say_what_callers_need(self) -> None:
        for entry in export_catalog.describe()["methods"]:
            assert entry["description"]
            assert entry["source"]["title"]
            assert json.dumps(entry["params_schema"])
