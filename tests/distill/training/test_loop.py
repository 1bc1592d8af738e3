from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.distill import folders
from workers.distill import errors
from workers.distill.config.job import Input
from workers.distill.config.training import expand
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.methods.logit.ce import CE
from workers.distill.methods.logit.kd import KD
from workers.distill.networks import catalog
from workers.distill.networks.interface import Features, Network
from workers.distill.runtime.precision import Precision
from workers.distill.tasks.base import count_equal_answers
from workers.distill.training.meters import LossMeter
from workers.distill.training.optimizers import TrainOptimizer
from workers.distill.training.state import TrainState, larger_share_labels
from workers.distill.training.step import DistillationStep
from workers.distill.training.teachers import (
    CachedTeacher,
    NoTeacher,
    OnlineTeacher,
    uses_feature_maps,
)

CPU = torch.device("cpu")
FLOAT32 = Precision("float32", CPU)


def a_network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    network = catalog.build(folders.NETWORK, classes=3, channels=1, height=8, width=8, arguments={})
    network.classes = 3
    return network


def a_source(images: torch.Tensor, labels: torch.Tensor) -> BatchLoader:
    training = expand({"batch_size": 4, "augmentation": "none"})
    return BatchLoader(images, labels, training=training, flip=False, device=CPU)


def a_state(accuracies: list[float], every: int = 1) -> TrainState:
    """Return a state of 3 steps an epoch whose validation gives these accuracies in turn."""
    training = expand(
        {"epochs": 4, "batch_size": 4, "evaluate_every_epochs": every, "augmentation": "none"}
    )
    student = a_network()
    method = CE(CE.Params(), student, None)
    images, labels = folders.images(12, 3, 0)
    given = iter(accuracies)
    return TrainState(
        phase="student",
        training=training,
        student=student,
        method=method,
        source=BatchLoader(images, labels, training=training, flip=False, device=CPU),
        optimizer=TrainOptimizer((student, method), training, FLOAT32),
        meter=LossMeter(CPU),
        validate=lambda _network: {"accuracy": next(given), "loss": 1.0},
    )


def train(state: TrainState, after: Callable[[], None] = lambda: None) -> None:
    """Train to the end; `after` is called after each step, before an epoch is finished."""
    if state.epoch_is_over:
        state.finish_epoch()
    step = step_of(state)
    for moment, batch in state.iter_steps():
        output = step(batch, moment)
        total = state.optimizer.step(output.terms, moment)
        labels = larger_share_labels(batch)
        state.record_step(moment, total, output.terms, output.student, labels)
        after()
        if state.epoch_is_over:
            state.finish_epoch()


def step_of(state: TrainState) -> DistillationStep:
    """Return the step of a state, without a teacher."""
    size = Input.model_validate(folders.INPUT)
    preprocess = Preprocessor("student", size, size, CPU)
    return DistillationStep(state.student, state.method, NoTeacher(CPU), preprocess, FLOAT32)


class TestTraining:
    def test_learns_a_set_that_can_be_learned(self, tmp_path: Path) -> None:
        training = {"epochs": 15, "augmentation": "none"}
        recipe = folders.prepare(tmp_path, method={"name": "ce"}, teacher=None, training=training)
        code, lines = folders.run_here(recipe)
        assert code == 0
        assert lines[-1]["scores"]["student"]["accuracy"] > 0.9

    def test_the_same_seed_gives_the_same_bytes_and_another_does_not(self, tmp_path: Path) -> None:
        files = []
        for name, seed in (("one", 1), ("again", 1), ("other", 2)):
            recipe = folders.prepare(tmp_path / name, training={"seed": seed})
            assert folders.run_here(recipe)[0] == 0
            files.append((tmp_path / name / "student.safetensors").read_bytes())
        assert files[0] == files[1]
        assert files[0] != files[2]

    def test_the_teacher_does_not_move(self, tmp_path: Path) -> None:
        recipe = folders.prepare(tmp_path)
        path = tmp_path / "teacher" / "model.safetensors"
        before = path.read_bytes()
        assert folders.run_here(recipe)[0] == 0
        assert path.read_bytes() == before


class TestTrainState:
    def test_the_earliest_of_equal_epochs_is_best(self) -> None:
        state = a_state([0.5, 0.75, 0.75, 0.25])
        train(state)
        assert (state.best.epoch, state.best.score) == (2, 0.75)

    def test_the_best_epochs_weights_are_delivered(self) -> None:
        state = a_state([0.5, 0.75, 0.25, 0.25])
        weights_by_step: dict[int, torch.Tensor] = {}
        weight = next(state.student.parameters())
        train(state, lambda: weights_by_step.update({state.step: weight.detach().clone()}))
        delivered = state.load_best()
        assert torch.equal(next(delivered.parameters()), weights_by_step[6])
        assert not delivered.training

    def test_validates_as_often_as_asked_and_at_the_end(self) -> None:
        state = a_state([0.5, 0.25], every=3)
        train(state)
        validated = [e["epoch"] for e in state.history if "validation/accuracy" in e]
        assert validated == [3, 4]

    def test_continues_from_its_state(self, tmp_path: Path) -> None:
        whole = a_state([0.1] * 4)
        train(whole)
        first = a_state([0.1] * 4)
        with pytest.raises(errors.Interrupted):
            train(first, lambda: interrupt_at(first, 5))
        torch.save(first.state_dict(), tmp_path / "state")
        second = a_state([0.1] * 4)
        second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
        train(second)
        for name, value in whole.student.state_dict().items():
            assert torch.equal(value, second.student.state_dict()[name]), name
        assert whole.history == second.history

    def test_an_interrupted_validation_is_made_up_for(self) -> None:
        state = a_state([])
        state.validate = refuse
        with pytest.raises(errors.Interrupted):
            train(state)
        assert (state.step, state.finished_epoch, state.epoch_is_over) == (3, 0, True)
        state.validate = lambda _network: {"accuracy": 0.5, "loss": 1.0}
        state.finish_epoch()
        assert not state.epoch_is_over
        assert state.best.epoch == 1


def interrupt_at(state: TrainState, step: int) -> None:
    if state.step == step:
        raise errors.Interrupted


def refuse(_network: Network) -> dict[str, float]:
    raise errors.Interrupted


class TestLossMeter:
    def add(self, counted: LossMeter, step: int, total: float) -> None:
        output = Features.from_logits(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
        terms = {"task": torch.tensor(total)}
        counted.update(step, torch.tensor(total), terms, output, torch.tensor([1, 1]))

    def test_averages_since_the_last_look(self) -> None:
        counted = LossMeter(CPU, count_equal_answers)
        for step, total in enumerate([1.0, 2.0], start=1):
            self.add(counted, step, total)
        assert counted.compute_and_reset() == {"total": 1.5, "task": 1.5}
        self.add(counted, 3, 4.0)
        assert counted.compute_and_reset() == {"total": 4.0, "task": 4.0}
        closed = counted.compute_and_reset_epoch()
        assert closed.accuracy == 0.5
        assert closed.losses == {"total": 7 / 3, "task": 7 / 3}

    def test_an_epochs_losses_survive_a_pause_inside_it(self) -> None:
        whole, first, second = (
            LossMeter(CPU, count_equal_answers),
            LossMeter(CPU, count_equal_answers),
            LossMeter(CPU, count_equal_answers),
        )
        for step, total in enumerate([1.0, 2.0, 4.0], start=1):
            self.add(whole, step, total)
        self.add(first, 1, 1.0)
        first.compute_and_reset()
        self.add(first, 2, 2.0)
        second.load_state_dict(first.state_dict())
        self.add(second, 3, 4.0)
        for counted in (whole, second):
            counted.compute_and_reset()
        assert second.compute_and_reset_epoch() == whole.compute_and_reset_epoch()

    def test_remembers_the_first_step_that_was_not_finite(self) -> None:
        counted = LossMeter(CPU, count_equal_answers)
        for step, total in enumerate([1.0, float("inf"), float("nan")], start=1):
            self.add(counted, step, total)
        with pytest.raises(errors.Diverged, match=r"at step 2 .*total inf.*learning_rate"):
            counted.check_finite()

    def test_is_silent_while_all_is_finite(self) -> None:
        counted = LossMeter(CPU, count_equal_answers)
        self.add(counted, 1, 1.0)
        counted.check_finite()


class TestTeacher:
    def test_a_remembering_teacher_shows_what_a_watching_one_shows(self) -> None:
        network = a_network(3).eval()
        size = Input.model_validate(folders.INPUT)
        images, labels = folders.images(12, 3, 0)
        source = a_source(images, labels)
        view = Preprocessor("teacher", size, size, CPU)
        online = OnlineTeacher(network.observe, view, FLOAT32, keeps=())
        cached = CachedTeacher(online, source)
        for batch in source.epoch(1):
            online_out, cached_out = online.observe(batch), cached.observe(batch)
            # Other batch sizes: other sums.
            assert torch.allclose(online_out.logits, cached_out.logits, rtol=1e-4, atol=1e-5)
            assert torch.allclose(online_out.pooled, cached_out.pooled, rtol=1e-4, atol=1e-5)

    def test_what_it_shows_can_be_kept_for_a_gradient(self) -> None:
        network = a_network(3).eval()
        size = Input.model_validate(folders.INPUT)
        view = Preprocessor("teacher", size, size, CPU)
        images, labels = folders.images(12, 3, 0)
        source = a_source(images, labels)
        teacher_out = OnlineTeacher(
            network.observe, view, FLOAT32, keeps=frozenset({"stages"})
        ).observe(next(source.epoch(1)))
        maps = [
            teacher_out.logits,
            teacher_out.pooled,
            *teacher_out.stages,
            *teacher_out.pre_activations,
        ]
        for values in maps:
            scale = torch.ones((), requires_grad=True)
            (scale * values).square().sum().backward()
            assert scale.grad is not None

    def test_logit_methods_want_no_maps(self) -> None:
        assert not uses_feature_maps(KD(KD.Params(), a_network(), a_network()))
