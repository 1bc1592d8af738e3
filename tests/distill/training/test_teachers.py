from dataclasses import replace

import pytest
import torch

from tests.distill import folders
from tests.distill.methods import scenes
from tests.distill.methods.dense import scenes as dense_scenes
from tests.distill.training.test_loop import a_state, step_of
from workers.distill import errors
from workers.distill.config.descriptions import FeatureName
from workers.distill.config.job import Input
from workers.distill.config.training import expand
from workers.distill.data.loader import BatchLoader
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.data.types import Batch
from workers.distill.methods.logit.fkd import FKD
from workers.distill.methods.logit.kd import KD
from workers.distill.networks import folding
from workers.distill.networks.interface import Features, Network
from workers.distill.runtime.precision import Precision
from workers.distill.training import floor
from workers.distill.training.teachers import (
    NoTeacher,
    OnlineTeacher,
    SharedTeacher,
    StoredTeacher,
    TrainModeTeacher,
    check_size,
    fill_stores,
)
from workers.distill.training.throughput import ThroughputMeter

CPU = torch.device("cpu")
FLOAT32 = Precision("float32", CPU)
SIZE = Input.model_validate(folders.INPUT)
VIEW = Preprocessor("teacher", SIZE, SIZE, CPU)


def source(**training: object) -> BatchLoader:
    images, labels = folders.images(10, 3, 0)
    wanted = expand({"batch_size": 4, **training})
    return BatchLoader(images, labels, training=wanted, flip=False, device=CPU)


def online_teacher(network: Network, *, keeps: tuple[FeatureName, ...] = ()) -> OnlineTeacher:
    return OnlineTeacher(network.observe, VIEW, FLOAT32, keeps=keeps)


class TestOnlineTeacher:
    def test_shows_maps_only_to_those_who_want_them(self) -> None:
        network, batch = scenes.other_network(), next(source().epoch(1))
        assert online_teacher(network).observe(batch).stages == ()
        assert len(online_teacher(network, keeps=("stages",)).observe(batch).stages) == 3

    def test_shows_a_detectors_head_only_to_those_who_want_it(self) -> None:
        network = dense_scenes.detector(1).eval()
        size = Input.model_validate({**folders.INPUT, "height": 32, "width": 32})
        view, batch = Preprocessor("teacher", size, size, CPU), dense_scenes.boxes_batch()
        wanted: list[tuple[tuple[FeatureName, ...], int, bool]] = [
            ((), 0, False),
            (("stages",), 2, False),
            (("locations",), 2, True),
        ]
        for keeps, maps, has_head in wanted:
            teacher_out = OnlineTeacher(network.observe, view, FLOAT32, keeps=keeps).observe(batch)
            assert len(teacher_out.stages) == maps
            assert (teacher_out.detector is not None) is has_head

    def test_looks_at_the_strong_view_too(self) -> None:
        network, batch = scenes.other_network(), next(source().epoch(1))
        darker = replace(batch, strong=batch.images // 2)
        teacher_out = online_teacher(network).observe(darker)
        assert teacher_out.strong is not None
        expected = online_teacher(network).observe(replace(batch, images=batch.images // 2))
        assert torch.equal(teacher_out.strong.logits, expected.logits)


class TestTrainModeTeacher:
    def test_sees_with_the_batchs_own_statistics_and_moves_only_its_copy(self) -> None:
        network, batch = scenes.other_network(), next(source().epoch(1))
        before = {name: value.clone() for name, value in network.state_dict().items()}
        teacher_out = TrainModeTeacher(network, VIEW, FLOAT32).observe(batch)
        network.train()
        with torch.no_grad():
            expected = network.observe(VIEW(batch.images))
        network.load_state_dict(before)
        assert torch.equal(teacher_out.logits, expected.logits)
        assert not teacher_out.logits.requires_grad

    def test_leaves_the_shared_teacher_as_it_was(self) -> None:
        network, batch = scenes.other_network(), next(source().epoch(1))
        before = {name: value.clone() for name, value in network.state_dict().items()}
        TrainModeTeacher(network, VIEW, FLOAT32).observe(batch)
        assert all(torch.equal(before[name], now) for name, now in network.state_dict().items())
        assert not network.training


class TestSharedTeacher:
    def test_looks_once_at_each_batch(self) -> None:
        seen: list[Batch] = []

        class Counting(NoTeacher):
            def observe(self, batch: Batch) -> Features:
                seen.append(batch)
                return scenes.features(torch.zeros(len(batch.labels), 3))

        once = SharedTeacher(Counting(CPU))
        one, other = scenes.batch([0, 1]), scenes.batch([0, 1])
        outputs = [once.observe(batch) for batch in (one, one, other, one)]
        assert outputs[0] is outputs[1]
        assert seen == [one, other, one]


class TestStoredTeacher:
    def stored(self, method: KD | FKD, network: Network) -> tuple[StoredTeacher, BatchLoader]:
        views = source(teacher_cache={"views": 3})
        online = online_teacher(network)
        example = online.observe(next(views.views_in_order(4)))
        store = StoredTeacher(method, example, count=views.count, views=3)
        done: list[tuple[int, int]] = []
        fill_stores([store], online, views, lambda *now: done.append(now))
        assert done[0] == (0, 30)
        return store, views

    def test_says_of_each_view_what_was_written_about_it(self) -> None:
        network = scenes.other_network()
        store, views = self.stored(KD(KD.Params(), scenes.network(), network), network)
        for batch in views.epoch(1):
            fresh, stored_out = online_teacher(network).observe(batch), store.observe(batch)
            # Other batch sizes: other sums.
            assert torch.allclose(fresh.logits, stored_out.logits, rtol=1e-4, atol=1e-5)
            assert torch.allclose(fresh.pooled, stored_out.pooled, rtol=1e-4, atol=1e-5)

    def test_keeps_what_the_method_keeps(self) -> None:
        network = scenes.other_network()
        method = FKD(FKD.Params(storage="hard"), scenes.network(), network)
        store, views = self.stored(method, network)
        for batch in views.epoch(1):
            expected = online_teacher(network).observe(batch).logits.argmax(1)
            assert torch.equal(store.observe(batch).logits.argmax(1), expected)

    def test_refuses_to_keep_too_much_and_says_how_many_views_fit(self) -> None:
        with pytest.raises(errors.BadRecipe, match=r"500 views of 50000 images .*views to 171,"):
            check_size("kd", 500, 50_000, 500)
        check_size("fkd", 25, 50_000, 500)


class TestThroughputMeter:
    def steps(self, count: int, measured: ThroughputMeter) -> ThroughputMeter:
        state = a_state([0.5])
        batch = next(source().epoch(1))
        measured.before_step(interrupted=True)
        for _ in range(count):
            measured.after_step(batch, [step_of(state)], last=True)
            measured.before_step(interrupted=False)
        return measured

    @pytest.mark.parametrize("count", [1, 6])
    def test_measures_a_share_after_any_number_of_steps(self, count: int) -> None:
        share = self.steps(count, ThroughputMeter(CPU, FLOAT32, None)).arithmetic_share
        assert share is not None
        assert 0 < share <= 1

    def test_knows_nothing_before_the_first_step(self) -> None:
        assert ThroughputMeter(CPU, FLOAT32, None).arithmetic_share is None

    def test_moves_no_weights_of_the_student(self) -> None:
        student = scenes.network()
        weights_before = {name: value.clone() for name, value in student.state_dict().items()}
        floor.Floor(student, FLOAT32)(scenes.pictures(4))
        assert all(
            torch.equal(weights_before[name], now) for name, now in student.state_dict().items()
        )
        assert all(parameter.grad is None for parameter in student.parameters())


class TestFolded:
    def test_weights_can_be_loaded_again_as_compiling_does(self) -> None:
        network = scenes.other_network()
        folded = folding.folded(network, scenes.pictures(4))
        folded.load_state_dict({name: value.clone() for name, value in folded.state_dict().items()})
