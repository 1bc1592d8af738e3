"""A network's weights are found under any words; what was chosen and left aside is told."""

import argparse
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.files import torchfile
from workers.distill.networks import catalog, checkpoints, interface, weights
from workers.distill.networks.readings import Choice

State = dict[str, Tensor]


def a_network(seed: int, name: str = "retort/resnet8", **arguments: Any) -> interface.Network:
    torch.manual_seed(seed)
    narrow = {"widths": [2, 2, 3, 4]} if name == "retort/resnet8" else {}
    return catalog.build(
        name, classes=3, channels=1, height=8, width=8, arguments={**narrow, **arguments}
    )


def of(seed: int) -> State:
    return dict(a_network(seed).state_dict())


def under(prefix: str, state: State) -> State:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def loaded(folder: Path, saved: Any, wanted: int, **choice: Any) -> tuple[str, ...]:
    """Load what was saved, check that the weights are those of a seed, and return what was told."""
    torch.save(saved, folder / "file.pth")
    network = a_network(0)
    told = weights.load_into(network, folder / "file.pth", choice=Choice(**choice)).warnings
    expected = of(wanted)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in network.state_dict().items())
    return told


def refusal(folder: Path, saved: Any, **choice: Any) -> errors.DistillError:
    torch.save(saved, folder / "file.pth")
    with pytest.raises((errors.UploadRefused, errors.KeysMismatch)) as caught:
        weights.load_into(a_network(0), folder / "file.pth", choice=Choice(**choice))
    return caught.value


OPTIMIZER = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.ones(2, 2)}}}


class TestWrappers:
    @pytest.mark.parametrize(
        ("saved", "entry"),
        [
            (lambda s: {"epoch": 1, "model_state_dict": s, "optimizer": OPTIMIZER}, "model_state_"),
            (lambda s: {"net": under("module.", s), "acc": 71.3}, "net.module"),
            (lambda s: {"weights": s}, "weights"),
            (lambda s: {"params": {"generator": s}}, "params.generator"),
            (lambda s: [s, {"epoch": 3}], "0"),
            (lambda s: under("backbone.encoder.", s), "backbone.encoder"),
        ],
    )
    def test_any_word_will_do_and_is_told(
        self, tmp_path: Path, saved: Callable[[State], Any], entry: str
    ) -> None:
        (told,) = loaded(tmp_path, saved(of(1)), 1)
        assert f"the weights of the entry {entry}" in told

    def test_numbers_beside_tensors_do_not_matter(self, tmp_path: Path) -> None:
        assert loaded(tmp_path, {**of(1), "epoch": 3, "opt": argparse.Namespace()}, 1) == ()

    def test_whole_modules_are_read_without_their_class(self, tmp_path: Path) -> None:
        (told,) = loaded(tmp_path, {"model": a_network(1), "epoch": 3}, 1)
        assert "whole module" in told
        assert "zoo.resnet.ResNet was not loaded" in told

    def test_programs_of_torchscript_are_read_without_being_run(self, tmp_path: Path) -> None:
        trained = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # tracing has a successor, and files that it wrote
            torch.jit.save(torch.jit.trace(trained, torch.ones(1, 1, 8, 8)), tmp_path / "x")
        contained = checkpoints.of_checkpoint(torchfile.read(tmp_path / "x"))
        for key, tensor in trained.state_dict().items():
            assert torch.equal(contained.tensor(key), tensor)


class TestForeignKeys:
    def test_other_parts_of_the_program_are_left_aside(self, tmp_path: Path) -> None:
        state = {
            **under("model.", of(1)),
            "criterion.weight": torch.ones(3),
            "train_acc.tp": torch.zeros(3),
        }
        (told,) = loaded(tmp_path, {"state_dict": state}, 1)
        assert "left aside: state_dict.criterion, state_dict.train_acc" in told

    @pytest.mark.parametrize(
        "key",
        ["criterion.weight", "val_metrics.confmat", "total_ops", "conv1.total_params", "best_acc"],
    )
    def test_what_is_no_weight_is_left_aside_among_the_weights(
        self, tmp_path: Path, key: str
    ) -> None:
        (told,) = loaded(tmp_path, {**of(1), key: torch.ones(3)}, 1)
        assert f"nothing from them: {key}" in told

    def test_counter_of_averaging(self, tmp_path: Path) -> None:
        loaded(tmp_path, {"n_averaged": torch.tensor(9), **under("module.", of(1))}, 1)

    def test_other_weights_are_refused_unless_told_otherwise(self, tmp_path: Path) -> None:
        saved = {**of(1), "projector.weight": torch.ones(2, 2)}
        error = refusal(tmp_path, saved)
        assert isinstance(error, errors.KeysMismatch)
        assert error.unexpected_keys == ["projector.weight"]
        assert "with strict false" in error.message
        (told,) = loaded(tmp_path, saved, 1, strict=False)
        assert "left aside: projector.weight" in told

    def test_missing_weights_are_refused_even_then(self, tmp_path: Path) -> None:
        saved = of(1)
        del saved["fc.weight"]
        error = refusal(tmp_path, saved, strict=False)
        assert isinstance(error, errors.KeysMismatch)
        assert error.missing_keys == ["fc.weight"]


class TestSeveral:
    def test_the_student_is_taken_before_its_teacher(self, tmp_path: Path) -> None:
        saved = {**under("teacher.", of(1)), **under("student.", of(2))}
        taken, others = loaded(tmp_path, saved, 2)
        assert "the entry student" in taken
        assert "fit as well: teacher" in others
        loaded(tmp_path, saved, 1, entry="teacher")

    def test_averaged_weights_are_taken_before_the_last(self, tmp_path: Path) -> None:
        saved = {"model": of(2), "ema": {"shadow": of(1)}}
        taken, _ = loaded(tmp_path, saved, 1)
        assert "averaged weights (ema.shadow)" in taken
        loaded(tmp_path, saved, 2, entry="model")
        loaded(tmp_path, saved, 1, entry="ema")

    def test_between_others_the_caller_chooses(self, tmp_path: Path) -> None:
        saved = {"net": of(1), "best_net": of(2)}
        error = refusal(tmp_path, saved)
        assert isinstance(error, errors.UploadRefused)
        assert error.refusal == "ambiguous_entry"
        assert "net, best_net; choose one with `entry`" in error.message
        loaded(tmp_path, saved, 2, entry="best_net")

    def test_equal_ones_need_no_choice(self, tmp_path: Path) -> None:
        loaded(tmp_path, {"net": of(1), "best_net": of(1)}, 1)

    def test_unknown_entries_list_those_that_fit(self, tmp_path: Path) -> None:
        error = refusal(tmp_path, {"net": of(1), "best_net": of(2)}, entry="model")
        assert "entries that fit: net, best_net" in error.message

    def test_copies_within_the_weights_are_another_network(self, tmp_path: Path) -> None:
        saved = {**of(1), **under("momentum_encoder.", of(2))}
        loaded(tmp_path, saved, 1, entry=".")


class TestNumbers:
    def test_of_other_width_are_told(self, tmp_path: Path) -> None:
        half = {key: t.half() if t.is_floating_point() else t for key, t in of(1).items()}
        torch.save(half, tmp_path / "file.pth")
        assert weights.load_into(a_network(0), tmp_path / "file.pth").warnings == (
            "numbers of float16 became float32",
        )

    def test_quantised_ones_are_refused(self, tmp_path: Path) -> None:
        saved = {**of(1), "fc.weight": torch.ones(3, 4, dtype=torch.int8)}
        error = refusal(tmp_path, saved)
        assert isinstance(error, errors.UploadRefused)
        assert error.refusal == "quantised"

    def test_sparse_ones_are_named(self, tmp_path: Path) -> None:
        saved = {**of(1), "fc.weight": torch.ones(3, 4).to_sparse()}
        assert "are no dense tensors" in refusal(tmp_path, saved).message


class TestOtherPrograms:
    def test_of_openmmlab(self, tmp_path: Path) -> None:
        name = "retort/imagenet_resnet18"
        arguments = {"widths": [2, 2, 3, 4, 5]}
        trained, network = (
            catalog.build(name, classes=3, channels=1, height=32, width=32, arguments=arguments)
            for _ in range(2)
        )
        state = {
            f"{'head' if key.startswith('fc.') else 'backbone'}.{key}": tensor
            for key, tensor in trained.state_dict().items()
        }
        torch.save({"meta": {"epoch": 3}, "state_dict": state}, tmp_path / "x")
        assert weights.load_into(network, tmp_path / "x").warnings == (
            "the names of OpenMMLab were converted",
        )
        wanted = trained.state_dict()
        assert all(torch.equal(t, wanted[key]) for key, t in network.state_dict().items())

    def test_that_keep_arrays_of_numpy(self, tmp_path: Path) -> None:
        arrays = {key: tensor.numpy() for key, tensor in of(1).items()}
        (tmp_path / "model.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "x"}))
        network = a_network(0)
        assert weights.load_into(network, tmp_path / "model.pkl").warnings == ()
        assert torch.equal(network.state_dict()["fc.weight"], of(1)["fc.weight"])

    def test_a_loss_beside_the_weights_is_no_module_that_was_read(self, tmp_path: Path) -> None:
        saved = {"state_dict": of(1), "hyper_parameters": {"loss": nn.BCELoss(torch.ones(3))}}
        assert loaded(tmp_path, saved, 1) == ()
