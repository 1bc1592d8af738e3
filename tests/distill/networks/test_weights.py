"""Published checkpoints load as they are; damaged and dangerous files are refused and never run."""

import argparse
import json
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from workers.distill import errors
from workers.distill.networks import catalog, interface, readings, weights

INPUT = {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.25]}


def a_network(
    seed: int = 0, *, name: str = "retort/resnet8", **arguments: Any
) -> interface.Network:
    torch.manual_seed(seed)
    return catalog.build(name, classes=3, channels=1, height=8, width=8, arguments=arguments)


def is_same(network: interface.Network, other: interface.Network) -> bool:
    mine, theirs = network.state_dict(), other.state_dict()
    return all(torch.equal(mine[key], theirs[key]) for key in mine)


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


class Marker:
    """A pickle that creates a file when it is executed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, int]]:
        return os.mknod, (str(self.path), 0o600)


class TestLoadInto:
    def layouts(self, state: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, Any]:
        optimizer = {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]}
        both = {**prefixed(state, "module.student."), **prefixed(other, "module.teacher.")}
        return {
            "plain": state,
            "ordered": OrderedDict(state),
            "epoch_model_accuracy_optimizer": {
                "epoch": 240,
                "model": state,
                "accuracy": torch.tensor([72.3]),
                "optimizer": optimizer,
            },
            "state_dict": {"state_dict": state, "epoch": 3},
            "numpy_accuracy": {"model": state, "best_acc": np.float64(72.3)},
            "namespace": {"opt": argparse.Namespace(lr=0.1, gpu=[0], s="x"), "model": state},
            "module": {"model": prefixed(state, "module.")},
            "module_twice": prefixed(state, "module.module."),
            "distiller": {"epoch": 1, "model": both, "optimizer": optimizer, "best_acc": 71.0},
            "half": {key: value.half() for key, value in state.items()},
        }

    @pytest.mark.parametrize(
        "layout",
        [
            "plain",
            "ordered",
            "epoch_model_accuracy_optimizer",
            "state_dict",
            "numpy_accuracy",
            "namespace",
            "module",
            "module_twice",
            "distiller",
        ],
    )
    @pytest.mark.parametrize("is_zip", [True, False])
    def test_published_layouts_load_as_they_are(
        self, tmp_path: Path, layout: str, is_zip: bool
    ) -> None:
        trained = a_network(1)
        saved = self.layouts(trained.state_dict(), a_network(2).state_dict())[layout]
        path = tmp_path / "ckpt_epoch_240"
        torch.save(saved, path, _use_new_zipfile_serialization=is_zip)
        network = a_network(0)
        assert weights.load_into(network, path).format == "torch"
        assert is_same(network, trained)

    def test_half_precision_is_widened(self, tmp_path: Path) -> None:
        trained = a_network(1)
        torch.save({k: v.half() for k, v in trained.state_dict().items()}, tmp_path / "x")
        network = a_network(0)
        weights.load_into(network, tmp_path / "x")
        assert next(network.parameters()).dtype == torch.float32

    @pytest.mark.parametrize("role", ["student", "teacher"])
    def test_role_decides_between_teacher_and_student(
        self, tmp_path: Path, role: readings.Role
    ) -> None:
        state = {
            **prefixed(a_network(1).state_dict(), "module.student."),
            **prefixed(a_network(2).state_dict(), "module.teacher."),
        }
        torch.save({"model": state}, tmp_path / "latest")
        network = a_network(0)
        loaded = weights.load_into(network, tmp_path / "latest", role=role)
        assert is_same(network, a_network(1 if role == "student" else 2))
        assert role in loaded.warnings[0]

    def test_the_role_that_fits_is_taken_when_the_other_does_not(self, tmp_path: Path) -> None:
        teacher = a_network(2, widths=[4, 4, 4, 4])
        state = {
            **prefixed(a_network(1).state_dict(), "student."),
            **prefixed(teacher.state_dict(), "teacher."),
            "connector.weight": torch.ones(1),
        }
        torch.save(state, tmp_path / "best")
        network = a_network(0, widths=[4, 4, 4, 4])
        weights.load_into(network, tmp_path / "best", role="student")
        assert is_same(network, teacher)

    def test_missing_counters_of_old_files_are_tolerated(self, tmp_path: Path) -> None:
        trained = a_network(1)
        state = {
            key: value
            for key, value in trained.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }
        torch.save(state, tmp_path / "old")
        network = a_network(0)
        assert "num_batches_tracked" in weights.load_into(network, tmp_path / "old").warnings[0]
        assert is_same(network, trained)

    def test_format_is_recognised_by_content_not_by_name(self, tmp_path: Path) -> None:
        trained = a_network(1)
        safetensors.torch.save_file(trained.state_dict(), tmp_path / "weights.pth")
        torch.save(trained.state_dict(), tmp_path / "weights.safetensors")
        for name, format_name in (("weights.pth", "safetensors"), ("weights.safetensors", "torch")):
            network = a_network(0)
            assert weights.load_into(network, tmp_path / name).format == format_name
            assert is_same(network, trained)

    def test_every_difference_is_listed(self, tmp_path: Path) -> None:
        state = dict(a_network(1).state_dict())
        del state["conv1.weight"]
        state["extra.weight"] = torch.ones(1)
        state["fc.bias"] = torch.ones(100)
        torch.save(state, tmp_path / "x")
        network, untouched = a_network(0), a_network(0)
        with pytest.raises(errors.KeysMismatch) as caught:
            weights.load_into(network, tmp_path / "x")
        assert caught.value.missing_keys == ["conv1.weight"]
        assert caught.value.unexpected_keys == ["extra.weight"]
        assert caught.value.shape_mismatches == [{"key": "fc.bias", "expected": [3], "got": [100]}]
        assert "fc.bias: expected [3], got [100]" in caught.value.message
        assert is_same(network, untouched)

    def test_tensors_that_claim_more_than_they_hold_cost_nothing(self, tmp_path: Path) -> None:
        state = dict(a_network(1).state_dict())
        state["fc.bias"] = torch.ones(1).expand(10**12)
        torch.save(state, tmp_path / "x")
        with pytest.raises(errors.KeysMismatch):
            weights.load_into(a_network(0), tmp_path / "x")


def resized(name: str, **arguments: Any) -> interface.Network:
    torch.manual_seed(1)
    return catalog.build(name, classes=3, channels=3, height=32, width=32, arguments=arguments)


class TestPublishedFiles:
    """Files of other programs, written here as those programs write them."""

    NETWORKS = (
        ("retort/resnet8x4", {"widths": [2, 3, 4, 5]}),
        ("retort/resnet50", {"widths": [2, 1, 1, 1, 1]}),
        ("retort/wrn_40_2", {"widths": [2, 3, 4, 5]}),
        ("retort/vgg13", {"widths": [2, 3, 4, 5, 6]}),
        ("retort/mobilenetv2", {"width_multiplier": 0.1, "expansion": 1}),
        ("retort/shufflev1", {"widths": [36, 48, 60]}),
        ("retort/shufflev2", {"widths": [2, 4, 6], "last_width": 8}),
        ("retort/mobilenetv1", {"width_multiplier": 0.05}),
        ("retort/imagenet_resnet18", {"widths": [2, 2, 3, 4, 5]}),
    )

    def loaded(
        self, tmp_path: Path, saved: Any, trained: interface.Network, **options: Any
    ) -> weights.Loaded:
        """Load a file into a fresh twin of the trained network, and check every tensor."""
        torch.save(saved, tmp_path / "file")
        network = catalog.build(
            trained.reference,
            classes=trained.classes,
            channels=trained.image_shape[0],
            height=trained.image_shape[1],
            width=trained.image_shape[2],
            arguments=trained.arguments,
        )
        result = weights.load_into(network, tmp_path / "file", **options)
        assert is_same(network, trained)
        return result

    @pytest.mark.parametrize(("name", "arguments"), NETWORKS)
    def test_every_family_loads_behind_its_wrapper(
        self, tmp_path: Path, name: str, arguments: dict[str, Any]
    ) -> None:
        trained = resized(name, **arguments)
        # One network's own names begin with `model.` too, and are told from a wrapper's.
        wrapper = "module.model." if name == "retort/mobilenetv1" else "module."
        state = prefixed(trained.state_dict(), wrapper)
        self.loaded(tmp_path, {"epoch": 240, "model": state}, trained)

    def test_run_directory_of_mdistiller(self, tmp_path: Path) -> None:
        student, teacher = a_network(1), a_network(2, widths=[4, 4, 4, 4])
        distiller = {
            **prefixed(student.state_dict(), "module.student."),
            **prefixed(teacher.state_dict(), "module.teacher."),
            "module.conv_reg.conv.weight": torch.ones(3, 3, 1, 1),
        }
        saved = {"epoch": 3, "model": distiller, "optimizer": {"state": {}}, "best_acc": 71.0}
        taken, others = self.loaded(tmp_path, saved, student).warnings
        assert "the entry model.module.student were taken" in taken
        assert "left aside: model.module.teacher, model.module.conv_reg" in others
        taken, _ = self.loaded(tmp_path, saved, teacher).warnings
        assert "the entry model.module.teacher were taken" in taken

    def test_projector_of_simkd_is_left_aside_and_named(self, tmp_path: Path) -> None:
        trained = a_network(1)
        saved = {
            "epoch": 240,
            "model": trained.state_dict(),
            "best_acc": torch.tensor([76.7]),
            "proj": {"transfer.0.weight": torch.ones(2, 2, 1, 1)},
        }
        (remark,) = self.loaded(tmp_path, saved, trained).warnings
        assert "left aside: proj" in remark

    def test_averaged_weights_of_timm_are_preferred(self, tmp_path: Path) -> None:
        trained = a_network(1)
        saved = {
            "epoch": 3,
            "arch": "resnet18",
            "state_dict": a_network(2).state_dict(),
            "optimizer": {"state": {}, "param_groups": []},
            "version": 2,
            "args": argparse.Namespace(lr=0.1),
            "state_dict_ema": trained.state_dict(),
            "metric": 71.0,
        }
        averaged, others = self.loaded(tmp_path, saved, trained).warnings
        assert "averaged weights (state_dict_ema)" in averaged
        assert "fit as well: state_dict; to have one of them, name it as the entry" in others

    def test_averaged_weights_of_torchvision_are_preferred(self, tmp_path: Path) -> None:
        trained = a_network(1)
        averaged = torch.optim.swa_utils.AveragedModel(trained)
        saved = {"model": a_network(2).state_dict(), "model_ema": averaged.state_dict()}
        assert "model_ema" in self.loaded(tmp_path, saved, trained).warnings[0]

    @pytest.mark.parametrize("prefix", ["_orig_mod.", "model.", "module._orig_mod.", "net.model."])
    def test_words_before_all_keys_are_dropped(self, tmp_path: Path, prefix: str) -> None:
        trained = a_network(1)
        told = self.loaded(tmp_path, prefixed(trained.state_dict(), prefix), trained).warnings
        # Every program writes the others.
        assert told == (
            ("the weights of the entry net.model were taken",) if "net" in prefix else ()
        )

    def test_linear_layers_stored_as_convolutions_are_read(self, tmp_path: Path) -> None:
        trained = resized("retort/tiny_mobilenetv2", width_multiplier=0.1)
        state = dict(trained.state_dict())
        state["conv2.weight"] = state["conv2.weight"][:, :, None, None]
        self.loaded(tmp_path, {"model": state}, trained)

    def test_tensors_saved_on_a_gpu_by_old_programs_are_read(self, tmp_path: Path) -> None:
        trained = a_network(1)
        saved = {
            "epoch": 240,
            "model": trained.state_dict(),
            "accuracy": torch.tensor([72.3]),
            "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]},
        }
        path = tmp_path / "ckpt_epoch_240.pth"
        torch.save(saved, path, _use_new_zipfile_serialization=False)
        # What such a file differs in, where no GPU is at hand to write one: the kind of storage,
        # and its place, a string behind its length.
        content = path.read_bytes()
        for name in (b"FloatStorage", b"LongStorage"):
            content = content.replace(b"ctorch\n" + name, b"ctorch.cuda\n" + name)
        content = content.replace(b"X\x03\x00\x00\x00cpu", b"X\x06\x00\x00\x00cuda:0")
        assert content.count(b"cuda:0") > 0
        path.write_bytes(content)
        network = a_network(0)
        weights.load_into(network, path)
        assert is_same(network, trained)

    def test_the_nearest_reading_says_what_is_wrong(self, tmp_path: Path) -> None:
        state = dict(a_network(1).state_dict())
        state["fc.bias"] = torch.ones(100)
        torch.save({"model": prefixed(state, "module.student.")}, tmp_path / "x")
        with pytest.raises(errors.KeysMismatch) as caught:
            weights.load_into(a_network(0), tmp_path / "x")
        assert caught.value.shape_mismatches == [{"key": "fc.bias", "expected": [3], "got": [100]}]
        assert not caught.value.missing_keys

    def test_other_networks_are_never_read_in_part(self, tmp_path: Path) -> None:
        torch.save(a_network(1, name="retort/resnet14").state_dict(), tmp_path / "x")
        with pytest.raises(errors.KeysMismatch) as caught:
            weights.load_into(a_network(0), tmp_path / "x")
        assert all(".1." in key for key in caught.value.unexpected_keys)


class TestRefusedFiles:
    def refusal(self, path: Path, **arguments: Any) -> errors.UploadRefused:
        with pytest.raises(errors.UploadRefused) as caught:
            weights.load_into(a_network(0), path, **arguments)
        return caught.value

    @pytest.mark.parametrize("is_zip", [True, False])
    @pytest.mark.parametrize("protocol", [0, 2, 4])
    def test_pickles_with_code_are_refused_and_never_run(
        self, tmp_path: Path, is_zip: bool, protocol: int
    ) -> None:
        marker, path = tmp_path / "marker", tmp_path / "evil.pth"
        torch.save(
            {"model": a_network(1).state_dict(), "x": Marker(marker)},
            path,
            _use_new_zipfile_serialization=is_zip,
            pickle_protocol=protocol,
        )
        error = self.refusal(path)
        assert not marker.exists()
        assert error.refusal == "unsafe_pickle"
        assert "mknod" in error.message

    @pytest.mark.parametrize("protocol", range(6))
    def test_bare_pickles_with_code_are_refused_and_never_run(
        self, tmp_path: Path, protocol: int
    ) -> None:
        marker, path = tmp_path / "marker", tmp_path / "evil.pkl"
        path.write_bytes(pickle.dumps(Marker(marker), protocol=protocol))
        error = self.refusal(path)
        assert not marker.exists()
        assert error.refusal == "unsafe_pickle"
        assert "mknod" in error.message

    def test_pickles_can_be_forbidden_altogether(self, tmp_path: Path) -> None:
        torch.save(a_network(1).state_dict(), tmp_path / "x")
        error = self.refusal(tmp_path / "x", allow_pickle=False)
        assert error.refusal == "unsafe_pickle"
        assert "safetensors" in error.message

    @pytest.mark.parametrize("is_zip", [True, False])
    @pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.9, 0.999])
    def test_cut_files_are_unreadable(self, tmp_path: Path, is_zip: bool, share: float) -> None:
        path = tmp_path / "x"
        torch.save(a_network(1).state_dict(), path, _use_new_zipfile_serialization=is_zip)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])
        assert self.refusal(path).refusal == "unreadable"

    @pytest.mark.parametrize(
        "content", [b"hello", b"PK\x03\x04 broken", b"\x80\x02.", b"\x00" * 1000, b"{}"]
    )
    def test_other_files_are_unreadable(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "x").write_bytes(content)
        assert self.refusal(tmp_path / "x").refusal == "unreadable"

    @pytest.mark.parametrize(
        "content", [3, [], {}, {"epoch": 3}, {"a": torch.ones(1).to_sparse()}, {1: 2}]
    )
    def test_files_without_a_state_dictionary_are_unreadable(
        self, tmp_path: Path, content: Any
    ) -> None:
        torch.save(content, tmp_path / "x")
        assert self.refusal(tmp_path / "x").refusal == "unreadable"

    def test_other_zip_files_are_unreadable(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "x", "w") as archive:
            archive.writestr("cat.png", b"x")
            archive.writestr("dog.png", b"x")
        assert "not one that torch.save wrote" in self.refusal(tmp_path / "x").message

    def test_compressed_zip_is_refused_before_it_is_unpacked(self, tmp_path: Path) -> None:
        torch.save({"w": torch.zeros(5_000_000)}, tmp_path / "plain")
        with (
            zipfile.ZipFile(tmp_path / "plain") as plain,
            zipfile.ZipFile(tmp_path / "bomb", "w", zipfile.ZIP_DEFLATED) as bomb,
        ):
            for entry in plain.infolist():
                bomb.writestr(entry.filename, plain.read(entry))
        assert "compressed entries" in self.refusal(tmp_path / "bomb").message


class TestSaveStudent:
    HEADER = {  # noqa: RUF012 - read only
        "format": "pt",
        "retort": json.dumps(
            {"network": "retort/resnet8", "arguments": {}, "classes": 3, "input": INPUT}
        ),
    }

    def test_equal_weights_give_equal_bytes(self, tmp_path: Path) -> None:
        for name in ("1", "2"):
            weights.save_student(tmp_path / name, a_network(4), self.HEADER)
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    def test_weights_in_another_memory_layout_give_equal_bytes(self, tmp_path: Path) -> None:
        weights.save_student(tmp_path / "1", a_network(4), self.HEADER)
        network = a_network(4)
        network.to(memory_format=torch.channels_last)
        weights.save_student(tmp_path / "2", network, self.HEADER)
        assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()

    def test_a_student_is_rebuilt_from_its_file_alone(self, tmp_path: Path) -> None:
        student = a_network(4).eval()
        weights.save_student(tmp_path / "student.safetensors", student, self.HEADER)
        network, said = weights.rebuild(tmp_path / "student.safetensors")
        assert said["network"] == "retort/resnet8"
        assert weights.read_header(tmp_path / "student.safetensors") == said
        images = torch.rand(2, 1, 8, 8)
        assert torch.equal(network.eval()(images), student(images))

    @pytest.mark.parametrize(
        "header",
        [
            {},
            {"retort": "nonsense"},
            {"retort": "[]"},
            {"retort": "{}"},
            {"retort": '{"classes":1}'},
        ],
    )
    def test_files_that_do_not_describe_a_network_are_refused(
        self, tmp_path: Path, header: dict[str, str]
    ) -> None:
        weights.save_student(tmp_path / "x", a_network(4), header)
        with pytest.raises(errors.UploadRefused) as caught:
            weights.rebuild(tmp_path / "x")
        assert caught.value.refusal == "unreadable"
