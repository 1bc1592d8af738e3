"""What holds for every data-free method."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from tests.distill import folders
from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill import errors
from workers.distill.config import rules
from workers.distill.config.job import Input, Task
from workers.distill.config.synthesis import GeneratorSynthesis
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch
from workers.distill.methods import catalog
from workers.distill.methods.base import Moment, Terms
from workers.distill.methods.datafree.base import (
    BufferStats,
    DataFreeMethod,
    SmoothedInversionMethod,
)
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network, batch_norms
from workers.distill.runtime.precision import Precision
from workers.distill.synthesis.synthesizers import base as synthesizers
from workers.distill.synthesis.synthesizers import catalog as synthesizer_catalog

NAMES = sorted(n for n, kind in catalog.METHODS.items() if issubclass(kind, DataFreeMethod))
DENSE = [name for name in NAMES if "segmentation" in catalog.METHODS[name].tasks]
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
    """A method between two small networks, and its synthesizer."""

    def __init__(self, name: str, task: Task = "classification", **changes: Any) -> None:
        self.teacher = a_network(2, task, trains=False)
        self.student = a_network(1, task, trains=True)
        kind = catalog.METHODS[name]
        budget: dict[str, Any] = {"batch_size": IMAGES, "steps": 3}
        if isinstance(kind.Params().synthesis, GeneratorSynthesis):  # type: ignore[attr-defined]  # those of the family
            budget |= {"latent_size": 8, "width": 4}
        values = {**SMALL.get(name, {}), "synthesis": budget, **changes}
        torch.manual_seed(3)
        method = kind(kind.Params.model_validate(values), self.student, self.teacher)
        assert isinstance(method, DataFreeMethod)
        self.method = method
        self.context = synthesizers.SynthesisContext(
            method=method,
            teacher=self.teacher,
            student=self.student,
            teacher_preprocessor=Preprocessor("teacher", SIZE, SIZE, CPU),
            student_preprocessor=Preprocessor("student", SIZE, SIZE, CPU),
            precision=Precision("float32", CPU),
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
        """Make one whole call; return its result and the terms of every step."""
        self.student.eval()
        self.synthesizer.start_round(number)
        terms_of_steps = []
        for _ in range(self.context.budget.steps):
            total, terms = self.synthesizer.step(self.buffer, uses_student=uses_student)
            assert total.isfinite()
            terms_of_steps.append(terms)
        result = self.synthesizer.finish_round()
        with torch.no_grad():
            outputs = self.context.forward(
                result.images,
                result.targets,
                buffer=self.buffer,
                call=number,
                uses_student=False,
                augment=synthesizers.unchanged,
            )
        self.method.after_call(result.last, outputs)
        self.buffer = BufferStats(IMAGES, torch.full((3,), 1 / 3))
        return result, terms_of_steps


def calls(scene: Scene) -> list[tuple[synthesizers.SynthesisResult, list[dict[str, Any]]]]:
    return [scene.call(number, uses_student=scene.method.uses_student) for number in (1, 2)]


@pytest.fixture(params=NAMES)
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(str(request.param))


class TestEveryDataFreeMethod:
    def test_a_call_leaves_images_with_pixels_and_targets(self, scene: Scene) -> None:
        for result, _ in calls(scene):
            assert result.images.shape == (IMAGES, 1, 8, 8)
            assert not result.images.requires_grad
            assert result.images.isfinite().all()
            if scene.method.synthesizer != "noise":  # which leaves 0..1 on purpose
                assert result.images.min() >= 0
                assert result.images.max() <= 1
            assert ((result.targets >= 0) & (result.targets < 3)).all()

    def test_terms_have_the_same_names_with_and_without_the_student(self, scene: Scene) -> None:
        _, terms_of_steps = calls(scene)[-1]
        later = terms_of_steps[-1]
        assert all(term.shape == () and term.isfinite() for term in later.values())
        if scene.method.synthesizer == "noise":
            assert later == {}
            return
        without_student = Scene(scene.method.name)
        if scene.method.learns_from_student_only:  # no call may be made without the student
            return
        _, earlier = without_student.call(1, uses_student=False)
        assert list(earlier[0]) == list(later)

    def test_looks_change_neither_network_and_leave_no_hooks(self, scene: Scene) -> None:
        pair = (scene.teacher, scene.student)
        before = [{k: v.clone() for k, v in one.state_dict().items()} for one in pair]
        calls(scene)
        for one, result in zip(pair, before, strict=True):
            for key, value in one.state_dict().items():
                assert torch.equal(value, result[key]), key
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
        result: dict[str, Any] = {
            "inverter": scene.synthesizer.state(),
            "method": scene.method.state_dict(),
            "random": torch.get_rng_state(),
        }
        resumed = Scene(scene.method.name)
        resumed.buffer = scene.buffer
        resumed.student.eval()
        torch.save(result, tmp_path / "result")
        content = torch.load(tmp_path / "result", weights_only=True)
        resumed.synthesizer.restore(content["inverter"])
        resumed.method.load_state_dict(content["method"])
        results = []
        for one in (resumed, scene):
            torch.set_rng_state(result["random"])
            for _ in range(2):
                one.synthesizer.step(one.buffer, uses_student=one.method.uses_student)
            results.append(one.synthesizer.finish_round())
        assert torch.equal(results[0].images, results[1].images)

    @pytest.mark.parametrize("name", DENSE)
    def test_takes_dense_networks(self, name: str) -> None:
        scene = Scene(name, "segmentation")
        (result, terms_of_steps), _ = calls(scene)
        assert result.images.shape == (IMAGES, 1, 8, 8)
        assert all(term.isfinite() for terms in terms_of_steps for term in terms.values())
        images = scene.context.student_preprocessor(255 * result.images)
        with torch.no_grad():
            teacher_out = scene.teacher.observe(images)
        student_out = scene.student.train().observe(images)
        assert student_out.logits.shape == (IMAGES, 3, 8, 8)
        batch = Batch(
            result.images, result.targets, torch.arange(IMAGES), weights=torch.ones(IMAGES)
        )
        moment = Moment(epoch=1, step=1, steps_per_epoch=1)
        terms = scene.method.terms(student_out, teacher_out, batch, moment)
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
        fields = kind.Params.model_fields
        off = {key: 0 for key in ("bn_weight", "contrast_weight") if key in fields}
        made = kind(kind.Params.model_validate(off), student, plain)
        assert isinstance(made, DataFreeMethod)
        assert not made.uses_bn_statistics


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
                terms_of_steps = ("description", "default", "title")
                limits = {
                    part: value for part, value in field.items() if part not in terms_of_steps
                }
                bounds.setdefault(key, set()).add(repr(sorted(limits.items())))
        assert {key: variants for key, variants in meanings.items() if len(variants) > 1} == {}
        assert {key: variants for key, variants in bounds.items() if len(variants) > 1} == {}


KINDS: dict[str, type[DataFreeMethod]] = {
    name: kind for name, kind in catalog.METHODS.items() if issubclass(kind, DataFreeMethod)
}
TERMS: list[tuple[str, str]] = [
    (name, field.removesuffix("_weight"))
    for name in NAMES
    for field in KINDS[name].Params.model_fields
    if field.endswith("_weight") and field not in ("cam_weight", "attention_weight")
]
"""Methods with each term of their synthesis loss that has a weight."""
STEP = batches.batch(batches.outputs(TEACHER, batches.norm_input()), batches.outputs(STUDENT))
STUDENT_TERMS = {"adversarial", "competition", "student_bn"}
SMOOTHED = [name for name in NAMES if issubclass(KINDS[name], SmoothedInversionMethod)]
GRADCHECK: dict[str, dict[str, Any]] = {
    # The first view gets no gradient from the contrast, by design.
    "cmi": {"contrast_weight": 0},
    "deepinversion": {"tv_weight": 1, "l2_weight": 1, "student_bn_weight": 1},
    # A constant phi is no part of a numeric gradient, so its own gradient is asked for.
    "ssdkd": {"modulation_gradient": True},
}


def weights(name: str, value: float) -> dict[str, Any]:
    return {f"{term}_weight": value for method, term in TERMS if method == name}


def build(name: str, **values: Any) -> DataFreeMethod:  # Any: what a job config may hold
    """Return a method in float64 between tiny networks."""
    if name == "spaceshipnet":  # needs final maps and a classifier
        pair = scenes.network(), scenes.other_network()
    else:
        pair = batches.small(1), batches.small()
    params = KINDS[name].Params.model_validate({**SMALL.get(name, {}), **values})
    torch.manual_seed(8)
    return KINDS[name](params, *pair).double()


def terms_of(made: DataFreeMethod, *, student: bool = True) -> Terms:
    images = batches.images().requires_grad_()
    learner = batches.small(1) if student else None
    return made.synthesis_terms(batches.forward(made, images, batches.small(), learner))


class TestSynthesisTerms:
    @pytest.mark.parametrize(("name", "term"), TERMS)
    def test_are_proportional_to_their_weights(self, name: str, term: str) -> None:
        plain = terms_of(build(name, **weights(name, 1)))
        terms = terms_of(build(name, **weights(name, 1) | {f"{term}_weight": 3}))
        assert list(terms) == list(plain)
        for other, value in plain.items():
            # The weight of student_bn is a share of that of bn.
            follows = other == term or (term, other) == ("bn", "student_bn")
            assert torch.allclose(terms[other], (3 if follows else 1) * value, rtol=1e-12), other

    @pytest.mark.parametrize(("name", "term"), TERMS)
    def test_are_zeros_without_gradient_where_their_weight_is_zero(
        self, name: str, term: str
    ) -> None:
        off = {term, "student_bn"} if term == "bn" else {term}
        terms = terms_of(build(name, **weights(name, 1) | {f"{term}_weight": 0}))
        for other, value in terms.items():
            assert value.shape == ()
            assert value.requires_grad is (other not in off), other
            assert bool(value.any()) is (other not in off), other

    @pytest.mark.parametrize("name", NAMES)
    def test_that_need_the_student_are_zeros_without_it(self, name: str) -> None:
        made = build(name)
        terms = terms_of(made, student=False)
        assert list(terms) == list(terms_of(made))
        for term in STUDENT_TERMS & terms.keys():
            assert float(terms[term]) == 0
            assert not terms[term].requires_grad

    @pytest.mark.parametrize(
        ("name", "term"),
        [
            *((name, term) for name, term in TERMS if KINDS[name].synthesizer != "pixels"),
            ("dfad", "adversarial"),
            ("zskt", "adversarial"),
        ],
    )
    def test_reach_the_generator(self, name: str, term: str) -> None:
        only = {**weights(name, 0), f"{term}_weight": 1} if (name, term) in TERMS else {}
        budget = {"latent_size": 8, "width": 4, "batch_size": IMAGES}
        values = {**SMALL.get(name, {}), **only, "synthesis": budget}
        if "masked" in KINDS[name].Params.model_fields:
            values["masked"] = False  # two fresh networks may agree nowhere
        pair = scenes.network(), scenes.other_network()
        made = KINDS[name](KINDS[name].Params.model_validate(values), *pair)
        gradients = batches.gradients(made, *pair)
        moved = [bool(gradient.any()) for gradient in gradients]
        # Some of NAYER's parameters only shift the input of a batch norm.
        assert all(moved) if name != "nayer" else sum(moved) > len(moved) / 2

    @pytest.mark.parametrize(
        ("name", "dense"),
        [
            (name, dense)
            for name in NAMES
            for dense in (False, True)
            if name != "noise" and (name in DENSE or not dense)
        ],
    )
    def test_have_the_gradient_of_their_value(self, name: str, dense: bool) -> None:
        teacher, student = batches.small(dense=dense), batches.small(1, dense=dense)
        made = build(name, **GRADCHECK.get(name, {}))
        earlier = batches.forward(made, batches.images(seed=3), teacher, None)
        made.after_call(earlier, earlier)
        assert torch.autograd.gradcheck(
            lambda images: batches.loss(made, batches.forward(made, images, teacher, student)),
            (batches.images(2).requires_grad_(),),
            fast_mode=True,
        )

    @pytest.mark.parametrize("name", ["dfad", "dfq", "mad", "zskt"])
    def test_have_the_gradient_of_their_value_for_both_networks_logits(self, name: str) -> None:
        made = build(name, **({"bn_weight": 0} if name in ("dfq", "mad") else {}))
        assert torch.autograd.gradcheck(
            lambda teacher, student: batches.loss(made, batches.step(teacher, student)),
            (TEACHER.clone().requires_grad_(), STUDENT.clone().requires_grad_()),
            fast_mode=True,
        )

    @pytest.mark.parametrize("name", [name for name, term in TERMS if term == "adversarial"])
    def test_use_the_student_only_where_that_has_a_weight(self, name: str) -> None:
        assert build(name).uses_student
        assert not build(name, adversarial_weight=0).uses_student


class TestMoments:
    """Moments of batch norms that are smoothed over calls."""

    def filled(self, name: str, **values: float) -> DataFreeMethod:
        made = build(name, bn_weight=1, **values)
        stored = CASES.case("bn_momentum")
        received = batches.with_moments(stored["stored_mean"], stored["stored_var"])
        last = batches.batch(batches.outputs(TEACHER, batches.norm_input(received)))
        made.after_call(last, STEP)
        return made

    @pytest.mark.parametrize("name", SMOOTHED)
    def test_change_with_each_call_and_not_with_a_step(self, name: str) -> None:
        made = self.filled(name)
        for _ in range(2):
            term = made.synthesis_terms(STEP)["bn"]
            assert CASES.close(term, CASES.case("bn_momentum", "loss"))
        made.after_call(STEP, STEP)
        state = made.state_dict()
        for key, buffer in (("mean", "mean_0"), ("var", "variance_0")):
            expected = CASES.tensor("bn_momentum", f"next_stored_{key}")
            assert CASES.close(state[f"memory.{buffer}"], expected)

    @pytest.mark.parametrize("name", SMOOTHED)
    def test_of_earlier_calls_do_not_count_without_momentum(self, name: str) -> None:
        terms = self.filled(name, bn_momentum=0).synthesis_terms(STEP)
        assert CASES.close(terms["bn"], CASES.case("bn_loss_l2norm_var"))

    @pytest.mark.parametrize("name", SMOOTHED)
    def test_continue_exactly_from_their_state(self, name: str) -> None:
        made, again = self.filled(name), build(name, bn_weight=1)
        again.load_state_dict(made.state_dict())
        for _ in range(2):
            expected, terms = made.synthesis_terms(STEP), again.synthesis_terms(STEP)
            assert torch.equal(terms["bn"], expected["bn"])
            made.after_call(STEP, STEP)
            again.after_call(STEP, STEP)

    @pytest.mark.parametrize("name", SMOOTHED)
    def test_are_not_kept_where_they_have_no_weight(self, name: str) -> None:
        params = KINDS[name].Params.model_validate({**SMALL.get(name, {}), "bn_weight": 0})
        made = KINDS[name](params, batches.small(1), batches.small(normed=False))
        step = batches.batch(batches.outputs(TEACHER))
        made.after_call(step, step)
        assert not made.uses_bn_statistics


class TestStudentLoss:
    @pytest.mark.parametrize("temperature", [1, 4, 20])
    @pytest.mark.parametrize(
        ("name", "shape"),
        [
            (name, shape)
            for name in NAMES
            for shape in (torch.clone, batches.dense)
            if "temperature" in KINDS[name].Params.model_fields
            if name != "spaceshipnet"  # also needs final maps
            if shape is torch.clone or name in DENSE
        ],
    )
    def test_equals_the_golden_divergence(
        self, name: str, temperature: int, shape: Callable[[torch.Tensor], torch.Tensor]
    ) -> None:
        student, teacher = (batches.features(shape(logits)) for logits in (STUDENT, TEACHER))
        batch = scenes.batch(range(len(student.logits)))
        terms = build(name, temperature=temperature).terms(student, teacher, batch, scenes.MOMENT)
        assert CASES.close(terms["kd"], CASES.case(f"kd_mean_T{temperature}"))
        assert all(float(term) == 0 for key, term in terms.items() if key != "kd")


SINGLE_WEIGHTS = [
    (name, weight)
    for name in NAMES
    for weight in (*KINDS[name].image_weights, *KINDS[name].adversarial_weights)
]


class TestMovedImages:
    """What the rules accept gives the images a gradient: the synthesizers do not check again."""

    @pytest.mark.parametrize(("name", "weight"), SINGLE_WEIGHTS)
    def test_each_weight_alone_moves_them(self, name: str, weight: str) -> None:
        kind = KINDS[name]
        values = dict.fromkeys((*kind.image_weights, *kind.adversarial_weights), 0.0)
        values[weight] = 1.0
        is_adversarial = weight in kind.adversarial_weights
        full = kind.Params.model_validate({**values, "synthesis": {"warmup_calls": 0}}).model_dump()
        assert list(rules.of_method(kind.describe(), full)) == []
        scene = Scene(name, "classification", **values)
        scene.call(1, uses_student=is_adversarial)  # raises without a gradient

    def test_without_any_weight_a_method_is_refused(self) -> None:
        for name in {name for name, _ in SINGLE_WEIGHTS}:
            kind = KINDS[name]
            off = dict.fromkeys((*kind.image_weights, *kind.adversarial_weights), 0.0)
            if kind.learns_from_student_only:
                continue
            with pytest.raises(errors.BadRecipe, match="raise one of them"):
                catalog.find({"name": name, **off})


class TestBudget:
    @pytest.mark.parametrize("name", NAMES)
    def test_keeps_the_other_defaults_where_it_is_given_in_part(self, name: str) -> None:
        params = KINDS[name].Params.model_validate({"synthesis": {"batch_size": 32}})
        default = KINDS[name].Params().synthesis
        assert params.synthesis == default.model_copy(update={"batch_size": 32})
        assert KINDS[name].Params.model_validate_json(params.model_dump_json()) == params

    @pytest.mark.parametrize("name", NAMES)
    def test_refuses_fields_of_another_kind(self, name: str) -> None:
        with pytest.raises(ValidationError):
            KINDS[name].Params.model_validate({"synthesis": {"unknown": 1}})

    @pytest.mark.parametrize("name", ["dfad", "zskt"])
    def test_has_no_warm_up_where_every_term_needs_the_student(self, name: str) -> None:
        with pytest.raises(errors.BadRecipe, match="warmup_calls") as refused:
            catalog.find({"name": name, "synthesis": {"warmup_calls": 2}})
        assert refused.value.details["field"] == "method/synthesis/warmup_calls"


class TestIdentity:
    def test_without_its_modules_ssdkd_is_fast_without_meta_learning(self) -> None:
        weights: dict[str, Any] = {
            "bn_weight": 2.0,
            "onehot_weight": 0.7,
            "adversarial_weight": 1.3,
        }
        off: dict[str, Any] = {"diversity": False, "difficulty": False, "prioritise": False}
        outcomes = []
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
            outcomes.append(calls(scene))
        for (one, ones), (other, others) in zip(*outcomes, strict=True):
            assert torch.equal(one.images, other.images)
            for mine, theirs in itertools.zip_longest(ones, others):
                assert list(mine) == list(theirs)
                # A mean of products with 1 is added up in another order.
                assert all(torch.allclose(mine[key], theirs[key], rtol=1e-5) for key in mine)
