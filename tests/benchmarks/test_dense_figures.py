import json
from typing import ClassVar

import pytest

from benchmarks import dense_figures
from tests.distill.methods.dense import scenes as dense_scenes
from workers.distill.config.job import JobConfig
from workers.distill.data.builtin import digit_scenes
from workers.distill.methods import catalog as methods

DETECTION = dense_figures.EXPERIMENTS["detection"]


def run(ap):
    """Return what is known of a student."""
    scores = {"ap": ap, "ap50": ap + 20, "ap75": ap + 10}
    return {**scores, "seconds_per_step": 0.1, "interval": [0.4, 0.6], "parameters": 1000}


@pytest.fixture
def folder(tmp_path):
    """A folder with the record of the scenes."""
    (tmp_path / "dataset").mkdir()
    record = digit_scenes.describe().model_dump_json(exclude_none=True)
    (tmp_path / "dataset" / "dataset.json").write_text(record)
    return tmp_path


class TestRecipes:
    @pytest.mark.parametrize("name", dense_figures.EXPERIMENTS)
    @pytest.mark.parametrize("has_teacher", [False, True])
    def test_are_read_by_the_engine(self, folder, name, has_teacher):
        experiment = dense_figures.EXPERIMENTS[name]
        method = dense_figures.method_of("pkd" if has_teacher else "ce")
        training = {**experiment.training, "max_steps": 600, "seed": 3}
        recipe = dense_figures.recipe_of(folder, experiment, method, training)
        config = JobConfig.model_validate_json(json.dumps(recipe))
        assert (config.teacher is not None) == has_teacher
        assert config.student.arguments["width"] == 8
        for row in experiment.methods.split(","):
            methods.check_task(dense_figures.method_of(row), config.task)

    def test_of_the_class_term_alone_switch_the_others_off(self):
        choice = dense_figures.method_of("rcka_classes")
        assert (choice["name"], choice["pcka_weight"], choice["classes_weight"]) == (
            "densepcka",
            0,
            10,
        )

    @pytest.mark.parametrize("row", dense_figures.VARIANTS)
    def test_of_a_variant_are_hyper_parameters_that_the_method_has(self, row):
        choice = dense_figures.method_of(row)
        assert dense_figures.VARIANTS[row].items() <= choice.items()
        assert methods.build(
            choice,
            *(dense_scenes.segmenter(seed, 4) for seed in (1, 2)),
        )

    def test_of_a_sum_combine(self):
        choice = dense_figures.method_of("pkd+mimic")
        assert choice["name"] == "combine"
        assert [part["name"] for part in choice["methods"]] == ["pkd", "mimic"]


class TestRun:
    def test_goes_on_from_what_its_folder_has_of_the_same_recipes(self, folder):
        recipes = {
            row: dense_figures.recipe_of(folder, DETECTION, dense_figures.method_of(row), {})
            for row in ("pkd", "mimic")
        }
        members = [{"key": f"row-{n}", "recipe": one} for n, one in enumerate(recipes.values())]
        (folder / "recipe.json").write_text(json.dumps({"version": 1, "members": members}))
        scores = {"student": {"ap": 0.5, "ap50": 0.75, "ap75": 0.25, "ap_interval": [0.45, 0.55]}}
        done = {"type": "result", "images_per_second": 4, "parameters": {"student": 9}}
        lines = [
            {**done, "member": "row-1", "scores": scores},
            {"type": "failure", "member": "row-0", "message": "for images"},
        ]
        (folder / "lines.json").write_text(json.dumps(lines))
        (refused, pkd), (name, mimic) = dense_figures.run(folder, folder, recipes, None, DETECTION)
        assert (refused, pkd) == ("pkd", {"refused": "for images"})
        assert (name, mimic["ap"], mimic["seconds_per_step"]) == ("mimic", 50.0, None)
        del recipes["mimic"]
        with pytest.raises(RuntimeError, match="has other recipes"):
            dense_figures.run(folder, folder, recipes, None, DETECTION)


class TestSecondsPerStep:
    def test_are_those_of_a_short_training_of_the_row_alone(self, folder):
        place = folder / "3-time-pkd"
        place.mkdir()
        steps = {"recipe": "small_dense", "max_steps": dense_figures.TIMED_STEPS, "seed": 3}
        choice = dense_figures.method_of("pkd")
        recipe = dense_figures.recipe_of(folder, DETECTION, choice, steps)
        (place / "recipe.json").write_text(json.dumps(recipe))
        scores = {"student": {"ap": 0.5, "ap50": 0.75, "ap75": 0.25}}
        done = {"images_per_second": 16, "parameters": {"student": 9}, "scores": scores}
        (place / "lines.json").write_text(json.dumps([{"type": "result", **done}]))
        found = dense_figures.seconds_per_step(folder, DETECTION, 3, "pkd", choice)
        assert found == recipe["training"]["batch_size"] / 16 == 0.5
        failure = {"type": "failure", "message": "for images"}
        (place / "lines.json").write_text(json.dumps([failure]))
        assert dense_figures.seconds_per_step(folder, DETECTION, 3, "pkd", choice) is None


class TestSummary:
    def test_has_the_seconds_of_the_seeds_where_they_were_measured(self):
        runs = [run(50.0), {**run(52.0), "seconds_per_step": None}]
        assert dense_figures.summarised(runs, runs, DETECTION)["seconds_per_step"] == 0.1

    def test_compares_with_the_student_alone_by_seed(self):
        alone = [run(50.0), run(52.0)]
        found = dense_figures.summarised([run(55.0), run(55.0)], alone, DETECTION)
        assert found["scores"]["ap"] == 55.0
        assert found["differences"] == [5.0, 3.0]
        assert found["p_value"] == 0.5

    def test_of_one_seed_has_no_spread(self):
        found = dense_figures.summarised([run(55.0)], [run(50.0)], DETECTION)
        assert (found["deviations"], found["p_value"]) == (None, None)

    def test_is_written_as_a_table(self):
        alone = [run(50.0)]
        summary = {
            "ce": dense_figures.summarised(alone, alone, DETECTION),
            "pkd": dense_figures.summarised([run(55.0)], alone, DETECTION),
            "crd": dense_figures.summarised([{"refused": "for images"}], alone, DETECTION),
        }
        lines = dense_figures.markdown(summary, DETECTION).splitlines()
        assert lines[0] == (
            "| method | AP: mean ± sd | each seed | AP50 | AP75 | "
            "difference to the student alone, each seed | p | s/step |"
        )
        assert lines[2] == "| ce | 50.0 | 50.0 | 70.0 | 60.0 |  |  | 0.100 |"
        assert lines[3] == "| pkd | 55.0 | 55.0 | 75.0 | 65.0 | +5.0 |  | 0.100 |"
        assert lines[4].startswith("| crd | refused: for images |")


class TestMeasured:
    FIGURES: ClassVar = {
        "classification": {"methods": {}},
        "detection": {"methods": {"pkd": {"auto": {"difference": 1.0}}}},
    }

    def summary(self, **rows):
        alone = [run(50.0)]
        found = {"ce": alone, **{name: [run(value)] for name, value in rows.items()}}
        return {
            name: dense_figures.summarised(runs, alone, DETECTION) for name, runs in found.items()
        }

    def test_are_of_rows_that_are_one_method(self):
        summary = self.summary(pkd=55.5, teacher=70.0, rcka_classes=40.0, headkd=49.0)
        summary["pkd+mimic"] = summary["pkd"]
        summary["mimic"] = {"refused": "for images"}
        made = dense_figures.measured(self.FIGURES, "detection", summary)
        assert made["classification"] == self.FIGURES["classification"]
        counted = {"seeds": 1, "pairs": 1}
        assert made["detection"]["methods"] == {
            "headkd": {"auto": {"difference": -1.0, "lowest": -1.0, **counted}},
            "pkd": {"auto": {"difference": 5.5, "lowest": 5.5, **counted}},
        }
        assert "composed" in made["detection"]["measured_on"]

    def test_of_another_experiment_add_what_is_missing(self):
        summary = self.summary(pkd=55.5, roikd=52.0)
        made = dense_figures.measured(self.FIGURES, "proposals", summary)["detection"]["methods"]
        assert made["pkd"] == {"auto": {"difference": 1.0}}
        assert made["roikd"]["auto"]["difference"] == 2.0
