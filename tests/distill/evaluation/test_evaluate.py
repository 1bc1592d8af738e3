import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.distill import folders
from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.data import dataset
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import evaluate, profiling
from workers.distill.networks import catalog, weights
from workers.distill.networks.interface import Features, Network


def rows(count: int = 12, classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, classes, generator=generator), torch.arange(count) % classes


class TestScores:
    def test_accuracy_is_the_share_of_right_answers(self) -> None:
        logits, labels = rows()
        wanted = sum(
            int(row.argmax()) == int(label) for row, label in zip(logits, labels, strict=True)
        )
        assert evaluate.scores(logits, labels)["accuracy"] == wanted / 12

    def test_calibration_error_is_the_gap_between_confidence_and_accuracy_by_bin(self) -> None:
        logits, labels = rows(200)
        confidence, answer = logits.double().softmax(1).max(1)
        right = (answer == labels).double()
        bins = (confidence * 15).ceil().long() - 1
        wanted = sum(
            float((bins == number).double().mean())
            * abs(float(confidence[bins == number].mean() - right[bins == number].mean()))
            for number in bins.unique().tolist()
        )
        assert evaluate.scores(logits, labels)["ece"] == pytest.approx(wanted, rel=1e-9)

    def test_loss_is_the_mean_negative_log_likelihood(self) -> None:
        logits, labels = rows()
        wanted = -sum(
            math.log(float(row.double().softmax(0)[label]))
            for row, label in zip(logits, labels.tolist(), strict=True)
        )
        assert evaluate.scores(logits, labels)["loss"] == pytest.approx(wanted / 12, rel=1e-9)

    def test_agreement_counts_equal_answers_right_or_wrong(self) -> None:
        logits, labels = rows()
        teacher = logits.clone()
        teacher[0] = -teacher[0]
        assert evaluate.scores(logits, labels, teacher)["agreement"] == pytest.approx(11 / 12)
        assert "agreement" not in evaluate.scores(logits, labels)

    @pytest.mark.parametrize("classes", [2, 3])
    def test_all_right_and_all_wrong_are_fine(self, classes: int) -> None:
        labels = torch.arange(6) % classes
        right = nn.functional.one_hot(labels, classes).float()
        assert evaluate.scores(right, labels)["accuracy"] == 1
        assert evaluate.scores(-right, labels)["accuracy"] == 0


class TestWilson:
    def test_equals_the_textbooks_value(self) -> None:
        # 80 of 100, from the closed form by hand.
        low, high = evaluate.wilson(80, 100)
        assert (low, high) == pytest.approx((0.711170, 0.866633), abs=1e-6)

    @pytest.mark.parametrize("correct", [0, 1, 9, 10])
    def test_holds_the_share_and_stays_within_zero_and_one(self, correct: int) -> None:
        low, high = evaluate.wilson(correct, 10)
        assert 0 <= low <= correct / 10 <= high <= 1
        assert high - low > 0.1


class TestScoreFile:
    def test_counts_on_any_split(self, tmp_path: Path) -> None:
        asked = folders.prepare(tmp_path, teacher=None, method={"name": "ce"})
        assert folders.run_here(asked)[0] == 0
        found = evaluate.score_file(
            tmp_path / "student.safetensors", tmp_path / "dataset", "validation"
        )
        assert found["samples"] == 12
        assert found["accuracy"] == found["correct"] / 12


CPU = torch.device("cpu")
DENSE_SIZE = Input(channels=1, height=8, width=8, mean=[0.3], std=[0.3])


def masks(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return pictures of 8x8 whose bright pixels are of class 1, and some without a class."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randint(0, 2, (count, 8, 8), generator=generator).to(torch.uint8)
    truth[:, 0, 0] = 255
    return (truth == 1).to(torch.uint8)[:, None] * 200, truth


def a_dense_network(seed: int, side: int = 8) -> Network:
    torch.manual_seed(seed)
    return catalog.build(
        "retort/fcn", classes=2, channels=1, height=side, width=side, arguments={"widths": [4]}
    )


def a_view(side: int = 8) -> Preprocessor:
    expected = DENSE_SIZE.model_copy(update={"height": side, "width": side})
    return Preprocessor("student", expected, DENSE_SIZE, CPU)


class TestDenseScores:
    def test_equal_the_scores_of_all_logits_at_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        images, truth = masks(7)
        student, teacher = a_dense_network(1).train(), a_dense_network(2).eval()
        # Two images at a time.
        monkeypatch.setattr(evaluate, "DENSE_LOGITS", 2 * 2 * 64)
        rounds: list[None] = []
        found = evaluate.dense_scores(
            student,
            a_view(),
            images,
            truth,
            classes=2,
            teacher=(teacher, a_view()),
            between=lambda: rounds.append(None),
        )
        assert len(rounds) == 4
        assert student.training
        assert not teacher.training
        with torch.no_grad():
            answers, taught = (one.eval()(a_view()(images)).argmax(1) for one in (student, teacher))
        judged = truth != 255
        assert found["samples"] == 7
        assert found["pixels"] == int(judged.sum()) == 7 * 63
        assert found["accuracy"] == int((answers == truth)[judged].sum()) / (7 * 63)
        assert found["agreement"] == int((answers == taught)[judged].sum()) / (7 * 63)
        wanted = []
        for number in range(2):
            there, said = (truth == number) & judged, (answers == number) & judged
            wanted.append(int((there & said).sum()) / int((there | said).sum()))
        assert found["iou"] == wanted
        assert found["miou"] == pytest.approx(sum(wanted) / 2, rel=1e-12)

    def test_say_nothing_of_agreement_without_a_teacher(self) -> None:
        images, truth = masks(3)
        found = evaluate.dense_scores(a_dense_network(1), a_view(), images, truth, classes=2)
        assert list(found) == ["accuracy", "miou", "iou", "samples", "pixels"]

    def test_a_network_of_another_size_is_judged_at_the_size_of_the_masks(self) -> None:
        images, truth = masks(3)
        network = a_dense_network(1, side=16)
        found = evaluate.dense_scores(network, a_view(16), images, truth, classes=2)
        assert found["pixels"] == 3 * 63

    def test_teacher_agrees_with_itself(self) -> None:
        images, truth = masks(3)
        network = a_dense_network(1)
        found = evaluate.dense_scores(
            network, a_view(), images, truth, classes=2, teacher=(network, a_view())
        )
        assert found["agreement"] == 1


class TestScoreFileOfMasks:
    def write(self, folder: Path, network: Network) -> Path:
        record = dataset.DatasetRecord(
            task="segmentation",
            classes=["dark", "bright"],
            splits={"train": 4, "validation": 2, "test": 3},
            input=DENSE_SIZE,
        )
        dataset.write(
            folder / "dataset", record, {name: masks(n) for name, n in record.splits.items()}
        )
        said = {
            "network": network.reference,
            "arguments": dict(network.arguments),
            "classes": 2,
            "input": DENSE_SIZE.model_dump(),
        }
        student = folder / "student.safetensors"
        weights.save_student(student, network, {weights.HEADER_KEY: json.dumps(said)})
        return student

    def test_counts_pixels_on_any_split(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        network = a_dense_network(1)
        student = self.write(tmp_path, network)
        asked = [str(student), "--dataset", str(tmp_path / "dataset"), "--split", "test"]
        assert evaluate.main(asked) == 0
        found = json.loads(capsys.readouterr().out)
        assert found == evaluate.dense_scores(network, a_view(), *masks(3), classes=2)
        assert found["samples"] == 3

    def test_student_of_another_task_is_refused(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        network = catalog.build(
            folders.NETWORK, classes=2, channels=1, height=8, width=8, arguments={}
        )
        student = self.write(tmp_path, network)
        with pytest.raises(errors.IncompatibleNetworks, match="is for classification, and the"):
            evaluate.score_file(student, tmp_path / "dataset", "test")


class Twice(Network):
    """A network that shows a convolution's output before its norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)

    def observe(self, images: torch.Tensor) -> Features:
        maps = self.conv(images)
        pooled = self.norm(maps).mean((2, 3))
        return Features(logits=pooled, pooled=pooled, stages=(maps,))


class TestFolded:
    def test_shows_the_same_with_fewer_modules(self) -> None:
        torch.manual_seed(0)
        network = catalog.build(
            folders.NETWORK, classes=3, channels=1, height=8, width=8, arguments={}
        )
        network.train()
        for _ in range(3):  # statistics other than 0 and 1
            network(torch.randn(8, 1, 8, 8))
        network.eval()
        images = torch.randn(4, 1, 8, 8)
        folded = profiling.folded(network, images)
        norms = [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
        assert len(norms) == 0
        assert any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
        # Weights are multiplied in another order.
        assert torch.allclose(folded(images), network(images), rtol=1e-3, atol=1e-5)

    def test_leaves_a_network_alone_that_shows_what_lies_between(self) -> None:
        torch.manual_seed(0)
        network = Twice()
        network.observe(torch.randn(8, 1, 8, 8))
        network.eval()
        folded = profiling.folded(network, torch.randn(4, 1, 8, 8))
        assert isinstance(folded.get_submodule("norm"), nn.BatchNorm2d)


class TestFlops:
    def test_counts_multiplications_and_additions_of_one_image(self) -> None:
        class Linear(Network):
            def __init__(self) -> None:
                super().__init__()
                self.fc = nn.Linear(64, 10)

            def forward(self, images: torch.Tensor) -> torch.Tensor:
                return self.fc(images.flatten(1))

        assert profiling.flops(Linear(), torch.randn(5, 1, 8, 8)) == 2 * 64 * 10
