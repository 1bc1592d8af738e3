"""The promise that all methods keep."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distill import folders
from workers import export_catalog
from workers.distill import catalog, optimizers
from workers.distill.data import batches
from workers.distill.method import Batch, Method, Moment, Terms
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network
from workers.distill.recipe import Input, expand

NAMES = sorted(catalog.METHODS)
CPU = torch.device("cpu")
MOMENT = Moment(epoch=1, step=1, steps_per_epoch=1)


def a_network(seed: int) -> Network:
    torch.manual_seed(seed)
    network = networks.build(
        folders.NETWORK, classes=3, channels=1, height=8, width=8, arguments={}
    )
    network.classes = 3
    return network


class Scene:
    """A method between two networks, with a batch."""

    def __init__(self, name: str) -> None:
        self.student, self.teacher = a_network(1), a_network(2).eval().requires_grad_(False)
        self.method: Method = catalog.build({"name": name}, self.student, self.teacher)
        images, labels = folders.images(9, 3, 0)
        size = Input.model_validate(folders.INPUT)
        self.view = batches.View("student", size, size, CPU)
        self.batch = Batch(images=images, labels=labels, index=torch.arange(9))

    def terms(self, batch: Batch | None = None) -> Terms:
        shown = batch or self.batch
        with torch.no_grad():
            taught = self.teacher.observe(self.view(shown.images))
        learned = self.student.observe(self.view(shown.images))
        return self.method.terms(learned, taught, shown, MOMENT)


@pytest.fixture(params=NAMES)
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(request.param)


class TestEveryMethod:
    def test_terms_are_finite_scalars(self, scene: Scene) -> None:
        terms = scene.terms()
        assert terms
        assert all(term.shape == () and term.isfinite() for term in terms.values())

    def test_student_and_learned_parts_receive_a_gradient_and_the_teacher_none(
        self, scene: Scene
    ) -> None:
        before = {name: value.clone() for name, value in scene.teacher.state_dict().items()}
        torch.stack(list(scene.terms().values())).sum().backward()
        for module in (scene.student, scene.method):
            for name, parameter in module.named_parameters():
                assert parameter.grad is not None, name
        assert all(parameter.grad is None for parameter in scene.teacher.parameters())
        for name, value in scene.teacher.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_the_order_of_the_batch_is_irrelevant(self, scene: Scene) -> None:
        scene.student.eval()
        order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
        turned = Batch(
            images=scene.batch.images[order],
            labels=scene.batch.labels[order],
            index=scene.batch.index[order],
        )
        one, other = scene.terms(), scene.terms(turned)
        for name in one:
            # float32 sums in another order.
            assert torch.allclose(one[name], other[name], rtol=1e-4, atol=1e-6), name

    def test_a_few_steps_lower_the_total(self, scene: Scene) -> None:
        training = expand({"optimizer": {"learning_rate": 0.01}, "schedule": {"name": "constant"}})
        precision = optimizers.Precision("float32", CPU)
        stepper = optimizers.Stepper((scene.student, scene.method), training, precision)
        totals = []
        for _ in range(6):
            total = torch.stack(list(scene.terms().values())).sum()
            totals.append(float(total.detach()))
            stepper.step_on(total, MOMENT)
        assert totals[-1] < totals[0]

    def test_the_delivered_student_is_a_plain_network(self, scene: Scene) -> None:
        delivered = scene.method.deliver(scene.student).eval()
        images = scene.view(scene.batch.images)
        assert delivered(images).shape == (9, 3)

    @pytest.mark.parametrize("name", NAMES)
    def test_hyperparameters_survive_json(self, name: str) -> None:
        params = catalog.METHODS[name].Params()
        assert catalog.METHODS[name].Params.model_validate_json(params.model_dump_json()) == params

    @pytest.mark.parametrize("name", NAMES)
    def test_every_hyperparameter_is_bounded_described_and_optional(self, name: str) -> None:
        schema = catalog.METHODS[name].Params.model_json_schema()
        assert schema["additionalProperties"] is False
        assert "required" not in schema
        for field, says in schema["properties"].items():
            assert says["description"].endswith("."), field
            assert "default" in says, field
            kinds: list[dict[str, Any]] = says.get("anyOf", [says])
            assert any({"minimum", "exclusiveMinimum", "enum"} & set(kind) for kind in kinds), field

    @pytest.mark.parametrize("name", NAMES)
    def test_name_file_and_key_are_one_word(self, name: str) -> None:
        method = catalog.METHODS[name]
        assert method.name == method.__module__.rpartition(".")[2] == name
        assert method.__module__.split(".")[-2] == method.family

    @pytest.mark.parametrize("name", NAMES)
    def test_every_method_has_its_own_test(self, name: str) -> None:
        family = catalog.METHODS[name].family
        assert (Path(__file__).parent / "methods" / family / f"test_{name}.py").exists()


class TestExport:
    def test_committed_files_equal_the_code(self) -> None:
        for path, text in export_catalog.rendered().items():
            assert (export_catalog.ROOT / path).read_text(encoding="utf-8") == text, (
                f"{path} is out of date; run python -m workers.export_catalog"
            )

    def test_methods_say_what_callers_need(self) -> None:
        for entry in export_catalog.describe()["methods"]:
            assert entry["description"]
            assert entry["source"]["title"]
            assert json.dumps(entry["params_schema"])
