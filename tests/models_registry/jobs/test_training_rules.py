"""The API's rules between fields are the engine's: both refuse the same, neither more nor less."""

import copy
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models_registry import catalog, errors
from workers.distill.config.training import expand

OPTIMIZERS = st.one_of(
    st.fixed_dictionaries(
        {
            "name": st.just("sgd"),
            "momentum": st.sampled_from([0.0, 0.9]),
            "nesterov": st.booleans(),
        }
    ),
    st.fixed_dictionaries(
        {
            "name": st.just("dot"),
            "momentum": st.sampled_from([0.05, 0.9, 0.95]),
            "delta": st.sampled_from([0.0, 0.05, 0.075, 0.1]),
        }
    ),
    st.just({"name": "adamw"}),
)
SCHEDULES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(["step", "cosine", "constant"]),
        "warmup_epochs": st.sampled_from([0, 3, 4, 5]),
    }
)
CACHES = st.none() | st.fixed_dictionaries(
    {"views": st.integers(1, 4), "per_visit": st.integers(1, 5)}
)
TRAININGS = st.fixed_dictionaries(
    {
        "epochs": st.just(4),
        "batch_size": st.sampled_from([8, 12]),
        "optimizer": OPTIMIZERS,
        "schedule": SCHEDULES,
        "precision": st.sampled_from(["auto", "float16"]),
        "compile": st.sampled_from(["auto", "on"]),
        "augmentation": st.sampled_from(["none", "standard"]),
        "mixing": st.sampled_from([None, {"name": "mixup"}, {"name": "cutmix"}]),
        "teacher_cache": CACHES,
        "patience_epochs": st.none() | st.integers(1, 3),
        "evaluate_every_epochs": st.integers(1, 3),
    }
)


class TestFaults:
    @given(asked=TRAININGS)
    def test_refuses_exactly_what_the_engine_refuses(self, asked: dict[str, Any]) -> None:
        try:
            expand(copy.deepcopy(asked))
            wanted = True
        except pydantic.ValidationError:
            wanted = False
        try:
            completed = catalog.complete_training(asked)
        except errors.Refused:
            assert not wanted
        else:
            assert wanted
            assert expand(completed).model_dump(mode="json") == completed

    @pytest.mark.parametrize(
        ("asked", "pointer"),
        [
            ({"optimizer": {"nesterov": True, "momentum": 0}}, "/training/optimizer/nesterov"),
            ({"optimizer": {"name": "dot", "delta": 0.1}}, "/training/optimizer/delta"),
            ({"schedule": {"warmup_epochs": 31}}, "/training/schedule/warmup_epochs"),
            ({"patience_epochs": 1, "evaluate_every_epochs": 2}, "/training/patience_epochs"),
            ({"teacher_cache": {}, "mixing": {"name": "mixup"}}, "/training/mixing"),
            ({"teacher_cache": {}, "augmentation": "none"}, "/training/teacher_cache/views"),
            ({"teacher_cache": {"per_visit": 3}}, "/training/teacher_cache/per_visit"),
        ],
    )
    def test_names_the_field(self, asked: dict[str, Any], pointer: str) -> None:
        with pytest.raises(errors.Refused) as refused:
            catalog.complete_training(asked)
        assert [fault.pointer for fault in refused.value.faults] == [pointer]
