"""The promise that all methods keep which invent their images."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill import folders
from workers.distill import errors
from workers.distill.config.job import Input, Task
from workers.distill.config.synthesis import GeneratorSynthesis
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch
from workers.distill.methods import catalog
from workers.distill.methods.base import Moment
from workers.distill.methods.datafree.base import BufferStats, DataFreeMethod
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network, batch_norms
from workers.distill.synthesis.synthesizers import base as synthesizers
from workers.distill.synthesis.synthesizers import catalog as synthesizer_catalog
from workers.distill.training import optimizers

NAMES = sorted(n for n, kind in catalog.METHODS.items() if issubclass(kind, DataFreeMethod))
DENSE = [name for name in NAMES if "segmentation" in catalog.METHODS[name].tasks]
WEIGHED = [name for name in NAMES if "onehot_weight" in catalog.METHODS[name].Params.model_fields]
SIZE = Input.model_validate(folders.INPUT)
CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "cmi": {"bank_size": 16, "bank_draws": 8},
    "nayer": {"code_size": 8},
}
IMAGES = 6


def a_network(seed: int, task: Task, *, trains: bool) -> Network:
    torch.manual_seed(seed)
    reference, widths = (
        ("retort/convnet", [4, 6, 8]) if task == "classification" else ("retort/fcn", [4, 6])
    )
    arguments = {"widths": [2 * width for width in widths] if not trains else widths}
    built = networks.build(reference, classes=3, channels=1, height=8, width=8, arguments=arguments)
    return built if trains else built.eval().requires_grad_(False)


class Scene:
    """A method between two small networks, and the inverter that it names."""

    def __init__(self, name: str, task: Task = "classification", **changes: Any) -> None:
        self.teacher = a_network(2, task, trains=False)
        self.student = a_network(1, task, trains=True)
        kind = catalog.METHODS[name]
        budget: dict[str, Any] = {"batch_size": IMAGES, "steps": 3}
        if isinstance(kind.Params().synthesis, GeneratorSynthesis):  # type: ignore[attr-defined]  # those of the family
            budget |= {"latent_size": 8, "width": 4}
        choice = {"name": name, **SMALL.get(name, {}), "synthesis": budget, **changes}
        torch.manual_seed(3)
        method = catalog.build(choice, self.student, self.teacher)
        assert isinstance(method, DataFreeMethod)
        self.method = method
        self.context = synthesizers.SynthesisContext(
            method=method,
            teacher=self.teacher,
            student=self.student,
            teacher_view=Preprocessor("teacher", SIZE, SIZE, CPU),
            student_view=Preprocessor("student", SIZE, SIZE, CPU),
            precision=optimizers.Precision("float32", CPU),
            device=CPU,
            mean=tuple(SIZE.mean),
            std=tuple(SIZE.std),
            flip=True,
        )
        self.synthesizer = synthesizer_catalog.build(self.context)
        self.buffer = BufferStats(0, torch.zeros(3))

    def call(
        self, number: int, *, uses_student: bool
    ) -> tuple[synthesizers.SynthesisResult, list[dict[str, Any]]]:
        """Make one whole call, and return what it keeps with the terms of every step."""
        self.student.eval()
        self.synthesizer.start_round(number)
        told = []
        for _ in range(self.context.budget.steps):
            total, terms = self.synthesizer.step(self.buffer, uses_student=uses_student)
            assert total.isfinite()
            told.append(terms)
        kept = self.synthesizer.finish_round()
        with torch.no_grad():
            shown = self.context.forward(
                kept.images,
                kept.targets,
                buffer=self.buffer,
                call=number,
                uses_student=False,
                augment=synthesizers.unchanged,
            )
        self.method.after_call(kept.last, shown)
        self.buffer = BufferStats(IMAGES, torch.full((3,), 1 / 3))
        return kept, told


def calls(scene: Scene) -> list[tuple[synthesizers.SynthesisResult, list[dict[str, Any]]]]:
    return [scene.call(number, uses_student=scene.method.uses_student) for number in (1, 2)]


@pytest.fixture(params=NAMES)
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(str(request.param))


class TestEveryDataFreeMethod:
    def test_a_call_leaves_images_with_pixels_and_targets(self, scene: Scene) -> None:
        for kept, _ in calls(scene):
            assert kept.images.shape == (IMAGES, 1, 8, 8)
            assert not kept.images.requires_grad
            assert kept.images.isfinite().all()
            if scene.method.synthesizer != "noise":  # which leaves 0..1 on purpose
                assert kept.images.min() >= 0
                assert kept.images.max() <= 1
            assert ((kept.targets >= 0) & (kept.targets < 3)).all()

    def test_terms_have_the_same_names_with_and_without_the_student(self, scene: Scene) -> None:
        _, told = calls(scene)[-1]
        later = told[-1]
        assert all(term.shape == () and term.isfinite() for term in later.values())
        if scene.method.synthesizer == "noise":
            assert later == {}
            return
        unjudged = Scene(scene.method.name)
        if set(later) == {"adversarial"}:
            with pytest.raises(errors.BadRecipe, match="raise a weight"):
                unjudged.call(1, uses_student=False)
            return
        _, earlier = unjudged.call(1, uses_student=False)
        assert list(earlier[0]) == list(later)

    def test_looks_change_neither_network_and_leave_no_hooks(self, scene: Scene) -> None:
        pair = (scene.teacher, scene.student)
        before = [{k: v.clone() for k, v in one.state_dict().items()} for one in pair]
        calls(scene)
        for one, kept in zip(pair, before, strict=True):
            for key, value in one.state_dict().items():
                assert torch.equal(value, kept[key]), key
            assert all(parameter.grad is None for parameter in one.parameters())
            for part in one.modules():
                assert not part._forward_hooks
                assert not part._forward_pre_hooks

    def test_synthesis_moves_what_it_is_to_move(self, scene: Scene) -> None:
        before = scene.synthesizer.state()
        weights = (key for key in before.get("generator", {}) if key.endswith("weight"))
        first = {key: before["generator"][key].clone() for key in weights}
        (one, _), (other, _) = calls(scene)
        assert not torch.equal(one.images, other.images)
        after = scene.synthesizer.state().get("generator", {})
        assert all(not torch.equal(after[key], first[key]) for key in first)

    def test_goes_on_exactly_inside_a_call(self, scene: Scene, tmp_path: Path) -> None:
        scene.call(1, uses_student=scene.method.uses_student)
        scene.synthesizer.start_round(2)
        scene.synthesizer.step(scene.buffer, uses_student=scene.method.uses_student)
        kept: dict[str, Any] = {
            "inverter": scene.synthesizer.state(),
            "method": scene.method.state_dict(),
            "random": torch.get_rng_state(),
        }
        resumed = Scene(scene.method.name)
        resumed.buffer = scene.buffer
        resumed.student.eval()
        torch.save(kept, tmp_path / "kept")
        content = torch.load(tmp_path / "kept", weights_only=True)
        resumed.synthesizer.restore(content["inverter"])
        resumed.method.load_state_dict(content["method"])
        found = []
        for one in (resumed, scene):
            torch.set_rng_state(kept["random"])
            for _ in range(2):
                one.synthesizer.step(one.buffer, uses_student=one.method.uses_student)
            found.append(one.synthesizer.finish_round())
        assert torch.equal(found[0].images, found[1].images)

    @pytest.mark.parametrize("name", DENSE)
    def test_takes_dense_networks(self, name: str) -> None:
        scene = Scene(name, "segmentation")
        (kept, told), _ = calls(scene)
        assert kept.images.shape == (IMAGES, 1, 8, 8)
        assert all(term.isfinite() for terms in told for term in terms.values())
        images = scene.context.student_view(255 * kept.images)
        with torch.no_grad():
            taught = scene.teacher.observe(images)
        learned = scene.student.train().observe(images)
        assert learned.logits.shape == (IMAGES, 3, 8, 8)
        batch = Batch(kept.images, kept.targets, torch.arange(IMAGES), weights=torch.ones(IMAGES))
        moment = Moment(epoch=1, step=1, steps_per_epoch=1)
        terms = scene.method.terms(learned, taught, batch, moment)
        total = torch.stack(list(terms.values())).sum()
        total.backward()
        assert total.isfinite()
        assert all(parameter.grad is not None for parameter in scene.student.parameters())

    @pytest.mark.parametrize("name", NAMES)
    def test_says_whether_it_needs_batch_norm(self, name: str) -> None:
        kind = catalog.METHODS[name]
        plain = a_network(2, "classification", trains=False)
        for path in batch_norms(plain):
            plain.set_submodule(path, torch.nn.Identity())
        student = a_network(1, "classification", trains=True)
        if "batch_norm" in kind.needs:
            with pytest.raises(errors.IncompatibleNetworks, match="batch norms"):
                kind(kind.Params(), student, plain)
            return
        assert isinstance(kind(kind.Params(), student, plain), DataFreeMethod)


class TestHyperParameters:
    def test_of_one_name_mean_the_same_within_the_same_bounds(self) -> None:
        meanings: dict[str, set[str]] = {}
        bounds: dict[str, set[str]] = {}
        for name in NAMES:
            schema = catalog.METHODS[name].Params.model_json_schema()
            for key, field in schema["properties"].items():
                if "$ref" in field:  # a budget of its own kind
                    continue
                meaning, ends, _ = field["description"].partition(".")
                assert ends, (name, key)
                meanings.setdefault(key, set()).add(meaning)
                told = ("description", "default", "title")
                limits = {part: value for part, value in field.items() if part not in told}
                bounds.setdefault(key, set()).add(repr(sorted(limits.items())))
        assert {key: found for key, found in meanings.items() if len(found) > 1} == {}
        assert {key: found for key, found in bounds.items() if len(found) > 1} == {}

    @pytest.mark.parametrize("name", WEIGHED)
    def test_of_no_weight_switch_their_terms_off(self, name: str) -> None:
        fields = catalog.METHODS[name].Params.model_fields
        off: dict[str, Any] = {key: 0 for key in fields if key.endswith("_weight")}
        scene = Scene(name, **off)
        images = torch.rand(IMAGES, 1, 8, 8, requires_grad=True)
        shown = scene.context.forward(
            images,
            torch.arange(IMAGES) % 3,
            buffer=scene.buffer,
            call=1,
            uses_student=True,
            augment=synthesizers.unchanged,
        )
        for key, term in scene.method.synthesis_terms(shown).items():
            assert float(term) == 0, key
            assert not term.requires_grad, key


class TestIdentity:
    def test_without_its_modules_ssdkd_is_fast_without_meta_learning(self) -> None:
        weights: dict[str, Any] = {
            "bn_weight": 2.0,
            "onehot_weight": 0.7,
            "adversarial_weight": 1.3,
        }
        off: dict[str, Any] = {"diversity": False, "difficulty": False, "prioritise": False}
        found = []
        for name, more in (("ssdkd", off), ("fast", {})):
            budget = {
                "batch_size": IMAGES,
                "steps": 3,
                "latent_size": 8,
                "width": 4,
                "meta": "none",
                "restart_epoch": None,
            }
            scene = Scene(name, **weights, **more, synthesis=budget)
            torch.manual_seed(5)
            found.append(calls(scene))
        for (one, ones), (other, others) in zip(*found, strict=True):
            assert torch.equal(one.images, other.images)
            for mine, theirs in itertools.zip_longest(ones, others):
                assert list(mine) == list(theirs)
                # A mean of products with 1 is added up in another order.
                assert all(torch.allclose(mine[key], theirs[key], rtol=1e-5) for key in mine)
