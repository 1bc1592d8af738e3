import shlex
import sys
from pathlib import Path

import pytest

from benchmarks import measurements

TABLE = "| row | points |\n|---|---|\n| kd | 1 |\n"
PRINTS = f"{shlex.quote(sys.executable)} -c {shlex.quote(f'print({TABLE!r})')}"
PAGE = f"""Before.

<!-- table: A=1 python -m benchmarks.one --markdown; quick: --seeds 1 -->
{TABLE}
Made at 1234567.
<!-- end of table -->

Between.

<!-- table: python -m benchmarks.two -->
| other |
| --- |
| 2 |
<!-- end of table -->
"""


class TestTables:
    def test_have_a_command_and_its_quick_options(self) -> None:
        one, two = measurements.tables(PAGE)
        assert (one.command, one.quick) == (
            "A=1 python -m benchmarks.one --markdown",
            "--seeds 1",
        )
        assert (two.command, two.quick) == ("python -m benchmarks.two", "")
        assert one.columns == ["| row | points |"]
        assert two.columns == ["| other |"]

    def test_are_replaced_one_by_one_and_the_text_stays(self) -> None:
        made = "| other |\n| --- |\n| 3 |\n"
        changed = measurements.replaced(PAGE, "python -m benchmarks.two", made, "abcdef0")
        assert changed == PAGE.replace("| other |\n| --- |\n| 2 |", f"\n{made}\nMade at abcdef0.")

    def test_of_the_page_are_of_benchmarks_that_exist(self) -> None:
        found = list(measurements.tables((measurements.ROOT / measurements.PAGE).read_text()))
        assert len(found) >= 5
        for table in found:
            module = table.command.split("-m ")[1].split()[0]
            assert (measurements.ROOT / Path(*module.split("."))).with_suffix(".py").exists()
            assert table.columns, table.command
            assert "Made at " in table.content, table.command


class TestRun:
    def test_returns_what_the_command_prints(self) -> None:
        table = measurements.Table(f"A=1 {PRINTS}", "ignored", TABLE)
        assert measurements.columns(measurements.run(table, quick=True)) == ["| row | points |"]

    @pytest.mark.parametrize(
        ("command", "told"),
        [
            (f"{shlex.quote(sys.executable)} -c 1/0", "ended with code 1"),
            (PRINTS, r"prints the columns \['\| row \| points \|'\]"),
        ],
    )
    def test_tells_of_a_failure_and_of_another_table(
        self, command: str, told: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(measurements.Failed, match=told):
            measurements.run(measurements.Table(command, "", "| x |\n|---|\n"), quick=False)
        capfd.readouterr()
