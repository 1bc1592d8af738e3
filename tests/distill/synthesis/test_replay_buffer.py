import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.distill.golden import CASES
from workers.distill.functional.priorities import Priority
from workers.distill.methods.datafree.base import Eviction
from workers.distill.synthesis.replay_buffer import ReplayBuffer

CLASSES = 3
PLAIN = Priority(alpha=1.0, beta=0.4, epsilon=1e-6)


def a_replay(
    capacity: int = 8,
    *,
    image_shape: tuple[int, int, int] = (1, 1, 2),
    caches_logits: bool = False,
    eviction: Eviction = "oldest",
) -> ReplayBuffer:
    return ReplayBuffer(
        capacity,
        image_shape=image_shape,
        classes=CLASSES,
        caches_logits=caches_logits,
        device=torch.device("cpu"),
        eviction=eviction,
    )


def numbered(numbers: list[int]) -> torch.Tensor:
    """Images that carry a number in their two pixels."""
    levels = torch.tensor([divmod(number, 256) for number in numbers]) / 255
    return levels.view(-1, 1, 1, 2)


def numbers_in(replay: ReplayBuffer) -> list[int]:
    levels = replay.images.flatten(1).long()
    return (levels[:, 0] * 256 + levels[:, 1]).tolist()


def fill(replay: ReplayBuffer, numbers: list[int], *, call: int = 1) -> torch.Tensor:
    targets = torch.tensor([number % CLASSES for number in numbers], dtype=torch.int64)
    logits = F.one_hot(targets, CLASSES).float()
    return replay.insert(numbered(numbers), targets, logits, call=call)


def assert_rounded(actual: torch.Tensor, expected: torch.Tensor) -> None:
    """Compare with a case of six decimals what a buffer counts in float32."""
    torch.testing.assert_close(actual, expected.float(), rtol=1e-6, atol=2e-6)


def divergences(student: str) -> torch.Tensor:
    """KL divergence of the scene's student from its teacher, a row each, in float64."""
    teacher = CASES.tensor("inputs", "teacher_logits").log_softmax(1)
    return (teacher.exp() * (teacher - CASES.tensor(*student.split("/")).log_softmax(1))).sum(1)


def scene() -> ReplayBuffer:
    replay = a_replay(4)
    fill(replay, [0, 1, 2, 3])
    return replay


FIRST, SECOND = "inputs/student_logits", "student_logits_step1"


class TestInsert:
    @given(st.lists(st.floats(-0.5, 1.5, width=32), min_size=2, max_size=2))
    def test_bytes_are_within_half_a_level_of_pixels_kept_to_the_range(
        self, pixels: list[float]
    ) -> None:
        replay = a_replay()
        image = torch.tensor(pixels).view(1, 1, 1, 2)
        replay.insert(image, torch.zeros(1, dtype=torch.int64), torch.zeros(1, CLASSES), call=1)
        away = replay.images.double() - 255 * image.double().clamp(0, 1)
        assert away.abs().max() <= 0.5 + 1e-4  # the product with 255 is rounded to float32

    def test_remembers_what_was_said_of_each_image(self) -> None:
        logits = CASES.tensor("inputs", "teacher_logits").requires_grad_()
        targets = torch.tensor(CASES.case("random_targets"))
        replay = a_replay(caches_logits=True)
        slots = replay.insert(numbered([5, 6, 7, 8]), targets, logits, call=3)
        assert slots.tolist() == [0, 1, 2, 3]
        assert numbers_in(replay) == [5, 6, 7, 8]
        assert torch.equal(replay.targets, targets)
        assert replay.classes().tolist() == CASES.case("teacher_argmax")
        expected = CASES.tensor("teacher_conf")
        assert_rounded(replay.confidence, expected)
        assert replay.logits is not None
        assert torch.equal(replay.logits, logits.detach().float())
        assert replay.born.tolist() == [3, 3, 3, 3]
        assert replay.drawn.tolist() == [0, 0, 0, 0]

    def test_of_dense_logits_keeps_shares_and_confidence_over_pixels(self) -> None:
        # The layout of the guide: pixel (b, 0, w) shows row 2b + w.
        logits = CASES.tensor("inputs", "teacher_logits").view(2, 2, 3).mT.unsqueeze(2)
        replay = a_replay()
        replay.insert(numbered([1, 2]), torch.tensor([0, 0]), logits, call=1)
        expected = CASES.tensor("seg", "phi_image", "conf")
        assert_rounded(replay.confidence, expected)
        assert replay.shares.tolist() == [[1, 0, 0], [0.5, 0.5, 0]]
        assert replay.class_shares().tolist() == [0.75, 0.25, 0]
        assert replay.logits is None

    def test_dense_logits_are_not_cached(self) -> None:
        replay = a_replay(caches_logits=True)
        with pytest.raises(ValueError, match="every pixel"):
            replay.insert(numbered([1]), torch.tensor([0]), torch.zeros(1, CLASSES, 1, 2), call=1)
        assert replay.count == 0

    def test_class_shares_are_those_of_the_members(self) -> None:
        replay = a_replay()
        assert replay.class_shares().tolist() == [0, 0, 0]
        fill(replay, CASES.case("buffer_predicted_classes"))  # a number's class is itself, below 3
        assert replay.class_shares().tolist() == CASES.case("buffer_class_fraction")

    def test_new_members_are_as_urgent_as_the_most_urgent_and_have_weight_1(self) -> None:
        replay = a_replay()
        fill(replay, [0, 1])
        assert replay.kl.tolist() == [1, 1]
        replay.refresh(torch.tensor([0.25, 4.0]), PLAIN)
        fill(replay, [2])
        assert replay.kl.tolist() == [0.25, 4, 4]
        assert replay.delta.tolist() == [0.25, 4, 4]
        assert replay.weights[2] == 1
        assert (replay.weights[:2] != 1).all()

    def test_of_more_images_than_it_holds_the_last_stay(self) -> None:
        replay = a_replay(3)
        fill(replay, [1, 2])
        slots = fill(replay, [3, 4, 5, 6, 7], call=2)
        assert len(slots) == 3
        assert [numbers_in(replay)[slot] for slot in slots.tolist()] == [5, 6, 7]
        assert replay.born.tolist() == [2, 2, 2]

    def test_a_buffer_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one image"):
            a_replay(0)


class TestEviction:
    def test_the_oldest_give_way_in_a_ring(self) -> None:
        replay = a_replay(5)
        fill(replay, [0, 1, 2])
        assert fill(replay, [3, 4, 5, 6]).tolist() == [3, 4, 0, 1]
        assert numbers_in(replay) == [5, 6, 2, 3, 4]
        assert fill(replay, [7, 8]).tolist() == [2, 3]

    def test_those_of_the_lowest_priority_give_way_after_free_slots_are_taken(self) -> None:
        replay = a_replay(5, eviction="lowest")
        fill(replay, [0, 1, 2, 3])
        replay.refresh(torch.tensor([0.4, 0.1, 0.3, 0.2]), PLAIN)
        assert fill(replay, [4, 5, 6]).tolist() == [4, 1, 3]
        assert numbers_in(replay) == [0, 5, 2, 6, 4]

    def test_a_replaced_member_starts_anew(self) -> None:
        replay = a_replay(2)
        fill(replay, [0, 1])
        replay.draw(10, PLAIN)
        replay.refresh(torch.tensor([0.5, 2.0]), PLAIN)
        kept_weight, kept_count = replay.weights[1].item(), replay.drawn[1].item()
        fill(replay, [2], call=7)
        assert replay.drawn.tolist() == [0, kept_count]
        assert replay.born.tolist() == [7, 1]
        assert replay.weights.tolist() == [1, kept_weight]


class TestDraw:
    @pytest.mark.parametrize("priority", [None, PLAIN])
    def test_an_empty_buffer_has_nothing_to_draw(self, priority: Priority | None) -> None:
        replay = a_replay()
        with pytest.raises(ValueError, match="buffer is empty"):
            replay.draw(4, priority)
        with pytest.raises(ValueError, match="buffer is empty"):
            replay.probabilities(PLAIN)

    def test_frequencies_follow_the_probabilities(self) -> None:
        torch.manual_seed(0)
        replay = scene()
        replay.refresh(divergences(FIRST), PLAIN)
        drawn = replay.draw(20_000, PLAIN)
        expected = 20_000 * CASES.tensor("P_step0_alpha_1_eps_1e-6")
        counts = torch.bincount(drawn.slots, minlength=4)
        assert ((counts - expected) ** 2 / expected).sum() < 16.3  # 99.9 %, 3 degrees of freedom
        assert torch.equal(replay.drawn, counts)

    def test_without_priority_all_are_as_likely_whatever_their_divergence(self) -> None:
        torch.manual_seed(0)
        replay = scene()
        replay.refresh(torch.tensor([0.0, 1.0, 10.0, 100.0]), PLAIN)
        drawn = replay.draw(20_000, None)
        counts = torch.bincount(drawn.slots, minlength=4)
        assert ((counts - 5000) ** 2 / 5000).sum() < 16.3  # 99.9 %, 3 degrees of freedom
        assert drawn.weights is None

    def test_free_slots_are_never_drawn(self) -> None:
        replay = a_replay(100)
        fill(replay, [0, 1, 2])
        fill(replay, [3])  # memory for more members than there are
        assert replay.draw(500, None).slots.max() == 3
        assert replay.draw(500, PLAIN).slots.max() == 3

    def test_weights_are_those_of_the_drawn_members(self) -> None:
        torch.manual_seed(0)
        replay = scene()
        replay.refresh(divergences(FIRST), PLAIN)
        drawn = replay.draw(200, PLAIN)
        assert drawn.weights is not None
        expected = CASES.tensor("w_step0_beta_0.4_raw")[drawn.slots]
        assert_rounded(drawn.weights, expected)

    def test_with_beta_1_the_weighted_mean_is_that_of_an_even_draw(self) -> None:
        replay = scene()
        replay.refresh(torch.tensor([0.5, 1.0, 2.0, 4.0]), PLAIN)
        full = Priority(alpha=1.0, beta=1.0, epsilon=1e-6)
        values, shares = torch.tensor([3.0, 1.0, 4.0, 1.5]), replay.probabilities(full)
        drawn = replay.draw(50, full)
        assert drawn.weights is not None
        torch.testing.assert_close(drawn.weights, 1 / (4 * shares[drawn.slots]))
        torch.testing.assert_close((shares * values / (4 * shares)).sum(), values.mean())


class TestUpdate:
    @pytest.mark.parametrize("measured", ["as a whole", "as drawn"])
    def test_the_recursion_of_a_frozen_student_goes_on_measurement_by_measurement(
        self, measured: str
    ) -> None:
        replay = scene()
        kl = divergences(FIRST)
        exact = Priority(alpha=1.0, beta=0.4, epsilon=0.0)
        order = torch.tensor([2, 0, 3, 1])
        for name in ("P_step0", "P_step1", "P_step2"):
            if measured == "as a whole":
                replay.refresh(kl, exact)
            else:
                replay.update(order, kl[order], exact)
            expected = CASES.tensor("priority_recursion_fixed_student", name)
            assert_rounded(replay.probabilities(exact), expected)
        for _ in range(30):
            replay.refresh(kl, exact)
        expected = CASES.tensor("priority_recursion_fixed_student", "P_limit")
        assert_rounded(replay.probabilities(exact), expected)

    def test_a_student_that_learned_moves_priorities_as_computed_by_hand(self) -> None:
        replay = scene()
        replay.refresh(divergences(FIRST), PLAIN)
        assert_rounded(replay.delta, CASES.tensor("delta_step0 (w_prev = 1)"))
        assert_rounded(replay.probabilities(PLAIN), CASES.tensor("P_step0_alpha_1_eps_1e-6"))
        assert_rounded(replay.weights, CASES.tensor("w_step0_beta_0.4_raw"))
        replay.update(torch.arange(4), divergences(SECOND), PLAIN)
        assert_rounded(replay.kl, CASES.tensor("kd_each_step1"))
        assert_rounded(replay.delta, CASES.tensor("delta_step1 (raw"))
        assert_rounded(replay.probabilities(PLAIN), CASES.tensor("P_step1"))
        assert_rounded(replay.weights, CASES.tensor("w_step1_beta_0.4_raw"))

    def test_members_that_were_not_measured_keep_what_they_have(self) -> None:
        replay = scene()
        replay.refresh(divergences(FIRST), PLAIN)
        before = [replay.kl.clone(), replay.delta.clone(), replay.weights.clone()]
        replay.update(torch.tensor([2]), torch.tensor([3.0]), PLAIN)
        others = torch.tensor([0, 1, 3])
        for old, new in zip(before, [replay.kl, replay.delta, replay.weights], strict=True):
            assert torch.equal(old[others], new[others])
            assert old[2] != new[2]

    def test_of_a_member_drawn_twice_the_last_measurement_counts_once(self) -> None:
        once, twice = scene(), scene()
        for replay in (once, twice):
            replay.refresh(divergences(FIRST), PLAIN)
        once.update(torch.tensor([1, 3]), torch.tensor([0.7, 0.2]), PLAIN)
        twice.update(torch.tensor([3, 1, 3, 1, 3]), torch.tensor([9.0, 0.1, 5.0, 0.7, 0.2]), PLAIN)
        assert torch.equal(once.kl, twice.kl)
        assert torch.equal(once.delta, twice.delta)
        assert torch.equal(once.weights, twice.weights)

    def test_beta_0_gives_every_member_weight_1(self) -> None:
        replay = scene()
        replay.refresh(divergences(FIRST), Priority(alpha=1.0, beta=0.0, epsilon=1e-6))
        assert replay.weights.tolist() == [1, 1, 1, 1]

    def test_the_order_of_members_does_not_matter(self) -> None:
        order = torch.tensor([2, 0, 3, 1])
        straight, permuted = scene(), a_replay(4)
        fill(permuted, order.tolist())
        for student in (FIRST, SECOND):
            straight.refresh(divergences(student), PLAIN)
            permuted.refresh(divergences(student)[order], PLAIN)
        torch.testing.assert_close(
            permuted.probabilities(PLAIN), straight.probabilities(PLAIN)[order]
        )
        torch.testing.assert_close(permuted.weights, straight.weights[order])

    def test_where_draws_are_even_weights_stay_and_the_least_divergent_give_way(self) -> None:
        replay = a_replay(3, eviction="lowest")
        fill(replay, [0, 1, 2])
        replay.refresh(torch.tensor([0.5, 0.1, 0.3], requires_grad=True), None)
        assert replay.weights.tolist() == [1, 1, 1]
        assert not replay.kl.requires_grad
        assert fill(replay, [3]).tolist() == [1]
        torch.testing.assert_close(replay.kl, torch.tensor([0.5, 0.5, 0.3]))

    def test_a_measurement_may_come_with_a_gradient_and_leaves_none(self) -> None:
        replay = scene()
        replay.update(torch.tensor([0]), torch.tensor([2.0], requires_grad=True), PLAIN)
        assert not replay.delta.requires_grad

    def test_needs_no_operation_whose_result_varies(self) -> None:
        torch.use_deterministic_algorithms(True)
        replay = a_replay(4, eviction="lowest")
        fill(replay, [0, 1, 2])
        fill(replay, [3, 4])
        drawn = replay.draw(16, PLAIN)
        replay.update(drawn.slots, torch.rand(16), PLAIN)
        assert replay.drawn.sum() == 16


class TestState:
    @pytest.mark.parametrize("eviction", ["oldest", "lowest"])
    def test_a_restored_buffer_goes_on_exactly(self, eviction: Eviction) -> None:
        replay = a_replay(6, caches_logits=True, eviction=eviction)
        self.go_on(replay, 0, 4)
        saved = io.BytesIO()
        torch.save({"replay": replay.state(), "random": torch.get_rng_state()}, saved)
        self.go_on(replay, 4, 8)
        saved.seek(0)
        loaded = torch.load(saved, weights_only=True)
        resumed = a_replay(6, caches_logits=True, eviction=eviction)
        resumed.restore(loaded["replay"])
        torch.set_rng_state(loaded["random"])
        self.go_on(resumed, 4, 8)
        assert_same(resumed.state(), replay.state())

    def go_on(self, replay: ReplayBuffer, first: int, end: int) -> None:
        for turn in range(first, end):
            fill(replay, [10 * turn, 10 * turn + 1], call=turn)
            replay.refresh(torch.rand(replay.count), PLAIN)
            drawn = replay.draw(5, PLAIN)
            replay.update(drawn.slots, torch.rand(5), PLAIN)

    def test_holds_members_only_and_a_copy_of_them(self) -> None:
        replay = a_replay(1000)
        fill(replay, [1, 2])
        fill(replay, [3])
        state = replay.state()
        assert all(len(column) == 3 for column in state["members"].values())
        stored = state["members"]["images"].untyped_storage()
        assert stored.nbytes() == 6  # three images of two bytes, nothing behind them
        replay.refresh(torch.rand(3), PLAIN)
        assert state["members"]["kl"].tolist() == [1, 1, 1]

    def test_an_empty_buffer_has_a_state_too(self) -> None:
        replay = a_replay()
        fill(replay, [1])
        replay.restore(a_replay().state())
        assert replay.count == 0

    @pytest.mark.parametrize(
        "other",
        [
            {"capacity": 7},
            {"image_shape": (1, 2, 1)},
            {"caches_logits": True},
        ],
    )
    def test_the_state_of_another_kind_of_buffer_is_refused(self, other: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match="another size or of other images"):
            a_replay().restore(a_replay(**other).state())


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for name, column in one.pop("members").items():
        assert torch.equal(column, other["members"][name]), name
    other = {key: value for key, value in other.items() if key != "members"}
    assert one == other


class ReplayMachine(RuleBasedStateMachine):
    """Any order of what is done to a buffer, beside a list that says which image is where."""

    @initialize(
        capacity=st.integers(1, 9),
        eviction=st.sampled_from(["oldest", "lowest"]),
        seed=st.integers(0, 100),
    )
    def begin(self, capacity: int, eviction: Eviction, seed: int) -> None:
        torch.manual_seed(seed)
        self.capacity, self.eviction = capacity, eviction
        self.replay = a_replay(capacity, eviction=eviction)
        self.members: list[int] = []
        self.arrivals: list[int] = []

    @rule(count=st.integers(1, 12))
    def insert(self, count: int) -> None:
        before, delta = list(self.members), self.replay.delta.clone()
        new = [len(self.arrivals) + place for place in range(count)]
        self.arrivals += new
        slots = fill(self.replay, new).tolist()
        after = numbers_in(self.replay)
        kept = min(count, self.capacity)
        assert len(set(slots)) == kept
        assert [after[slot] for slot in slots] == new[-kept:]
        assert len(after) == min(self.capacity, len(before) + count)
        gone = [slot for slot in slots if slot < len(before)]
        assert len(gone) == kept - (len(after) - len(before))
        stayed = [slot for slot in range(len(before)) if slot not in slots]
        assert [after[slot] for slot in stayed] == [before[slot] for slot in stayed]
        if self.eviction == "lowest" and gone and stayed:
            assert delta[gone].max() <= delta[stayed].min()
        self.members = after

    @precondition(lambda self: self.members)
    @rule()
    def refresh(self) -> None:
        self.replay.refresh(torch.rand(len(self.members)), PLAIN)

    @precondition(lambda self: self.members)
    @rule(count=st.integers(1, 6))
    def learn(self, count: int) -> None:
        before = self.replay.drawn.sum()
        slots = self.replay.draw(count, PLAIN).slots
        self.replay.update(slots, torch.rand(count), PLAIN)
        assert self.replay.drawn.sum() == before + count

    @rule()
    def resume(self) -> None:
        state = self.replay.state()
        self.replay = a_replay(self.capacity, eviction=self.eviction)
        self.replay.restore(state)

    @invariant()
    def only_what_was_inserted_is_there_and_each_once(self) -> None:
        assert self.replay.count == len(self.members) <= self.capacity
        assert numbers_in(self.replay) == self.members
        if self.eviction == "oldest":
            assert sorted(self.members) == self.arrivals[-self.capacity :]

    @precondition(lambda self: self.members)
    @invariant()
    def every_member_can_be_drawn(self) -> None:
        shares = self.replay.probabilities(PLAIN)
        assert (shares > 0).all()
        assert abs(shares.sum().item() - 1) < 1e-5  # sums of float32


class TestAnyOrder:
    def test_a_buffer_holds_what_a_list_says(self) -> None:
        run_state_machine_as_test(
            ReplayMachine, settings=settings(max_examples=25, stateful_step_count=15)
        )
