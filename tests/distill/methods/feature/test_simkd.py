import json
from pathlib import Path

import pytest
import torch

from tests.distill import folders
from tests.distill.methods import scenes
from workers.distill import errors
from workers.distill.evaluation import evaluate
from workers.distill.methods.feature import simkd
from workers.distill.networks import catalog, weights
from workers.distill.networks.interface import Network
from workers.distill.networks.zoo import reused


def maps(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def scene(**values: float) -> tuple[simkd.SimKD, Network, Network]:
    student, teacher = scenes.network(), scenes.other_network()
    return (
        simkd.SimKD(simkd.SimKD.Params.model_validate(values), student, teacher),
        student,
        teacher,
    )


class TestSimKDLoss:
    def test_is_the_mean_square_at_the_smaller_size(self) -> None:
        projected, teacher = maps(0, 2, 3, 4, 4), maps(1, 2, 3, 2, 2)
        cells = projected.reshape(2, 3, 2, 2, 2, 2).mean((3, 5))
        expected = sum(float(each) ** 2 for each in (cells - teacher).flatten()) / 24
        loss = simkd.simkd_loss(projected, teacher)
        assert torch.allclose(loss, torch.tensor(expected, dtype=torch.float64), rtol=1e-9)
        assert float(simkd.simkd_loss(teacher, teacher)) == 0

    def test_has_the_gradient_of_its_value(self) -> None:
        projected, teacher = maps(2, 2, 3, 2, 2).requires_grad_(), maps(3, 2, 3, 4, 4)
        assert torch.autograd.gradcheck(lambda seen: simkd.simkd_loss(seen, teacher), (projected,))


class TestSimKD:
    def test_has_one_term_that_teaches_all_but_the_classifiers(self) -> None:
        method, student, teacher = scene(simkd_weight=3.0)
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        terms = method.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert list(terms) == ["simkd"]
        terms["simkd"].backward()
        assert all(parameter.grad is not None for parameter in method.parameters())
        untrained = [name for name, value in student.named_parameters() if value.grad is None]
        assert untrained == ["fc.weight", "fc.bias"]
        assert all(parameter.grad is None for parameter in teacher.parameters())
        assert all(name.startswith("projector.") for name in method.state_dict())

    def test_delivers_the_teachers_answers_where_the_projection_is_perfect(self) -> None:
        method, student, teacher = scene()
        delivered = method.deliver(student).eval()
        images = scenes.pictures(5)
        student_out = delivered.observe(images)
        classifier = teacher.pooled_classifier()
        assert classifier is not None
        assert torch.equal(delivered(images), classifier(student_out.pooled))
        assert torch.equal(student_out.logits, delivered(images))
        assert student_out.final is not None
        assert torch.equal(student_out.final.mean((2, 3)), student_out.pooled)
        teacher_out = teacher.observe(images)
        assert torch.allclose(classifier(teacher_out.pooled), teacher_out.logits)

    def test_delivers_what_it_trains_without_a_copy_or_a_draw(self) -> None:
        method, student, _ = scene()
        before = torch.get_rng_state()
        delivered = method.deliver(student)
        assert torch.equal(torch.get_rng_state(), before)
        addresses = {value.data_ptr() for value in delivered.parameters()}
        trained = [*student.parameters(), *method.parameters(), method.weight, method.bias]
        assert addresses == {value.data_ptr() for value in trained}
        assert all(value.requires_grad for value in student.parameters())
        # As the loop does with the best epoch's weights.
        kept = {name: value + 1 for name, value in method.state_dict().items()}
        method.load_state_dict(kept)
        assert torch.equal(
            delivered.state_dict()["projector.layers.0.weight"], kept["projector.layers.0.weight"]
        )

    def test_delivers_a_network_that_loads_without_the_method(self, tmp_path: Path) -> None:
        method, student, _ = scene(factor=4)
        delivered = method.deliver(student).eval()
        header = {
            "network": delivered.reference,
            "arguments": dict(delivered.arguments),
            "classes": ["a", "b", "c"],
            "input": {"channels": 1, "height": 8, "width": 8},
        }
        path = tmp_path / "student.safetensors"
        weights.save_student(path, delivered, {weights.HEADER_KEY: json.dumps(header)})
        rebuilt, _ = weights.rebuild(path)
        images = scenes.pictures(5)
        assert isinstance(rebuilt, reused.ReusedClassifier)
        assert torch.equal(rebuilt.eval()(images), delivered(images))
        assert (rebuilt.classes, rebuilt.image_shape) == (3, (1, 8, 8))
        assert (delivered.classes, delivered.image_shape) == (3, (1, 8, 8))

    @pytest.mark.slow
    def test_leaves_a_file_that_scores_as_the_job_said(self, tmp_path: Path) -> None:
        path = folders.prepare(tmp_path, method={"name": "simkd"}, training={"epochs": 1})
        code, lines = folders.run_here(path)
        assert code == 0
        student = tmp_path / "student.safetensors"
        scored = evaluate.evaluate_file(student, tmp_path / "dataset", "test")
        assert scored["accuracy"] == lines[-1]["scores"]["student"]["accuracy"]
        model = json.loads((tmp_path / "model.json").read_text())
        header = weights.read_header(student)
        assert model["network"] == header["network"] == "retort/reused_classifier"
        assert model["arguments"] == header["arguments"]
        backbone = {"network": "retort/resnet8", "arguments": {}}
        assert header["arguments"]["backbone"] == backbone

    def test_refuses_a_student_that_reuses_a_classifier_already(self) -> None:
        method, student, teacher = scene()
        with pytest.raises(errors.IncompatibleNetworks, match="choose its backbone"):
            simkd.SimKD(simkd.SimKD.Params(), method.deliver(student), teacher)

    def test_takes_a_delivered_network_as_a_teacher(self) -> None:
        method, student, _ = scene()
        teacher = method.deliver(scenes.network(5)).eval().requires_grad_(False)
        again = simkd.SimKD(simkd.SimKD.Params(), student, teacher)
        assert torch.equal(again.weight, method.weight)

    def test_averages_a_larger_map_of_the_student_before_it_is_projected(self) -> None:
        student = catalog.build(
            "retort/reused_classifier",
            classes=3,
            channels=1,
            height=16,
            width=16,
            arguments={
                "backbone": {"network": "retort/resnet8", "arguments": {"widths": [4, 4, 6, 8]}},
                "channels": 9,
                "height": 2,
                "width": 3,
            },
        )
        student_out = student.observe(scenes.pictures(2, (16, 16)))
        assert student_out.final is not None
        assert student_out.final.shape == (2, 9, 2, 3)
