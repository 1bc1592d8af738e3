import io
import re
from datetime import UTC, datetime, timedelta

import pytest
import rich.console

from retort import types, watching
from retort.cli import display
from retort.metrics import PRIMARY_METRICS


@pytest.fixture
def page():
    return io.StringIO()


@pytest.fixture
def console(page):
    return rich.console.Console(file=page, width=120)


class TestTable:
    def test_shows_markup_and_terminal_codes_as_plain_text(self, console, page):
        display.table(console, ("name", "n"), [("[red]x[/red]\x1b[2J\n", 3), (None, 0)])
        head, *rows = [line.rstrip() for line in page.getvalue().splitlines()]
        assert head.split() == ["NAME", "N"]
        assert [row.split() for row in rows] == [["[red]x[/red]", "[2J", "3"], ["0"]]

    def test_folds_long_words_so_that_names_can_be_read(self, console, page):
        names = [f"synthesis.parameter_{number}" for number in range(3)]
        display.table(
            console, ("name", "meaning"), [(n, "word " * 60) for n in names], folds=("meaning",)
        )
        text = page.getvalue()
        assert all(name in text for name in names)
        assert text.count("word") == 180
        assert "…" not in text


class TestNarrowTable:
    HEADS = ("id", "name", "state", "teacher", "age")
    ROWS = (("job_" + "0" * 26, "a" * 30, "succeeded", "digits-teacher@1", "3 min"),)

    @pytest.mark.parametrize("width", [60, 80, 200])
    def test_never_cuts_what_is_needed_and_tells_what_is_missing(self, page, width):
        narrow = rich.console.Console(file=page, width=width)
        display.table(
            narrow, self.HEADS, self.ROWS, whole=("id", "state"), drops=("teacher", "age")
        )
        text = page.getvalue()
        assert "job_" + "0" * 26 in text
        assert "succeeded" in text
        assert max(map(len, text.splitlines())) <= max(width, 80)
        missing = [head for head in ("teacher", "age") if head.upper() not in text]
        told = [line for line in text.splitlines() if line.startswith("Too narrow for:")]
        assert [f"Too narrow for: {', '.join(missing)} "] * bool(missing) == [
            line.partition("(")[0] for line in told
        ]
        assert missing == {60: ["teacher", "age"], 80: ["teacher"], 200: []}[width]


class TestCard:
    def test_leaves_out_what_has_no_value(self, console, page):
        display.card(console, [("a", 0), ("b", None), ("c", ""), ("d", "x")])
        assert [line.split() for line in page.getvalue().splitlines()] == [["a", "0"], ["d", "x"]]


class TestMethodName:
    def test_names_what_a_combination_is_made_of(self):
        combined = {"name": "combine", "methods": [{"name": "crd"}, {"name": "kd"}]}
        for method, shown in (({"name": "kd"}, "kd"), (combined, "crd+kd"), (None, "")):
            job = types.Job(id="job_1", state="queued", spec={"method": method})
            assert display.method_name(job) == shown


class TestBounds:
    def test_read_like_inequalities(self):
        field = {"exclusiveMinimum": 0, "maximum": 1e6, "enum": ["a", "b"]}
        assert display.bounds(field) == "> 0, <= 1e+06, a | b"
        assert display.bounds({}) == ""

    def test_are_those_of_the_value_where_there_need_not_be_one(self):
        choice = {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}]}
        assert display.bounds(choice) == ">= 1"
        assert display.type_name(choice) == "integer or null"


class TestHyperParameters:
    def test_within_an_object_are_named_with_it_and_have_the_methods_own_defaults(self):
        schema = {
            "$defs": {"Budget": {"properties": {"steps": {"type": "integer", "default": 10}}}},
            "properties": {
                "temperature": {"type": "number", "default": 4.0},
                "synthesis": {"$ref": "#/$defs/Budget", "default": {"steps": 5}},
            },
        }
        assert display.hyper_parameters(schema) == {
            "temperature": {"type": "number", "default": 4.0},
            "synthesis.steps": {"type": "integer", "default": 5},
        }

    def test_within_an_object_of_an_object_too(self):
        schema = {
            "$defs": {
                "Parts": {"properties": {"alpha": {"type": "number", "default": 0.5}}},
                "Clients": {"properties": {"parts": {"$ref": "#/$defs/Parts"}}},
            },
            "properties": {
                "clients": {"$ref": "#/$defs/Clients", "default": {"parts": {"alpha": 0.1}}}
            },
        }
        assert display.hyper_parameters(schema) == {
            "clients.parts.alpha": {"type": "number", "default": 0.1}
        }


class TestScores:
    def test_say_so_where_nothing_could_be_measured(self, console, page):
        scores = {"teacher": None, "student": None, "baseline": None}
        result = types.JobResult(scores=scores, parameters={"student": 10})
        shown = types.Job(id="job_1", state="succeeded", result=result)
        display.scores(console, shown)
        assert "Nothing was scored" in page.getvalue()
        display.jobs(console, [shown])
        assert "job_1" in page.getvalue()

    @pytest.mark.parametrize(
        ("task", "columns"),
        [
            ("classification", ("accuracy", "agreement", "ece")),
            ("segmentation", ("miou", "accuracy", "agreement")),
            ("detection", ("ap", "ap50", "ap75", "agreement")),
            ("embedding", ("knn", "linear_probe", "cka", "shared_neighbours")),
            ("of a newer server", ("agreement",)),
        ],
    )
    def test_are_those_of_the_task(self, console, page, task, columns):
        student = {name: place / 8 for place, name in enumerate(columns, 1)}
        unknown = "agreement" if "agreement" in columns else columns[-1]
        scores = {"teacher": {**student, unknown: None}, "student": student}
        result = types.JobResult(scores=scores, parameters={"teacher": 9, "student": 3})
        done = types.Job(id="job_1", state="succeeded", spec={"task": task}, result=result)
        display.scores(console, done)
        head, of_teacher, of_student = [line.split() for line in page.getvalue().splitlines()]
        assert head == ["NETWORK", *(name.upper() for name in columns), "PARAMETERS"]
        values = {name: f"{value:.4g}" for name, value in student.items()}
        assert of_student == ["student", *values.values(), "3"]
        del values[unknown]
        assert of_teacher == ["teacher", *values.values(), "9"]

    @pytest.mark.parametrize(("task", "metric"), PRIMARY_METRICS.items())
    def test_of_a_list_of_jobs_name_the_metric_that_decides(self, console, page, task, metric):
        spec = {"task": task}
        running = types.Job(
            id="job_1", state="running", spec=spec, metrics={f"validation/{metric}": 0.25}
        )
        result = types.JobResult(scores={"student": {metric: 0.0, "agreement": 0.75}})
        done = running.model_copy(update={"result": result})
        display.jobs(console, [running, done, types.Job(id="job_2", state="queued", spec=spec)])
        _, *rows = page.getvalue().splitlines()
        assert [f"{metric} 0" in row for row in rows] == [True, True, False]
        assert f"{metric} 0.25" in rows[0]
        assert "0.25" not in rows[1]  # the test split counts, however bad the student

    def test_of_a_data_free_job_come_with_what_it_read_and_made(self, console, page):
        made = {"images": 7680, "synthesis_seconds": 1.26, "distillation_seconds": 2.0}
        result = types.JobResult(
            scores={"student": {"accuracy": 0.5}}, training_images_read=0, synthesis=made
        )
        display.job(console, types.Job(id="job_1", state="succeeded", result=result))
        assert "0 for training" in page.getvalue()
        assert "7,680 images (1.3 s synthesis, 2.0 s distillation)" in page.getvalue()

    def test_come_with_what_the_classes_of_pixels_counted(self, console, page):
        job = types.Job(id="job_1", state="running", spec={"training": {"class_weights": "auto"}})
        display.job(console, job)
        assert "class weights auto" in " ".join(page.getvalue().split())
        found = types.JobResult(class_weights={"ground": 1.43, "cat": 9.2, "dog": 5.0})
        display.job(console, job.model_copy(update={"result": found}))
        assert "auto: 1.43 (ground) to 9.2 (cat)" in page.getvalue()
        assert display.class_weights("none", found) is None
        assert display.class_weights([1, 2.5], None) == "1, 2.5"

    def test_of_a_federation_come_with_whose_model_it_is(self, console, page):
        made = {
            "clients": 10,
            "engines": {"vmap": 9, "loop": 1},
            "rounds": 30,
            "skipped_rounds": 2,
            "delivered": "client-003",
            "client_accuracy": {"mean": 0.5, "min": 0.25, "max": 0.75},
            "bytes_up": 12_000,
            "bytes_down": 34_000,
            "labels_without_holder": ["seven"],
            "not_vectorised": ["retort/convnet has batch norms"],
        }
        result = types.JobResult(scores={"student": {"accuracy": 0.5}}, federation=made)
        display.job(console, types.Job(id="job_1", state="succeeded", result=result))
        text = page.getvalue()
        for told in (
            "10 (9 vmap, 1 loop)",
            "30, 2 without effect",
            "client-003",
            "50.00% (25.00% to 75.00%)",
            "12,000 B, received 34,000 B",
            "seven",
            "retort/convnet has batch norms",
        ):
            assert told in text


class TestNumbers:
    @pytest.mark.parametrize(
        ("value", "shown"),
        [(None, None), (0.97222222, "0.9722"), (5e-05, "5e-05"), (11734.2, "11,734")],
    )
    def test_have_four_digits(self, value, shown):
        assert display.number(value) == shown

    @pytest.mark.parametrize(
        ("value", "shown"),
        [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**40 * 3, "3.0 TiB")],
    )
    def test_of_bytes_have_a_unit(self, value, shown):
        assert display.size(value) == shown

    @pytest.mark.parametrize(
        # Seconds may pass before the clock is read again.
        ("seconds", "shown"),
        [(5, r"([5-9]|[1-5]\d) s"), (65, "1 min"), (7200, "2 h"), (200_000, "2 d")],
    )
    def test_of_time_passed_have_its_largest_unit(self, seconds, shown):
        assert re.fullmatch(shown, display.age(datetime.now(UTC) - timedelta(seconds=seconds)))


class TestSome:
    def test_counts_what_it_does_not_show(self):
        assert display.some(["a", "b", "c"], most=2) == "a, b and 1 more"
        assert display.some(["a", "b"], most=2) == "a, b"


class TestReadingAids:
    def test_say_why_no_student_has_a_rank(self):
        row = types.LeaderboardRow(variant=1, name="dafl", finished=2)
        shown = types.Leaderboard(study="stu_1", state="succeeded", seeds=[0, 1], rows=[row])
        assert display.reading_aids(shown) == [
            "No student was scored: the study has no data set to evaluate on."
        ]


class TestLeaderboard:
    def row(self, number, mean, difference=None, **more):
        accuracy = {"mean": mean, "smallest": mean, "largest": mean, "standard_deviation": 0.01}
        return types.LeaderboardRow.model_validate(
            {
                "rank": number,
                "variant": number,
                "name": f"m{number}",
                "finished": 3,
                "accuracy": accuracy,
                "difference": difference,
                **more,
            }
        )

    def difference(self, pairs=3, verdict="beats", interval=(0.004, 0.036)):
        return {
            "pairs": pairs,
            "mean": 0.02,
            "interval": interval,
            "p_value": 0.25,
            "seeds_above": pairs,
            "verdict": verdict,
        }

    def board(self, *rows):
        return types.Leaderboard(
            study="stu_1",
            state="succeeded",
            teacher="t@1",
            teacher_accuracy=0.99,
            seeds=[0, 1, 2],
            rows=list(rows),
        )

    def test_says_differences_in_points_with_their_noise(self, page):
        wide = rich.console.Console(file=page, width=200)
        baseline = self.row(2, 0.9, is_baseline=True)
        best = self.row(1, 0.92, self.difference(), wall_seconds=12.34, parameters=78_042)
        display.leaderboard(wide, self.board(best, baseline))
        head, first, second, *_ = page.getvalue().splitlines()
        assert "95 % INTERVAL" in head
        for shown in ("92.00%", "+2.00", "+0.40 to +3.60", "beats", "3 of 3", "12.3", "78,042"):
            assert shown in first
        assert "(baseline)" in second

    @pytest.mark.parametrize(("metric", "note"), display.METRIC_NOTES.items())
    def test_shows_and_explains_the_metric_that_decides(self, page, metric, note):
        wide = rich.console.Console(file=page, width=200)
        values = {"mean": 0.47, "smallest": 0.4, "largest": 0.5, "standard_deviation": 0.02}
        board = self.board(self.row(1, 0.8, **{metric: values}))
        shown = board.model_copy(update={"metric": metric, f"teacher_{metric}": 0.95})
        display.leaderboard(wide, shown)
        head, first, *said = page.getvalue().splitlines()
        assert metric.upper() in head
        assert "ACCURACY" not in head
        assert "47.00%" in first
        assert said[:2] == ["The teacher t@1 has 95.00%.", note]

    def test_of_an_unknown_metric_has_no_values_but_breaks_nothing(self, page):
        shown = self.board(self.row(1, 0.8)).model_copy(update={"metric": "fid"})
        display.leaderboard(rich.console.Console(file=page, width=200), shown)
        head, first, *_ = page.getvalue().splitlines()
        assert "FID" in head
        assert "80.00%" not in first

    def test_is_not_to_be_read_without_what_the_numbers_cannot_tell(self):
        said = display.reading_aids(self.board(self.row(1, 0.92, self.difference())))
        assert said[0] == "The teacher t@1 has 99.00%."
        assert "With 3 seeds, p cannot be below 0.25: six are needed to get below 0.05." in said
        assert "not corrected" not in " ".join(said)

    def test_warns_of_few_seeds_many_variants_and_what_has_not_ended(self):
        few = self.difference(pairs=2, verdict=None)
        rows = [self.row(n, 0.9, few, unfinished=1, side_by_side=1) for n in (1, 2)]
        said = " ".join(display.reading_aids(self.board(*rows)))
        assert "2 jobs have not ended" in said
        assert "trained side by side" in said
        assert "Fewer than three seeds give no verdict." in said
        assert "p is not corrected" in said

    def test_of_six_seeds_needs_no_excuse(self):
        said = display.reading_aids(self.board(self.row(1, 0.9, self.difference(pairs=6))))
        assert "cannot be below" not in " ".join(said)

    def test_without_results_says_nothing(self):
        empty = types.Leaderboard(study="stu_1", state="queued")
        assert display.reading_aids(empty) == []


class TestTrials:
    def test_tell_value_settings_and_why_one_was_pruned(self):
        rung = {"epoch": 3, "value": 0.5, "kept": False}
        found = [
            types.Trial(
                number=2, state="complete", method="kd", settings={"t": 2.5}, value=0.91234
            ),
            types.Trial(number=1, state="pruned", value=0.5, message="behind", rungs=[rung]),
        ]
        page = io.StringIO()
        console = rich.console.Console(file=page, width=200)
        display.trials(console, found, objective="accuracy")
        _, best, pruned = page.getvalue().splitlines()
        assert best.split() == ["2", "complete", "0.9123", "kd", "t=2.5"]
        assert pruned.split() == ["1", "pruned", "0.5", "3", "behind"]

    def test_of_a_search_are_counted_with_the_best_so_far(self):
        counts = {"running": 1, "complete": 2, "pruned": 3, "failed": 0}
        search = types.Search(
            phase="confirming",
            objective="accuracy",
            planned_trials=6,
            trials=counts,
            best=types.TrialSummary(trial=4, value=0.95),
        )
        assert watching.search_words(search) == (
            "5 of 6 trials, 1 running, 3 pruned, best: trial 4, validation accuracy 0.95, "
            "comparing it with the default settings"
        )
