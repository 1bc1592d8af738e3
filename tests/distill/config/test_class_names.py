"""Names of classes are compared: same ones in another order, foreign ones, none at all."""

import pytest

from workers.distill.config import class_names

ANIMALS = ["cat", "dog", "T-shirt/top"]


class TestOrder:
    def test_is_where_each_class_of_the_data_set_is_among_the_logits(self) -> None:
        assert class_names.order(["dog", "T-shirt/top", "cat"], ANIMALS) == [2, 0, 1]
        assert class_names.order(["9", "8", "7"], ["7", "8", "9"]) == [2, 1, 0]

    def test_spelling_is_no_difference(self) -> None:
        assert class_names.order(["Cat", "DOG", "t_shirt/top"], ANIMALS) is None
        assert class_names.order(["DOG", "t shirt/top", "Cat "], ANIMALS) == [2, 0, 1]

    @pytest.mark.parametrize("names", [None, ANIMALS, ["cat", "dog"], ["cat", "cow", "dog"]])
    def test_is_none_where_it_is_the_same_or_unknown(self, names: list[str] | None) -> None:
        assert class_names.order(names, ANIMALS) is None

    def test_names_that_differ_in_spelling_alone_are_not_mixed_up(self) -> None:
        assert class_names.order(["a b", "a_b"], ["a_b", "a b"]) is None


class TestRemark:
    @pytest.mark.parametrize(
        ("model", "dataset", "code"),
        [
            (ANIMALS, ANIMALS, None),
            (["0", "1"], ["0", "1"], None),
            (["dog", "cat"], ["cat", "dog"], "classes_reordered"),
            (["0", "1"], ["cat", "dog"], None),  # told when the model was registered
            (["cat", "dog"], ["0", "1"], "class_names_unknown"),
            (["cat", "cow"], ["cat", "dog"], "class_names_differ"),
            (None, ANIMALS, None),
        ],
    )
    def test_tells_what_is_known(
        self, model: list[str] | None, dataset: list[str], code: str | None
    ) -> None:
        told = class_names.remark("teacher", model, dataset)
        assert (told and told.code) == code
        assert told is None or told.field == "teacher"


def test_classes_that_were_counted_are_told_with_the_model_alone() -> None:
    told = class_names.note_of_model(["0", "1", "2"])
    assert told is not None
    assert "the numbers 0 to 2" in told
    assert class_names.note_of_model(ANIMALS) is None
