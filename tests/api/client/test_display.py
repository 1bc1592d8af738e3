import io
from datetime import UTC, datetime, timedelta

import pytest
import rich.console

from api.client import display, types


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
        ("seconds", "shown"), [(5, "5 s"), (90, "1 min"), (7200, "2 h"), (200_000, "2 d")]
    )
    def test_of_time_passed_have_its_largest_unit(self, seconds, shown):
        assert display.age(datetime.now(UTC) - timedelta(seconds=seconds)) == shown


class TestSome:
    def test_counts_what_it_does_not_show(self):
        assert display.some(["a", "b", "c"], most=2) == "a, b and 1 more"
        assert display.some(["a", "b"], most=2) == "a, b"
