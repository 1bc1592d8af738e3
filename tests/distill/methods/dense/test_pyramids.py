"""What dense methods share on detectors: pairs of a pyramid's levels, connectors, refusals."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows

from tests.distill.methods.dense import scenes
from tests.distill.methods.scenes import MOMENT, features, observed
from workers.distill import errors
from workers.distill.functional import divergences, patches, relations, standardization
from workers.distill.functional.rows import rows
from workers.distill.methods import catalog
from workers.distill.methods.base import Method, Terms
from workers.distill.methods.dense import base
from workers.distill.networks import interface

NAMES = ["cwd", "densepcka", "mimic", "pixeldist", "pkd"]


def build(
    choice: dict[str, Any], student: interface.Network, teacher: interface.Network
) -> tuple[Method, Terms]:
    """Return a method and its terms for two images with boxes, of which the second has none."""
    teacher.eval().requires_grad_(False)
    torch.manual_seed(3)
    method = catalog.build(choice, student, teacher)
    student_out, teacher_out = observed(student, teacher, scenes.PICTURES)
    return method, method.terms(student_out, teacher_out, scenes.boxes_batch(), MOMENT)


def terms_of_maps(choice: dict[str, Any]) -> Callable[[Any, Any], Terms]:
    """Return a function from the levels of two pyramids to a method's terms, without the boxes."""
    network = scenes.detector(1)
    method = catalog.build({**choice, "task_weight": 0}, network, scenes.detector(2))
    with torch.no_grad():
        shown = network.observe(scenes.PICTURES)

    def terms(student: Any, teacher: Any) -> Terms:
        ours = dataclasses.replace(shown, stages=tuple(student))
        return method.terms(ours, features(stages=teacher), scenes.boxes_batch(), MOMENT)

    return terms


def maps(seed: int, channels: int = 3) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(2, channels, side, side, generator=draw, dtype=torch.float64) for side in (8, 4)
    ]


def gap(name: str, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the weighted value of one level, computed as for a segmenter or from definitions."""
    if name == "pkd":
        left, right = (each.transpose(0, 1).flatten(1) for each in (one, other))
        return 6 * standardization.z_score_gap(left, right)
    if name == "cwd":
        return 10 * divergences.channel_kl(one, other, temperature=1.0)
    if name == "mimic":
        return (one - other).square().mean() / other.var(correction=0)
    if name == "pixeldist":
        found = relations.correlation_gaps(rows(one), rows(other), temperature=1.0)
        return found.inter + found.intra
    side = one.shape[2] // 4
    cut = patches.pair_rows(one, other, side=side)
    return 10 * patches.alignment_gap(*cut, centered=False)


class TestValues:
    @pytest.mark.parametrize("name", NAMES)
    def test_are_sums_over_levels_with_the_defaults_of_detectors(self, name: str) -> None:
        student, teacher = maps(1), maps(2)
        found = terms_of_maps({"name": name})(student, teacher)
        total = torch.stack([term for key, term in found.items() if key != "task"]).sum()
        wanted = sum(gap(name, *pair) for pair in zip(student, teacher, strict=True))
        assert torch.allclose(total, torch.as_tensor(wanted), rtol=1e-9)

    @pytest.mark.parametrize("name", [*NAMES, "at"])
    def test_are_0_for_equal_maps(self, name: str) -> None:
        found = terms_of_maps({"name": name})(maps(1), maps(1))
        assert all(abs(float(term)) < 1e-5 for term in found.values())

    @pytest.mark.parametrize("name", [*NAMES, "at"])
    def test_have_the_gradient_of_their_value(self, name: str) -> None:
        fixed, teacher = maps(1), maps(2)
        terms = terms_of_maps({"name": name})

        def total(given: torch.Tensor) -> torch.Tensor:
            found = terms([fixed[0], given], teacher)
            return torch.stack([term for key, term in found.items() if key != "task"]).sum()

        assert torch.autograd.gradcheck(total, (fixed[1].requires_grad_(),), fast_mode=True)

    def test_only_chosen_levels_count(self) -> None:
        student, teacher = maps(1), maps(2)
        found = terms_of_maps({"name": "pkd", "levels": [1]})(student, teacher)
        assert torch.allclose(found["pkd"], gap("pkd", student[1], teacher[1]))


class TestLevels:
    @pytest.mark.parametrize("name", [*NAMES, "at"])
    def test_networks_of_other_widths_and_strides_meet_through_connectors(self, name: str) -> None:
        student = scenes.detector(1)
        teacher = scenes.detector(2, levels=3, fpn_channels=64)
        method, terms = build({"name": name}, student, teacher)
        torch.stack(list(terms.values())).sum().backward()
        assert all(term.isfinite() for term in terms.values())
        for parameter in method.parameters():
            assert parameter.grad is not None
            assert parameter.grad.any()
        assert len(list(method.parameters())) == (0 if name == "at" else 4)

    def test_the_fewer_levels_are_paired_with_those_of_equal_size(self) -> None:
        method, _ = build({"name": "pkd"}, scenes.detector(1), scenes.detector(2, levels=3))
        assert isinstance(method, base.MapsMethod)
        assert method.levels is not None
        assert method.levels.pairs == [(0, 0), (1, 1)]

    def test_maps_of_other_strides_are_averaged_to_the_smaller(self) -> None:
        student, teacher = maps(1), maps(2)
        found = terms_of_maps({"name": "pkd", "levels": [0]})(student, [teacher[1]] * 2)
        small = F.avg_pool2d(student[0], 2)
        assert torch.allclose(found["pkd"], gap("pkd", small, teacher[1]))

    def test_a_level_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="choose levels from 0 to 1"):
            build({"name": "pkd", "levels": [0, 2]}, scenes.detector(1), scenes.detector(2))

    def test_a_segmenter_has_no_levels(self) -> None:
        with pytest.raises(errors.BadRecipe, match="leave levels out"):
            catalog.check_task({"name": "pkd", "levels": [0]}, "segmentation")


class TestDensePCKA:
    def test_tells_how_many_patches_each_level_has(self) -> None:
        method, _ = build({"name": "densepcka"}, scenes.detector(1), scenes.detector(2))
        assert method.facts() == {"patches": [16, 16]}
        both = {"name": "combine", "methods": [{"name": "densepcka", "patch": 4}, {"name": "pkd"}]}
        method, _ = build(both, scenes.detector(1), scenes.detector(2))
        assert method.facts() == {"densepcka": {"patches": [4, 1]}}

    def test_levels_of_one_patch_alone_are_refused(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="choose a smaller patch"):
            build({"name": "densepcka", "patch": 8}, scenes.detector(1), scenes.detector(2))

    def test_aligns_features_of_patches_too_where_the_authors_do(self) -> None:
        _, terms = build({"name": "densepcka"}, scenes.detector(1), scenes.detector(2))
        assert float(terms["pcka_transposed"]) == 0
        two = [scenes.detector(seed, "retort/fasterrcnn") for seed in (1, 2)]
        _, terms = build({"name": "densepcka"}, two[0], two[1])
        assert float(terms["pcka_transposed"].detach()) > 0
