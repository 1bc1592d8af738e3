import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.distill import folders
from tests.distill.training.test_loop import step_of, train
from workers.distill import errors
from workers.distill.config.training import expand
from workers.distill.data.loader import BatchLoader
from workers.distill.data.types import Batch, Mixed
from workers.distill.methods.base import Method, Moment, Terms
from workers.distill.methods.logit.ce import CE
from workers.distill.networks.interface import Features, Network
from workers.distill.runtime.precision import Precision
from workers.distill.training.ema import EMA, averaged_tensors
from workers.distill.training.meters import LossMeter
from workers.distill.training.optimizers import TrainOptimizer
from workers.distill.training.progress import steps_done
from workers.distill.training.state import TrainState, Validate, larger_share_labels

CPU = torch.device("cpu")
FLOAT32 = Precision("float32", CPU)
IMAGES = 12
Fields = dict[str, Any]
"""Fields of a recipe's training; Any: JSON values."""


class Small(Network):
    """As little as a network with a batch norm can be."""

    def __init__(self) -> None:
        super().__init__()
        self.classes = 3
        self.first = nn.Linear(64, 6)
        self.norm = nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 3)

    def observe(self, images: torch.Tensor) -> Features:
        pooled = self.norm(self.first(images.flatten(1))).relu()
        return Features(logits=self.fc(pooled), pooled=pooled)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.observe(images).logits


class Adapted(CE):
    """Cross-entropy with a learned part, a norm, and a memory that is no average."""

    name = "adapted"
    uses_strong_view = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.adapter = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4))
        self.register_buffer("memory", torch.zeros(IMAGES))
        self.noise = 0.0

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        self.noise = float(torch.rand(()))  # what a method draws is part of what resumes
        self.get_buffer("memory")[batch.index] += 1.0
        adapted = self.adapter(student.pooled) * (1 + 0.1 * self.noise)
        return {**self.task(student, batch), "adapted": 0.1 * adapted.square().mean()}

    def deliver(self, student: Network) -> Network:
        return student  # as those methods do whose own parts belong to what they deliver


class KeepsNothing(Adapted):
    deliver = Method.deliver


class WantsStrong(Adapted):
    uses_strong_view = True

    def terms(self, student: Features, teacher: Features, batch: Batch, moment: Moment) -> Terms:
        assert student.strong is not None
        return {
            **super().terms(student, teacher, batch, moment),
            "strong": student.strong.logits.std(),
        }


def scores(*accuracies: float) -> Callable[[Network], dict[str, float]]:
    """Return a validation that gives these accuracies in turn, and then the last for ever."""
    given = itertools.chain(accuracies, itertools.repeat(accuracies[-1]))
    return lambda _network: {"accuracy": next(given), "loss": 1.0}


def likeness(network: Network) -> dict[str, float]:
    """Score a network by its weights alone, so that another attempt finds the same."""
    return {"accuracy": float(network.get_parameter("fc.weight").detach().std()), "loss": 1.0}


def a_state(
    validate: Validate = likeness, *, method: type[CE] = Adapted, **fields: Any
) -> TrainState:
    """Return a training state over 3 steps an epoch."""
    training = expand({"epochs": 4, "batch_size": 4, **fields})
    torch.manual_seed(0)
    student = Small()
    made = method(method.Params(), student, None)
    source = BatchLoader(
        *folders.images(IMAGES, 3, 0),
        training=training,
        flip=True,
        device=CPU,
        strong=made.uses_strong_view,
    )
    torch.manual_seed(1)
    return TrainState(
        phase="student",
        training=training,
        student=student,
        method=made,
        source=source,
        optimizer=TrainOptimizer((student, made), training, FLOAT32),
        ema=EMA({"student": student, "method": made}, training.ema_decay)
        if training.ema_decay
        else None,
        meter=LossMeter(CPU),
        validate=validate,
    )


def stop_at(state: TrainState, step: int) -> Callable[[], None]:
    def stop() -> None:
        if state.step == step:
            raise errors.Interrupted

    return stop


def reloaded(state: dict[str, Any]) -> dict[str, Any]:
    """Return a state as a checkpoint gives it back."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    content: dict[str, Any] = torch.load(file, weights_only=True)
    return content


def tensors(content: Any, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all tensors and numbers inside, each with its place."""
    if isinstance(content, dict):
        for key, value in content.items():
            if key != "seconds":
                yield from tensors(value, f"{path}/{key}")
    elif isinstance(content, list | tuple):
        for key, value in enumerate(content):
            yield from tensors(value, f"{path}/{key}")
    elif isinstance(content, torch.Tensor):
        yield path, content
    elif isinstance(content, int | float):
        yield path, torch.tensor(content)


FEATURES: list[tuple[Fields, type[CE]]] = [
    ({"augmentation": "autoaugment"}, Adapted),
    ({"augmentation": "randaugment"}, Adapted),
    ({"mixing": {"name": "mixup"}}, Adapted),
    ({"mixing": {"name": "cutmix"}}, Adapted),
    ({"label_noise": 0.4}, Adapted),
    ({"ema_decay": 0.9}, Adapted),
    ({"ema_decay": 0.9, "optimizer": {"name": "dot"}, "clip_norm": 0.1}, Adapted),
    ({"optimizer": {"name": "adamw"}, "schedule": {"warmup_epochs": 2.5}}, Adapted),
    (
        {
            "optimizer": {"name": "lamb"},
            "task_loss": {"name": "bce", "target_threshold": 0.2},
            "mixing": {"name": "mixup_or_cutmix"},
        },
        Adapted,
    ),
    ({"patience_epochs": 1}, Adapted),
    ({"max_steps": 7}, Adapted),
    ({"teacher_cache": {"views": 4, "per_visit": 2}}, Adapted),
    ({}, WantsStrong),
]


class TestResume:
    @pytest.mark.parametrize("step", [2, 6])
    @pytest.mark.parametrize(("fields", "method"), FEATURES)
    def test_ends_with_the_bytes_of_a_run_that_was_never_stopped(
        self, fields: Fields, method: type[CE], step: int
    ) -> None:
        whole = a_state(method=method, **{"epochs": 3, **fields})
        train(whole)
        first = a_state(method=method, **{"epochs": 3, **fields})
        with contextlib.suppress(errors.Interrupted):  # some end before
            train(first, stop_at(first, step))
        saved = reloaded(first.state_dict())
        second = a_state(method=method, **{"epochs": 3, **fields})
        second.load_state_dict(saved)
        train(second)
        expected, actual = dict(tensors(whole.state_dict())), dict(tensors(second.state_dict()))
        assert expected.keys() == actual.keys()
        for place, value in expected.items():
            assert torch.equal(value, actual[place]), place
        assert whole.end_reason == second.end_reason
        delivered, other = whole.load_best().state_dict(), second.load_best().state_dict()
        assert all(torch.equal(value, other[name]) for name, value in delivered.items())

    def test_a_finished_phase_remembers_what_ended_it(self) -> None:
        endings: list[Fields] = [{"max_steps": 4}, {"patience_epochs": 1}, {}]
        for fields in endings:
            state = a_state(scores(0.5), **fields)
            train(state)
            again = a_state(scores(0.5), **fields)
            again.load_final_state_dict(reloaded(state.final_state_dict()))
            assert again.end_reason == state.end_reason
            assert again.best.epoch == state.best.epoch


class TestKeepBestEpochs:
    ACCURACIES = (0.3, 0.5, 0.4, 0.5, 0.2)

    @pytest.mark.parametrize(
        ("kept", "beside"), [(1, []), (2, [4]), (3, [4, 3]), (9, [4, 3, 1, 5])]
    )
    def test_keeps_the_best_in_their_order_of_equal_scores_the_earlier(
        self, kept: int, beside: list[int]
    ) -> None:
        state = a_state(scores(*self.ACCURACIES), epochs=5, keep_best_epochs=kept)
        train(state)
        assert state.best.epoch == 2
        assert [one.epoch for one in state.next_best] == beside

    def test_keeps_the_weights_of_each_epoch_also_over_a_resume(self) -> None:
        whole = a_state(scores(*self.ACCURACIES), epochs=5, keep_best_epochs=3)
        weights: dict[int, torch.Tensor] = {}

        def note() -> None:
            epoch = whole.step // 3
            if whole.step % 3 == 0:
                weights[epoch] = whole.student.get_parameter("fc.weight").detach().clone()

        train(whole, note)
        second = a_state(scores(*self.ACCURACIES), epochs=5, keep_best_epochs=3)
        second.load_final_state_dict(reloaded(whole.final_state_dict()))
        for state in (whole, second):
            for kept in (*state.next_best, state.best):
                network = state.load_kept(kept)
                assert torch.equal(network.get_parameter("fc.weight"), weights[kept.epoch])

    def test_of_a_baseline_keeps_the_best_alone(self) -> None:
        state = a_state(scores(*self.ACCURACIES), epochs=5, keep_best_epochs=3)
        state.phase = "baseline"
        train(state)
        assert state.next_best == []


class TestEnding:
    def test_epochs(self) -> None:
        state = a_state()
        train(state)
        assert (state.step, state.finished_epoch, state.end_reason) == (12, 4, "epochs")

    @pytest.mark.parametrize(("limit", "epoch"), [(1, 1), (3, 1), (4, 2), (11, 4)])
    def test_max_steps_ends_with_a_validation(self, limit: int, epoch: int) -> None:
        state = a_state(scores(0.1, 0.2, 0.3, 0.4), max_steps=limit, evaluate_every_epochs=4)
        train(state)
        assert (state.step, state.finished_epoch) == (limit, epoch)
        assert state.end_reason == "max_steps"
        assert state.best.epoch == state.validated_epoch == epoch
        assert state.history[-1]["validation/accuracy"] == 0.1

    def test_more_steps_than_epochs_have_change_nothing(self) -> None:
        state = a_state(max_steps=13)
        train(state)
        assert (state.step, state.end_reason) == (12, "epochs")

    def test_the_schedule_runs_over_all_epochs_however_early_the_end(self) -> None:
        short, whole = a_state(max_steps=5), a_state()
        assert short.optimizer.learning_rate(short.moment(5)) == whole.optimizer.learning_rate(
            whole.moment(5)
        )

    def test_patience_ends_when_nothing_got_better_for_so_long(self) -> None:
        state = a_state(scores(0.5, 0.6, 0.6, 0.55, 0.9), epochs=9, patience_epochs=2)
        train(state)
        assert (state.finished_epoch, state.best.epoch) == (4, 2)
        assert state.end_reason == "patience_epochs"

    def test_patience_counts_only_epochs_that_were_looked_at(self) -> None:
        state = a_state(scores(0.5), epochs=9, patience_epochs=3, evaluate_every_epochs=2)
        train(state)
        # Best at 2; at 4 two epochs have passed, at 5 three, but nobody looks before 6.
        assert (state.finished_epoch, state.validated_epoch) == (6, 6)

    def test_patience_lasts_while_it_gets_better(self) -> None:
        state = a_state(scores(*(number / 10 for number in range(1, 10))), patience_epochs=1)
        train(state)
        assert (state.finished_epoch, state.end_reason) == (4, "epochs")

    def test_seconds_end_after_the_step_that_reaches_them(self) -> None:
        state = a_state(scores(0.5), evaluate_every_epochs=4, max_seconds=10)

        def clock() -> None:
            state.time_is_up = state.step == 5

        train(state, clock)
        assert (state.step, state.finished_epoch, state.end_reason) == (5, 2, "max_seconds")
        assert state.best.epoch == 2

    def test_a_validation_interrupted_at_the_end_is_made_up_for(self) -> None:
        first = a_state(max_steps=5)
        first.validate = interrupted
        first.finished_epoch, first.step = 1, 3  # the first epoch was closed before
        with pytest.raises(errors.Interrupted):
            train(first)
        assert first.epoch_is_over
        second = a_state(max_steps=5)
        second.load_state_dict(reloaded(first.state_dict()))
        train(second)
        assert (second.finished_epoch, second.best.epoch) == (2, 2)

    def test_nothing_is_delivered_that_was_not_validated(self) -> None:
        state = a_state()
        with pytest.raises(errors.DistillError, match="no epoch was validated"):
            state.load_best()


def interrupted(_network: Network) -> dict[str, float]:
    raise errors.Interrupted


class TestAverage:
    def test_follows_parameters_and_moments_by_hand(self) -> None:
        module = nn.Linear(1, 1, bias=False)
        nn.init.constant_(module.weight, 1.0)
        ema = EMA({"student": module}, 0.25)
        expected = 1.0
        for step, weight in enumerate([3.0, 2.0, 5.0], start=1):
            nn.init.constant_(module.weight, weight)
            ema.update(step)
            decay = min(0.25, (1 + step) / (10 + step))
            expected = decay * expected + (1 - decay) * weight
        assert float(ema.state_dict()["student.weight"]) == pytest.approx(expected)

    def test_takes_norms_along_and_leaves_other_buffers(self) -> None:
        state = a_state(ema_decay=0.9)
        names = set(averaged_tensors({"student": state.student, "method": state.method}))
        assert {"student.norm.running_mean", "method.adapter.1.running_var"} <= names
        assert {"student.first.weight", "method.adapter.0.bias"} <= names
        assert not {name for name in names if "memory" in name or "batches" in name}

    def test_a_tensor_that_two_share_is_averaged_once(self) -> None:
        one = nn.Linear(2, 2)
        assert len(averaged_tensors({"student": one, "method": one})) == 2

    def test_is_what_is_validated_and_delivered(self) -> None:
        seen: list[torch.Tensor] = []

        def look(network: Network) -> dict[str, float]:
            seen.append(network.get_parameter("fc.weight").detach().clone())
            return {"accuracy": len(seen) / 10, "loss": 1.0}

        state = a_state(look, ema_decay=0.9)
        train(state)
        assert state.ema is not None
        weight = state.student.get_parameter("fc.weight")
        averaged = state.ema.state_dict()["student.fc.weight"]
        assert torch.equal(seen[-1], averaged)
        assert not torch.equal(seen[-1], weight)
        method = state.ema.state_dict()["method.adapter.0.weight"].clone()
        delivered = state.load_best()
        assert torch.equal(delivered.get_parameter("fc.weight"), averaged)
        assert torch.equal(state.method.get_parameter("adapter.0.weight"), method)

    def test_memories_stay_behind_where_nothing_is_made_of_them(self) -> None:
        for kind in (Adapted, KeepsNothing):
            state = a_state(method=kind)
            train(state)
            method_state = state.final_state_dict()["best"]["method"]
            assert bool(method_state) is (kind is Adapted)
            state.load_best()

    def test_validation_leaves_the_weights_that_learn_alone(self) -> None:
        plain = a_state(scores(0.5))
        train(plain)
        state = a_state(scores(0.5), ema_decay=0.9)
        train(state)
        for name, value in plain.student.state_dict().items():
            assert torch.equal(value, state.student.state_dict()[name]), name

    def test_an_interrupted_validation_puts_the_weights_back(self) -> None:
        state = a_state(ema_decay=0.9, epochs=1)
        state.validate = interrupted
        before: list[torch.Tensor] = []
        weight = state.student.get_parameter("fc.weight")
        with pytest.raises(errors.Interrupted):
            train(state, lambda: before.append(weight.detach().clone()))
        assert torch.equal(weight, before[-1])


class TestLearn:
    def test_shows_the_strong_view_to_methods_that_want_it(self) -> None:
        state = a_state(method=WantsStrong)
        batch = next(iter(state.iter_steps()))[1]
        step = step_of(state)
        student_out = step.forward_student(batch)
        assert student_out.strong is not None
        assert batch.strong is not None
        again = state.student.observe(step.preprocess(batch.strong))
        assert torch.equal(student_out.strong.logits, again.logits)

    def test_a_mixed_image_counts_by_its_larger_share(self) -> None:
        index = torch.arange(3)
        images = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
        mixed = Mixed(torch.tensor([7, 8, 9]), torch.tensor([0.6, 0.5, 0.4]))
        assert larger_share_labels(Batch(images, index, index, mixed=mixed)).tolist() == [0, 1, 9]
        assert larger_share_labels(Batch(images, index, index)).tolist() == [0, 1, 2]


class TestStepsDone:
    def test_counts_steps_or_seconds_whichever_is_further(self) -> None:
        state = a_state()
        state.step = 6
        assert steps_done(state) == 6
        timed = a_state(max_seconds=100)
        timed.step, timed.seconds = 3, 50.0
        assert steps_done(timed) == 6
        timed.seconds = 500.0
        assert steps_done(timed) == 12
