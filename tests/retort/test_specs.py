import io
from pathlib import Path

import pytest

from retort import errors, specs

HERE = Path("job.yaml")


class TestParse:
    def test_reads_numbers_as_json_would(self):
        assert specs.parse("{a: 5e-4, b: 1E3, c: .5, d: -2., e: 010, f: -7}", HERE) == {
            "a": 0.0005,
            "b": 1000.0,
            "c": 0.5,
            "d": -2.0,
            "e": 10,
            "f": -7,
        }

    def test_keeps_on_off_yes_and_no_as_words(self):
        spec = specs.parse("{compile: off, b: on, c: yes, d: No, e: true, f: null, g: ~}", HERE)
        assert spec == {
            "compile": "off",
            "b": "on",
            "c": "yes",
            "d": "No",
            "e": True,
            "f": None,
            "g": None,
        }

    def test_keeps_dates_and_clock_times_as_text(self):
        spec = specs.parse("{a: 2024-01-31, b: 1:30, c: 1_000, d: '5'}", HERE)
        assert spec == {"a": "2024-01-31", "b": "1:30", "c": "1_000", "d": "5"}

    def test_reads_json(self):
        assert specs.parse('{"training": {"epochs": 5}}', HERE) == {"training": {"epochs": 5}}

    def test_refuses_a_key_that_stands_twice_and_names_the_line(self):
        with pytest.raises(errors.LocalFileProblem, match=r"job.yaml: line 3: .*'epochs'.*twice"):
            specs.parse("name: a\nepochs: 1\nepochs: 2\n", HERE)

    def test_names_the_line_of_broken_yaml(self):
        with pytest.raises(errors.LocalFileProblem, match=r"job.yaml: line 3: "):
            specs.parse("name: a\nb: [1, 2\nc: 3", HERE)

    @pytest.mark.parametrize("text", ["", "- 1", "just words", "1: 2"])
    def test_refuses_what_is_not_a_mapping_of_names(self, text):
        with pytest.raises(errors.LocalFileProblem, match="mapping of names"):
            specs.parse(text, HERE)

    def test_refuses_objects_of_python(self):
        with pytest.raises(errors.LocalFileProblem, match="could not determine a constructor"):
            specs.parse("a: !!python/object/apply:os.system [ls]", HERE)

    def test_refuses_what_json_cannot_say(self):
        with pytest.raises(errors.LocalFileProblem, match="JSON"):
            specs.parse("a: !!binary aGk=", HERE)


class TestLoad:
    def test_applies_overrides_in_order(self, tmp_path):
        path = tmp_path / "job.yaml"
        path.write_text("name: a\ntraining: {epochs: 30}\n")
        spec = specs.load(path, ["training.epochs=5", "name=b", "name=c"])
        assert spec == {"name": "c", "training": {"epochs": 5}}

    def test_reads_standard_input_for_a_dash(self, monkeypatch):
        monkeypatch.setattr("sys.stdin", io.StringIO("name: piped"))
        assert specs.load(Path("-")) == {"name": "piped"}

    def test_says_which_file_is_missing(self, tmp_path):
        with pytest.raises(errors.LocalFileProblem, match=r"none.yaml: No such file"):
            specs.load(tmp_path / "none.yaml")

    def test_says_that_a_picture_is_not_text(self, tmp_path):
        path = tmp_path / "job.yaml"
        path.write_bytes(b"\x89PNG\xff\xfe")
        with pytest.raises(errors.LocalFileProblem, match="not a text file"):
            specs.load(path)


class TestApply:
    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("a.b=5", {"a": {"b": 5}}),
            ("a.b=5e-4", {"a": {"b": 0.0005}}),
            ("a.b=off", {"a": {"b": "off"}}),
            ("a.b=null", {"a": {"b": None}}),
            ("a.b=", {"a": {"b": None}}),
            ("a.b='5'", {"a": {"b": "5"}}),
            ("a.b=[1, 2]", {"a": {"b": [1, 2]}}),
            ("a={name: kd, x: 1}", {"a": {"name": "kd", "x": 1}}),
            ("a.b=x=y", {"a": {"b": "x=y"}}),
            ("a.b=name@3", {"a": {"b": "name@3"}}),
        ],
    )
    def test_sets_a_value_where_nothing_was(self, override, expected):
        spec: specs.Spec = {}
        specs.apply(spec, override)
        assert spec == expected

    def test_reaches_into_lists(self):
        spec = {"method": {"methods": [{"name": "crd"}, {"name": "kd", "weight": 1.0}]}}
        specs.apply(spec, "method.methods.1.weight=0.5")
        specs.apply(spec, "method.methods.0=null")
        assert spec == {"method": {"methods": [None, {"name": "kd", "weight": 0.5}]}}

    def test_makes_a_way_through_null(self):
        spec: specs.Spec = {"student": None}
        specs.apply(spec, "student.network=retort/resnet8")
        assert spec == {"student": {"network": "retort/resnet8"}}

    @pytest.mark.parametrize("override", ["epochs", "=5", "a..b=5", ".a=5", "a.=5"])
    def test_refuses_what_is_not_an_assignment(self, override):
        with pytest.raises(errors.BadOption, match=r"expected KEY\.PATH=VALUE"):
            specs.apply({}, override)

    def test_refuses_to_go_inside_a_number(self):
        with pytest.raises(errors.BadOption, match="nothing can be set inside 5"):
            specs.apply({"a": 5}, "a.b=1")

    def test_refuses_a_place_that_a_list_does_not_have(self):
        with pytest.raises(errors.BadOption, match="'2' is not one of 2 entries"):
            specs.apply({"a": [1, 2]}, "a.2=1")

    def test_refuses_a_value_that_is_not_yaml(self):
        with pytest.raises(errors.BadOption, match="not YAML"):
            specs.apply({}, "a=[1,")
