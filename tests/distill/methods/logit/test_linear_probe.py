from pathlib import Path

import pytest
import torch

from tests.distill import folders
from workers.distill.networks import catalog, weights


def start_weights(folder: Path, classes: int) -> dict[str, torch.Tensor]:
    """Write weights of a network of so many classes to start from, and return them."""
    folder.mkdir(parents=True)
    torch.manual_seed(11)
    built = catalog.build(
        folders.NETWORK, classes=classes, channels=1, height=8, width=8, arguments={}
    )
    for name, value in built.state_dict().items():
        if name.endswith("running_mean"):
            value.fill_(0.25)
    weights.save_student(folder / "model.safetensors", built, {"format": "pt"})
    return {name: value.clone() for name, value in built.state_dict().items()}


def delivered(folder: Path) -> dict[str, torch.Tensor]:
    built = catalog.build(folders.NETWORK, classes=3, channels=1, height=8, width=8, arguments={})
    weights.load_into(built, folder / "student.safetensors")
    return built.state_dict()


class TestLinearProbe:
    @pytest.mark.parametrize("classes", [5, 3])
    def test_trains_a_new_classifier_alone(self, tmp_path: Path, classes: int) -> None:
        recipe = folders.prepare(
            tmp_path,
            teacher=None,
            # Names in another order: there is no logit to be put in that of the data set.
            student=folders.network(class_names=[f"row {n}" for n in reversed(range(classes))]),
            initial=True,
            method={"name": "linear_probe"},
            training={"epochs": 2, "optimizer": {"weight_decay": 0.1}},
        )
        start = start_weights(tmp_path / "initial", classes)
        code, lines = folders.run_here(recipe)
        assert code == 0, lines[-1]
        (result,) = folders.of_type(lines, "result")
        assert result["method"] == {"probed_features": 64}
        assert not result.get("warnings")
        found = delivered(tmp_path)
        assert found["fc.weight"].shape == (3, 64)
        for name, value in found.items():
            same = value.shape == start[name].shape and torch.equal(value, start[name])
            assert same is not name.startswith("fc."), name

    def test_refuses_a_start_from_nothing(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path, teacher=None, method={"name": "linear_probe"})
        code, lines = folders.run_here(recipe)
        assert code != 0
        assert "name one of the models as student.initial" in lines[-1]["message"]
