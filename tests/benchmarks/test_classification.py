import json

import pytest

from benchmarks import classification
from workers.distill.config.job import JobConfig

KEY = {"data": "digits", "balance": "auto", "pair": "vgg", "seed": 0}


@pytest.fixture
def folder(tmp_path):
    """A folder with the record of a data set, as far as recipes need it."""
    (tmp_path / "dataset").mkdir()
    size = {"channels": 1, "height": 96, "width": 96, "mean": [0.5], "std": [0.2]}
    record = {"classes": ["a", "b"], "input": size}
    (tmp_path / "dataset" / "dataset.json").write_text(json.dumps(record))
    return tmp_path


class TestRecipe:
    @pytest.mark.parametrize("problem_name", classification.PROBLEMS)
    def test_is_read_by_the_engine(self, folder, problem_name):
        problem = classification.PROBLEMS[problem_name]
        for pair, student in problem.students.items():
            recipe = classification.recipe_of(
                folder, problem, pair, "kd + dot", {"name": "kd"}, {"seed": 3}
            )
            config = JobConfig.model_validate_json(json.dumps(recipe))
            assert config.student.network == student["network"]
            assert (config.student.classes, config.training.seed) == (2, 3)
            assert config.training.optimizer.name == "dot"


class TestRows:
    def test_are_the_methods_that_need_nothing_else(self):
        rows = classification.rows(set(), "published")
        assert rows["ce"] == {"name": "ce"}
        assert rows["at"]["balance"] == "published"
        assert {"combine", "linear_probe"}.isdisjoint(rows)

    def test_that_are_chosen_come_with_the_baseline(self):
        assert set(classification.rows({"kd"}, "auto")) == {"ce", "kd"}

    def test_are_trained_a_few_at_a_time_beside_the_baseline(self):
        missing = ["at", "ce", "kd", "pkt"]
        assert classification.groups(missing, 2) == [{"ce", "at", "kd"}, {"ce", "pkt"}]
        assert classification.groups(missing, 0) == [set(missing)]


class TestScores:
    def test_are_those_of_all_lines_of_a_pair_and_seed(self):
        lines = [
            {**KEY, "scores": {"ce": 0.5, "kd": 0.6}},
            {**KEY, "scores": {"ce": 0.5, "at": 0.7}},
            {**KEY, "seed": 1, "scores": {"ce": 0.1, "kd": 0.1}},
            {**KEY, "data": "photographs", "scores": {"ce": 0.2}},
        ]
        assert classification.scores_of(lines, KEY) == {"ce": 0.5, "kd": 0.6, "at": 0.7}

    def test_of_lines_without_a_data_set_are_of_the_digits(self):
        line = {name: KEY[name] for name in KEY if name != "data"}
        assert classification.scores_of([{**line, "scores": {"ce": 1.0}}], KEY) == {"ce": 1.0}


class TestSummary:
    def test_counts_the_seeds_that_have_a_row(self):
        runs: list[dict[str, float | str]] = [
            {"ce": 0.5, "kd": 0.75, "at": "no"},
            {"ce": 0.5},
            {"ce": 0.25, "kd": 0.75},
        ]
        found = classification.summary(runs, ["ce", "kd", "at", "pkt"])
        assert found["kd"]["seeds"] == 2
        assert found["kd"]["difference_mean"] == pytest.approx(37.5)
        assert found["ce"]["seeds"] == 3
        assert found["at"] == {"refused": "no"}
        assert "pkt" not in found


class TestMeasured:
    def test_are_figures_of_the_digits_alone(self):
        lines = [
            {**KEY, "scores": {"ce": 0.5, "kd": 0.75, "crd + kd": 0.9, "pcka": "refused"}},
            {**KEY, "data": "photographs", "scores": {"ce": 0.5, "kd": 0.0}},
        ]
        made = classification.measured(lines)["methods"]
        assert made == {"kd": {"auto": {"difference": 25, "lowest": 25, "seeds": 1, "pairs": 1}}}
