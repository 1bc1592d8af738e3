"""What a search may ask for: every fault at once, each with its place and the way out."""

from typing import Any

import pytest
from pydantic import ValidationError

from models_registry.studies import search_variants, spaces
from models_registry.studies.search_spec import fresh_seeds
from models_registry.studies.spec import StudySpec
from tests import factories

FLOAT: dict[str, Any] = {"space": {"type": "float", "low": 1.0, "high": 16.0, "log": True}}
INT: dict[str, Any] = {"space": {"type": "int", "low": 2, "high": 8}}
CHOICES: dict[str, Any] = {"space": {"type": "categorical", "choices": ["step", "cosine"]}}


def study(**changes: Any) -> dict[str, Any]:
    return factories.study_spec(
        **{
            "methods": [{"name": "kd", "temperature": FLOAT}],
            "search": {"trials": 4, "pruning": None},
            **changes,
        }
    )


def faults(**changes: Any) -> dict[str, str]:
    """Return what is wrong with a study, by pointer."""
    try:
        spec = StudySpec.model_validate(study(**changes))
    except ValidationError as error:
        return {"/" + "/".join(map(str, e["loc"])): e["msg"] for e in error.errors()}
    return {fault.pointer: fault.detail for fault in spec.faults()}


def space(kind: str, **fields: Any) -> dict[str, Any]:
    return {"methods": [{"name": "kd", "temperature": {"space": {"type": kind, **fields}}}]}


class TestFaults:
    def test_are_none_of_what_can_be_searched(self) -> None:
        assert faults() == {}
        several = [{"name": "kd", "temperature": FLOAT}, {"name": "dkd", "beta": INT}]
        training = {
            "optimizer": {"learning_rate": {"space": {"type": "float", "low": 0.01, "high": 0.1}}},
            "schedule": {"name": CHOICES},
        }
        assert faults(methods=several, training=training) == {}

    @pytest.mark.parametrize(
        ("changes", "pointer", "told"),
        [
            (space("float", low=3, high=1), "low/high", "greater than low, which is 3, got 1"),
            (space("int", low=3, high=3), "low/high", "greater than low, which is 3, got 3"),
            (space("float", low=0, high=1, log=True), "low/log", "raise low or leave log out"),
            (space("float", low=-1, high=3), "low/low", "must be greater than 0, got -1"),
            (space("int", low=1.5, high=3), "low/low", "valid integer, got 1.5"),
            (space("float", low=1), "low/high", "field required"),
            (space("categorical", choices=[2]), "low/choices", "at least 2 items"),
            (space("categorical", choices=[2, 2.0]), "low/choices", "appears twice"),
            (space("categorical", choices=[2, "x"]), "low/choices/1", 'number, got "x"'),
            (space("categorical", choices=[2, FLOAT]), "low/choices", "cannot hold a space"),
            (space("flaot", low=1, high=2), "low/type", "float, int, categorical, got 'flaot'"),
            (space("int", low=1, high=2, step=1), "low/step", "unknown field 'step'"),
        ],
    )
    def test_of_a_space(self, changes: dict[str, Any], pointer: str, told: str) -> None:
        (found,) = faults(**changes).items()
        assert found[0] == "/methods/0/temperature/space" + pointer.removeprefix("low")
        assert told in found[1]

    @pytest.mark.parametrize(
        ("changes", "pointer", "told"),
        [
            ({"search": {"trials": 0}}, "/search/trials", "greater than or equal to 1"),
            ({"search": {"trials": 501}}, "/search/trials", "less than or equal to 500"),
            (
                {"search": {"trials": 2, "parallel": 3}},
                "/search/parallel",
                "parallel is 3, and there are only 2 trials; give at most 2",
            ),
            (
                {"search": {"trials": 2, "pruning": {"min_epochs": 2}}},
                "/search/pruning/min_epochs",
                "min_epochs is 2, and a trial may have 2 epochs",
            ),
            (
                {"search": {"trials": 2, "pruning": None, "objective": "miou"}},
                "/search/objective",
                "one of accuracy, loss in classification, got 'miou'",
            ),
            (
                {"methods": [{"name": "kd", "temprature": FLOAT}]},
                "/methods/0/temprature",
                "did you mean 'temperature'",
            ),
            (
                {"methods": [{"name": "kd", "temperature": {**FLOAT, "grid": [1]}}]},
                "/methods/0/temperature/grid",
                "a search takes no grids",
            ),
            ({"methods": [{"name": "kd"}]}, "/search", "there is nothing to search"),
            (
                {"methods": [{"name": "kd"}], "training": {"recipe": "small", "epochs": INT}}
                | {"search": {"trials": 8, "pruning": None}},
                "/search/trials",
                "only 7 combinations; give at most 7",
            ),
            (
                {"search": {"trials": 500, "pruning": None}, "seeds": [0, 1]},
                "/search/trials",
                "make 1,009 jobs; a study has at most 1,000",
            ),
            (
                {"training": {"recipe": "small", "seed": 3, "epochs": 2}},
                "/training/seed",
                "give `seeds` instead",
            ),
            ({"search": None}, "/methods/0/temperature/space", "a space needs a `search`"),
            (
                {"training": {"schedule": {"name": "step", "milestones": [INT]}}},
                "/training/schedule/milestones/0/space",
                "a named value, not of an entry in a list",
            ),
            (
                {"methods": [{"name": "dafl", "temperature": FLOAT}], "dataset": None},
                "/dataset",
                "compared on a validation split; give a data set",
            ),
        ],
    )
    def test_of_a_search(self, changes: dict[str, Any], pointer: str, told: str) -> None:
        found = faults(**changes)
        assert list(found) == [pointer]
        assert told in found[pointer]

    def test_are_told_all_at_once(self) -> None:
        wrong = {
            "search": {"trials": 0, "parallel": 0},
            "methods": [{"name": "kd", "temperature": {"space": {"type": "int"}}}, {"name": "kk"}],
            "seeds": [1, 1],
        }
        assert set(faults(**wrong)) == {
            *("/search/trials", "/search/parallel", "/seeds", "/methods/1/name"),
            *("/methods/0/temperature/space/low", "/methods/0/temperature/space/high"),
        }


class TestCorners:
    def test_are_all_of_a_few_spaces(self) -> None:
        axes = spaces.axes_of({"a": FLOAT, "b": CHOICES}, "/methods/0")
        assert [tuple(corner.values()) for corner in spaces.corners(axes)] == [
            ("low", "choices/0"),
            ("low", "choices/1"),
            ("high", "choices/0"),
            ("high", "choices/1"),
        ]

    def test_are_all_of_each_pair_of_many_spaces(self) -> None:
        axes = spaces.axes_of({str(n): INT for n in range(20)}, "/training")
        found = [tuple(corner.values()) for corner in spaces.corners(axes)]
        assert len(found) == len(set(found)) == 1 + 20 + 190
        assert sum(corner[3] == corner[17] == "high" for corner in found) == 1


class TestDrafts:
    def test_have_values_in_the_places_of_spaces_or_none(self) -> None:
        changed = study(training={"recipe": "small", "optimizer": {"learning_rate": FLOAT}})
        source = StudySpec.model_validate(changed).source
        values = {"/methods/0/temperature": 2.0, "/training/optimizer/learning_rate": 1.5}
        draft = search_variants.draft_of(source, 0, values)
        assert draft.method == {"name": "kd", "temperature": 2.0}
        assert draft.training == {"recipe": "small", "optimizer": {"learning_rate": 1.5}}
        default = search_variants.default_of(source, 0)
        assert default.method == {"name": "kd"}
        assert default.training == {"recipe": "small", "optimizer": {}}

    def test_round_floats_within_the_bounds(self) -> None:
        found = spaces.FloatSpace(type="float", low=0.1234564, high=1.0)
        assert found.value_of(0.12345645) == 0.1234564
        assert found.value_of(0.98765432) == 0.987654


@pytest.mark.parametrize(
    ("seeds", "expected"), [([0], [1, 2, 3]), ([7, 2], [8, 9, 10]), ([2**31 - 1, 1], [0, 2, 3])]
)
def test_fresh_seeds_are_of_no_trial(seeds: list[int], expected: list[int]) -> None:
    assert fresh_seeds(seeds, 3) == expected
