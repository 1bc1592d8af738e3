import math
from typing import Any

import pytest
import torch

from tests.distill.golden import CASES
from tests.distill.methods import scenes
from tests.distill.methods.datafree import batches
from tests.distill.methods.datafree.batches import STUDENT, TEACHER
from workers.distill import errors
from workers.distill.methods.datafree import spaceshipnet
from workers.distill.networks import generators

STEP = batches.batch(
    batches.outputs(TEACHER, batches.norm_input()),
    batches.outputs(STUDENT),
)


def method(**values: Any) -> spaceshipnet.SpaceshipNet:  # Any: what a recipe may say
    params = spaceshipnet.SpaceshipNet.Params.model_validate(values)
    return spaceshipnet.SpaceshipNet(params, scenes.network(), scenes.other_network())


def generator(
    *, steps: int, probability: float = 1.0, seed: int = 0
) -> spaceshipnet.ExchangeGenerator:
    torch.manual_seed(seed)
    made_of = generators.parts("small", image_shape=(1, 8, 8), latent_size=6, width=4)
    return spaceshipnet.ExchangeGenerator(made_of, steps=steps, probability=probability)


def maps(seed: int, *shape: int) -> torch.Tensor:
    drawn = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=drawn, dtype=torch.float64)


def numbered(images: int, channels: int) -> torch.Tensor:
    """Return maps that hold, at every position, 100 * image + channel."""
    numbers = 100 * torch.arange(images)[:, None] + torch.arange(channels)
    return numbers.double()[:, :, None, None].expand(images, channels, 2, 3)


class TestExchanged:
    @pytest.mark.parametrize("channels", [4, 5])
    def test_keeps_half_of_the_channels_and_takes_the_rest_of_one_other_image(
        self, channels: int
    ) -> None:
        torch.manual_seed(0)
        maps = spaceshipnet.exchanged(numbered(40, channels))
        assert torch.equal(maps, maps[:, :, :1, :1].expand_as(maps))
        image, channel = maps[:, :, 0, 0] // 100, maps[:, :, 0, 0] % 100
        assert torch.equal(channel, torch.arange(channels).double().expand(40, channels))
        partners = []
        for place, origins in enumerate(image.tolist()):
            others = {origin for origin in origins if origin != place}
            assert len(others) <= 1
            assert origins.count(place) == (channels // 2 if others else channels)
            partners.append(others.pop() if others else place)
        assert sorted(partners) == list(range(40))

    def test_draws_channels_for_each_image_and_call(self) -> None:
        torch.manual_seed(0)
        own = [
            (spaceshipnet.exchanged(numbered(40, 6))[:, :, 0, 0] // 100).long()
            == torch.arange(40)[:, None]
            for _ in range(2)
        ]
        assert len({tuple(row.tolist()) for row in own[0]}) > 5
        assert not torch.equal(own[0], own[1])

    def test_has_the_gradient_of_its_value(self) -> None:
        def seeded(seen: torch.Tensor) -> torch.Tensor:
            torch.manual_seed(3)
            return spaceshipnet.exchanged(seen)

        assert torch.autograd.gradcheck(seeded, (maps(0, 3, 4, 1, 2).requires_grad_(),))


class TestExchangeGenerator:
    def latent(self) -> torch.Tensor:
        drawn = torch.Generator().manual_seed(7)
        return torch.randn(8, 6, generator=drawn)

    def test_is_a_plain_generator_until_the_last_step_of_a_call(self) -> None:
        made = generator(steps=3)
        torch.manual_seed(0)
        plain = generators.build("small", image_shape=(1, 8, 8), latent_size=6, width=4)
        for _ in range(2):
            made.start_round()
            expected = plain(self.latent())
            for _ in range(2):
                assert torch.equal(made(self.latent()), expected)
            assert not torch.allclose(made(self.latent()), expected, atol=1e-4)

    def test_exchanges_at_each_of_three_places(self) -> None:
        made, places = generator(steps=1), set()
        for _ in range(20):
            made.start_round()
            made(self.latent()[:1])
            places.add(made._place)
        assert places == {0, 1, 2}

    def test_exchanges_as_often_as_it_is_told_to(self) -> None:
        made, count = generator(steps=1, probability=0.7), 0
        torch.manual_seed(0)
        for _ in range(80):
            made.start_round()
            made(self.latent()[:1])
            count += made._place is not None
        # Four standard errors of 80 draws.
        assert abs(count / 80 - 0.7) < 4 * math.sqrt(0.7 * 0.3 / 80)

    def test_exchanges_and_counts_nothing_in_evaluation_mode(self) -> None:
        made = generator(steps=1).eval()
        made(self.latent())
        made.train()(self.latent())
        assert made._place is not None
        made.eval()(self.latent())
        assert made._place is None

    def test_continues_a_call_exactly_from_its_state(self) -> None:
        made, again = generator(steps=2), generator(steps=2, seed=1)
        made(self.latent())
        again.load_state_dict(made.state_dict())
        images = []
        for one in (made, again):
            torch.manual_seed(4)
            images.append(one(self.latent()))
        assert made._place is not None
        assert torch.equal(*images)


class TestRegionLoss:
    def test_is_the_mean_squared_difference_at_the_smaller_size(self) -> None:
        student, teacher = maps(0, 2, 3, 4, 4), maps(1, 2, 3, 2, 2)
        halved = student.view(2, 3, 2, 2, 2, 2).mean((3, 5))
        expected = ((halved - teacher) ** 2).sum() / halved.numel()
        assert torch.allclose(spaceshipnet.region_loss(student, teacher), expected, rtol=1e-9)
        assert torch.allclose(spaceshipnet.region_loss(teacher, student), expected, rtol=1e-9)

    def test_has_the_gradient_of_its_value(self) -> None:
        student, teacher = maps(0, 2, 3, 4, 4).requires_grad_(), maps(1, 2, 3, 2, 2)
        assert torch.autograd.gradcheck(
            lambda seen: spaceshipnet.region_loss(seen, teacher), (student,)
        )


class TestTerms:
    def test_are_imitation_and_the_difference_of_class_maps(self) -> None:
        made = method(temperature=4)
        student, teacher = scenes.network(), scenes.other_network()
        student_out, teacher_out = scenes.observed(student, teacher, scenes.pictures(4))
        terms = made.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert list(terms) == ["kd", "cam"]
        evidence = []
        for network, features in ((student, student_out), (teacher, teacher_out)):
            classifier, final = network.pooled_classifier(), features.final
            assert classifier is not None
            assert final is not None
            evidence.append(torch.einsum("ck,nkij->ncij", classifier.weight, final))
        expected = (evidence[0] - evidence[1]).square().mean()
        # float32, in another order.
        assert torch.allclose(terms["cam"], expected, rtol=1e-4)

    def test_weigh_regions(self) -> None:
        student, teacher = scenes.network(), scenes.other_network()
        one, other = (
            scenes.terms_of(method(cam_weight=weight), student, teacher, scenes.pictures(4))
            for weight in (1, 5)
        )
        assert torch.allclose(other["cam"], 5 * one["cam"], rtol=1e-6)
        assert torch.equal(other["kd"], one["kd"])

    @pytest.mark.parametrize("temperature", [1, 4, 20])
    def test_have_the_published_divergence(self, temperature: int) -> None:
        final = [torch.zeros(4, scenes.network().pooled_width, 2, 2)]
        final.append(torch.zeros(4, scenes.other_network().pooled_width, 2, 2))
        terms = method(temperature=temperature).terms(
            scenes.features(STUDENT, final=final[0]),
            scenes.features(TEACHER, final=final[1]),
            scenes.batch([0, 1, 2, 0]),
            scenes.MOMENT,
        )
        assert CASES.close(terms["kd"], CASES.case(f"kd_mean_T{temperature}"))
        assert float(terms["cam"].detach()) == 0

    def test_are_zero_for_a_student_that_is_its_teacher(self) -> None:
        teacher = scenes.other_network()
        made = spaceshipnet.SpaceshipNet(spaceshipnet.SpaceshipNet.Params(), teacher, teacher)
        student_out, teacher_out = scenes.observed(teacher, teacher, scenes.pictures(4))
        terms = made.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)
        assert float(terms["cam"]) == 0
        assert float(terms["kd"]) == pytest.approx(0, abs=1e-4)

    def test_of_regions_move_the_student_but_not_its_classifier(self) -> None:
        student = scenes.network()
        made = spaceshipnet.SpaceshipNet(
            spaceshipnet.SpaceshipNet.Params(), student, scenes.other_network()
        )
        student_out, teacher_out = scenes.observed(
            student, scenes.other_network(), scenes.pictures(4)
        )
        made.terms(student_out, teacher_out, scenes.batch([0, 1, 2, 0]), scenes.MOMENT)[
            "cam"
        ].backward()
        classifier = student.pooled_classifier()
        assert classifier is not None
        assert classifier.weight.grad is None
        moved = [parameter.grad is not None for parameter in student.parameters()]
        assert sum(moved) == len(moved) - len(list(classifier.parameters()))


class TestSynthesis:
    def test_has_the_published_terms(self) -> None:
        terms = method(bn_weight=1, onehot_weight=1).synthesis_terms(STEP)
        assert list(terms) == ["bn", "onehot"]
        assert CASES.close(terms["bn"], CASES.case("bn_loss_l2norm_var"))
        assert CASES.close(terms["onehot"], CASES.case("ce_to_targets_mean"))


class TestSpaceshipNet:
    def test_makes_generators_of_the_teachers_images_that_exchange_in_the_last_step(self) -> None:
        made = method(exchange_probability=0.3, synthesis={"steps": 5}).make_generator()
        assert (made.steps, made.probability) == (5, 0.3)
        assert made(made.sample_latent(torch.zeros(2, dtype=torch.long))).shape == (2, 1, 8, 8)

    @pytest.mark.parametrize("renews", [False, True])
    def test_renews_its_generator_at_each_call_or_never(self, renews: bool) -> None:
        made = method(renews=renews)
        assert [made.renews_at(call) for call in (1, 2, 9)] == [renews] * 3

    def test_aims_at_all_classes_in_turn(self) -> None:
        assert method().targets(7).tolist() == [0, 1, 2, 0, 1, 2, 0]

    def test_aims_at_every_class_in_time_where_a_batch_cannot_hold_all(self) -> None:
        made, few = method(), 2
        torch.manual_seed(0)
        assert {each for _ in range(20) for each in made.targets(few).tolist()} == {0, 1, 2}

    def test_needs_a_last_map_and_a_classifier(self) -> None:
        with pytest.raises(errors.IncompatibleNetworks, match="shows none"):
            spaceshipnet.SpaceshipNet(
                spaceshipnet.SpaceshipNet.Params(),
                scenes.network(),
                batches.small().float(),
            )

    def test_trains_and_saves_nothing_of_its_own(self) -> None:
        assert not list(method().parameters())
        assert not method().state_dict()
