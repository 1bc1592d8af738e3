"""The sampler: the same question has the same answer, and its trials come from our rows alone."""

import math
from typing import Any

import pytest

from models_registry.studies import search_variants
from models_registry.studies.search_spec import SearchSpec, TrialState
from models_registry.studies.searches import PastTrial, Question
from models_registry.studies.spec import StudySpec
from tests import factories
from workers import search_sampler

FLOAT: dict[str, Any] = {"space": {"type": "float", "low": 1.0, "high": 16.0, "log": True}}
INT: dict[str, Any] = {"space": {"type": "int", "low": 2, "high": 4}}
CHOICES: dict[str, Any] = {"space": {"type": "categorical", "choices": [True, False]}}
TEMPERATURE = "/methods/0/temperature"


def question(
    methods: list[dict[str, Any]], *, past: list[PastTrial], count: int = 1, **search: Any
) -> Question:
    asked = SearchSpec.model_validate({"trials": 40, "parallel": 8, **search})
    spec = StudySpec.model_validate(factories.study_spec(methods=methods, search=None))
    axes = {place: search_variants.axes(spec.source, place) for place in range(len(methods))}
    return Question("stu_1", "now", asked, False, axes, past, count)


def searched(count: int, **search: Any) -> list[PastTrial]:
    """Search KD's temperature one trial after the other; 5 is the best."""
    past: list[PastTrial] = []
    for number in range(1, count + 1):
        asked = question([{"name": "kd", "temperature": FLOAT}], past=past, **search)
        (proposal,) = search_sampler.propose(asked).proposals
        value = -abs(math.log(proposal.choices[TEMPERATURE] / 5))
        state = TrialState.PRUNED if number % 4 == 3 else TrialState.COMPLETE
        past.append(PastTrial(number, state, 0, proposal.choices, value, {1: value}))
    return past


class TestPropose:
    def test_gives_the_same_search_for_the_same_seed(self) -> None:
        assert searched(11) == searched(11)
        assert searched(3) != searched(3, seed=1)

    @pytest.mark.parametrize("sampler", ["tpe", "random"])
    def test_stays_within_the_bounds_and_repeats_nothing(self, sampler: str) -> None:
        found = [trial.choices[TEMPERATURE] for trial in searched(8, sampler=sampler)]
        assert len(set(found)) == 8
        assert all(1 <= temperature <= 16 for temperature in found)

    def test_learns_from_past_trials(self) -> None:
        found = [trial.value or 0.0 for trial in searched(25)]
        assert sum(found[-10:]) / 10 > sum(found[:10]) / 10

    def test_chooses_a_method_and_its_own_values(self) -> None:
        methods = [{"name": "kd", "temperature": FLOAT}, {"name": "dkd", "beta": INT}]
        past = [
            PastTrial(1, TrialState.COMPLETE, 1, {"/methods/1/beta": 3}, 0.9, {}),
            PastTrial(2, TrialState.FAILED, 0, {TEMPERATURE: 2.0}, None, {}),
        ]
        answer = search_sampler.propose(question(methods, past=past, count=6))
        assert answer.revision == "now"
        assert {proposal.place for proposal in answer.proposals} == {0, 1}
        for proposal in answer.proposals:
            assert set(proposal.choices) == {[TEMPERATURE, "/methods/1/beta"][proposal.place]}

    def test_finds_the_last_of_few_combinations(self) -> None:
        methods = [{"name": "dkd", "beta": INT, "warmup_epochs": CHOICES}]
        every = [
            {"/methods/0/beta": beta, "/methods/0/warmup_epochs": place}
            for beta in (2, 3, 4)
            for place in (0, 1)
        ]
        past = [
            PastTrial(number, TrialState.COMPLETE, 0, choices, 0.5, {})
            for number, choices in enumerate(every[:-1], 1)
        ]
        (proposal,) = search_sampler.propose(question(methods, past=past)).proposals
        assert proposal.choices == every[-1]
