import math
from typing import Any

import pytest
import torch
from torch.nn.functional import linear

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill.methods.datafree import nayer

STEP = batches.batch(
    batches.outputs(TEACHER, batches.norm_input()),
    batches.outputs(STUDENT),
)
SMALL = {"batch_size": 8, "latent_size": 6, "width": 4}


def method(**values: Any) -> nayer.NAYER:  # Any: what a recipe may say
    params = nayer.NAYER.Params.model_validate(values)
    return nayer.NAYER(params, batches.small(1), batches.small()).double()


def generator(classes: int = 3, seed: int = 0, **values: Any) -> nayer.NoisyGenerator:
    budget = {**SMALL, **values}
    params = nayer.NAYER.Params.model_validate({"synthesis": budget, "code_size": 5})
    student = scenes.network(classes=classes)
    made = nayer.NAYER(params, student, scenes.other_network(classes=classes))
    torch.manual_seed(seed)
    return made.make_generator()


class TestClassCodes:
    @pytest.mark.parametrize("size", [4, 7])
    def test_are_orthonormal(self, size: int) -> None:
        codes = nayer.class_codes(4, size)
        assert codes.shape == (4, size)
        # float32 from float64.
        assert torch.allclose(codes @ codes.T, torch.eye(4), atol=1e-6)

    def test_are_different_unit_vectors_where_classes_outnumber_their_size(self) -> None:
        codes = nayer.class_codes(9, 4)
        cosines = codes @ codes.T
        assert torch.allclose(cosines.diagonal(), torch.ones(9), atol=1e-6)
        assert float((cosines - torch.eye(9)).max()) < 0.999

    def test_are_the_same_whatever_was_drawn_before(self) -> None:
        torch.manual_seed(1)
        state = torch.get_rng_state()
        one = nayer.class_codes(3, 5)
        assert torch.equal(torch.get_rng_state(), state)
        torch.manual_seed(2)
        assert torch.equal(one, nayer.class_codes(3, 5))


class TestNoisyLayers:
    @pytest.mark.parametrize("rows", [2, 3, 7, 9])
    def test_give_each_group_of_rows_a_layer_of_its_own(self, rows: int) -> None:
        torch.manual_seed(0)
        noise = nayer.NoisyLayers(3, 3, 5, 4).double()
        torch.nn.init.normal_(noise.bias)
        codes = torch.randn(rows, 5, dtype=torch.float64)
        wanted = [
            linear(code, noise.weight[row // 3].T, noise.bias[row // 3, 0])
            for row, code in enumerate(codes)
        ]
        assert torch.allclose(noise(codes), torch.stack(wanted), rtol=1e-9)

    def test_refuse_more_rows_than_they_serve(self) -> None:
        with pytest.raises(RuntimeError):
            nayer.NoisyLayers(2, 3, 5, 4)(torch.zeros(7, 5))

    def test_begin_as_standard_normal_noise(self) -> None:
        torch.manual_seed(0)
        noise = nayer.NoisyLayers(4, 3, 50, 40)
        weight = noise.weight.detach()
        # Three standard errors of 8 000 values.
        assert abs(float(weight.mean())) < 3 / math.sqrt(weight.numel())
        assert abs(float(weight.std()) - 1) < 3 / math.sqrt(2 * weight.numel())
        assert not noise.bias.any()

    def test_have_the_gradient_of_their_value(self) -> None:
        noise = nayer.NoisyLayers(2, 3, 3, 2).double()
        codes = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(noise, (codes,))


class TestNoisyGenerator:
    def test_makes_pixels_of_0_to_1_from_the_codes_of_its_targets(self) -> None:
        made = generator()
        latent = made.sample_latent(torch.tensor([2, 0, 2, 1]))
        assert torch.equal(latent, nayer.class_codes(3, 5)[[2, 0, 2, 1]])
        images = made(latent).detach()
        assert latent.shape[1:] == made.latent_shape
        assert images.shape == (4, 1, 8, 8)
        assert float(images.min()) > 0
        assert float(images.max()) < 1

    def test_shows_a_class_otherwise_in_each_cycle(self) -> None:
        made = generator()
        images = made(made.sample_latent(torch.tensor([0, 1, 2, 0, 1, 2, 0, 1])))
        for one, other in ((0, 3), (3, 6), (1, 4)):
            assert not torch.allclose(images[one], images[other], atol=1e-3)

    def test_has_as_many_layers_as_cycles(self) -> None:
        assert generator(classes=3).noise.weight.shape == (3, 5, 6)
        # One cycle is not complete: its layer serves no more rows than there are.
        whole = generator(classes=12)
        assert whole.noise.weight.shape == (1, 5, 6)
        assert whole.noise.group == 8

    def test_draws_noise_and_nothing_else_for_each_call(self) -> None:
        made = generator()
        before = {name: value.clone() for name, value in made.state_dict().items()}
        made.start_round()
        for name, value in made.state_dict().items():
            assert torch.equal(value, before[name]) is (name != "noise.weight"), name

    def test_moves_everything_but_the_codes(self) -> None:
        made = generator()
        made(made.sample_latent(torch.arange(8) % 3)).square().sum().backward()
        assert "codes" not in dict(made.named_parameters())
        for name, parameter in made.named_parameters():
            assert parameter.grad is not None, name
            # A shift before a batch norm is taken off again.
            assert bool(parameter.grad.any()) or name.endswith("bias"), name

    def test_restarts_as_if_it_were_new(self) -> None:
        made = generator(seed=1)
        made(made.sample_latent(torch.arange(8) % 3))
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(100)
        kept = {name: id(parameter) for name, parameter in made.named_parameters()}
        made.reset_parameters()
        assert {name: id(parameter) for name, parameter in made.named_parameters()} == kept
        fresh = generator(seed=2).state_dict()
        for name, value in made.state_dict().items():
            assert float(value.float().max()) < 50, name
            if "running" in name:
                assert torch.equal(value, fresh[name]), name

    def test_restarts_at_the_start_of_its_images(self) -> None:
        made = generator()
        before = {name: value.clone() for name, value in made.named_parameters()}
        made.reset_first_layer()
        moved = {name for name, value in made.named_parameters() if not value.equal(before[name])}
        assert moved == {f"images.start.{name}" for name in ("0.weight", "0.bias", "2.weight")}

    def test_continues_exactly_from_its_state(self) -> None:
        one, other = generator(seed=1), generator(seed=2)
        one(one.sample_latent(torch.arange(8) % 3))
        other.load_state_dict(one.state_dict())
        latent = one.sample_latent(torch.arange(8) % 3)
        assert torch.equal(one(latent), other(latent))


class TestTargets:
    def test_count_through_all_classes_in_cycles(self) -> None:
        drawn = method().targets(8)
        assert drawn[:6].tolist() == [0, 1, 2, 0, 1, 2]
        assert len(set(drawn[6:].tolist())) == 2

    def test_repeat_by_torchs_seed(self) -> None:
        made = method()
        rests = set()
        for seed in range(20):
            torch.manual_seed(seed)
            rests.add(tuple(made.targets(4).tolist()))
            torch.manual_seed(seed)
            assert tuple(made.targets(4).tolist()) in rests
        assert {rest[-1] for rest in rests} == {0, 1, 2}


class TestSynthesis:
    def test_has_the_published_terms(self) -> None:
        terms = method(bn_weight=1, onehot_weight=1, adversarial_weight=1).synthesis_terms(STEP)
        assert list(terms) == ["bn", "onehot", "adversarial"]
        assert CASES.close(terms["bn"], CASES.case("bn_loss_l2norm_var"))
        assert CASES.close(terms["onehot"], CASES.case("ce_to_targets_mean"))
        assert CASES.close(terms["adversarial"], CASES.case("adv_loss_masked"))

    def test_counts_every_row_without_the_mask(self) -> None:
        terms = method(adversarial_weight=1, masked=False).synthesis_terms(STEP)
        assert CASES.close(terms["adversarial"], CASES.case("adv_loss_plain"))


class TestNAYER:
    def test_renews_its_generator_by_calls_in_warm_up_and_by_epochs_later(self) -> None:
        made = method(
            life_epochs=3,
            warmup_life_calls=4,
            synthesis={"warmup_calls": 6, "calls_per_epoch": 2},
        )
        renewed = [call for call in range(1, 21) if made.renews_at(call)]
        assert renewed == [1, 5, 7, 13, 19]

    def test_renews_its_generator_when_epochs_begin_without_a_warm_up(self) -> None:
        made = method(life_epochs=2, synthesis={"warmup_calls": 0, "calls_per_epoch": 1})
        assert [call for call in range(1, 8) if made.renews_at(call)] == [1, 3, 5, 7]
