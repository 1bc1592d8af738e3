"""Grids: what they stand for, and the way back from a fault."""

from typing import Any

import pytest

from models_registry.studies import grids

NESTED: dict[str, Any] = {
    "name": "combine",
    "methods": [
        {"name": "kd", "weight": {"grid": [0.5, 1.0]}},
        {"name": "dkd", "beta": {"grid": [2, 8, 16]}},
    ],
}


def nested(depth: int) -> Any:
    return [nested(depth - 1)] if depth else 1


class TestExpand:
    def test_of_a_document_without_grids_is_the_document(self) -> None:
        document = {"name": "kd", "temperature": 4}
        [point] = grids.expand(document)
        assert (point.document, point.chosen) == (document, {})

    def test_gives_all_combinations_the_last_grid_fastest(self) -> None:
        found = [
            (point.document["methods"][0]["weight"], point.document["methods"][1]["beta"])
            for point in grids.expand(NESTED)
        ]
        assert found == [(0.5, 2), (0.5, 8), (0.5, 16), (1.0, 2), (1.0, 8), (1.0, 16)]
        assert grids.count(NESTED) == len(found)

    def test_takes_whole_objects_as_values(self) -> None:
        schedules = [{"name": "cosine"}, {"name": "step", "factor": 0.1}]
        found = [p.document["schedule"] for p in grids.expand({"schedule": {"grid": schedules}})]
        assert found == schedules


class TestFaultsOf:
    @pytest.mark.parametrize(
        ("value", "pointer", "code"),
        [
            ({"grid": []}, "/m/x/grid", "bad_grid"),
            ({"grid": 3}, "/m/x/grid", "bad_grid"),
            ({"grid": {"a": 1}}, "/m/x/grid", "bad_grid"),
            ({"grid": [0] + [1] * 1000}, "/m/x/grid", "bad_grid"),
            ({"grid": [1, 2, 1]}, "/m/x/grid/2", "duplicate"),
            ({"grid": [1], "st/ep": 2}, "/m/x/st~1ep", "unknown_field"),
            ({"grid": [1, {"grid": [2]}]}, "/m/x/grid/1", "grid_in_grid"),
            ({"grid": [{"y": {"grid": [2]}}]}, "/m/x/grid/0/y", "grid_in_grid"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_name_the_place(self, value: Any, pointer: str, code: str) -> None:
        [fault] = grids.faults_of({"name": "kd", "x": value}, "/m")
        assert (fault.pointer, fault.code) == (pointer, code)

    def test_end_at_a_depth_that_nothing_needs(self) -> None:
        assert list(grids.faults_of(nested(grids.MAX_DEPTH), "")) == []
        [fault] = grids.faults_of(nested(grids.MAX_DEPTH + 100), "")
        assert fault.code == "too_deep"

    def test_are_none_for_documents_that_can_be_expanded(self) -> None:
        assert list(grids.faults_of(NESTED, "/methods/0")) == []


class TestPointerInto:
    def point(self, *chosen: int) -> grids.GridPoint:
        return next(p for p in grids.expand(NESTED) if tuple(p.chosen.values()) == chosen)

    @pytest.mark.parametrize(
        ("pointer", "led_to"),
        [
            ("", ""),
            ("/name", "/name"),
            ("/methods/0/weight", "/methods/0/weight/grid/1"),
            ("/methods/1/beta", "/methods/1/beta/grid/2"),
            ("/methods/1/betta", "/methods/1/betta"),
            ("/methods/7/x/y", "/methods/7/x/y"),
        ],
    )
    def test_leads_back_through_grids(self, pointer: str, led_to: str) -> None:
        assert grids.pointer_into(NESTED, self.point(1, 2), pointer) == led_to

    def test_goes_on_inside_a_value(self) -> None:
        document = {"a/b": {"grid": [1, {"c": {"d": 2}}]}}
        *_, point = grids.expand(document)
        assert grids.pointer_into(document, point, "/a~1b/c/d") == "/a~1b/grid/1/c/d"
