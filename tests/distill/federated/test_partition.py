import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workers.distill import errors
from workers.distill.config.federation import Partition
from workers.distill.federated import partition
from workers.distill.federated.partition import ClientPartition

CLASSES = 4
LABELS = np.arange(200, dtype=np.int64) % CLASSES


def divide(
    labels: Any = LABELS, *, clients: int = 5, open_images: int = 0, seed: int = 0, **choices: Any
) -> ClientPartition:
    return partition.divide(
        labels,
        Partition(**choices),
        clients=clients,
        open_images=open_images,
        classes=CLASSES,
        seed=seed,
    )


class TestDivide:
    @settings(max_examples=25, deadline=None)
    @given(
        st.sampled_from(["dirichlet", "shards", "iid"]),
        st.integers(1, 8),
        st.integers(0, 60),
        st.integers(0, 2**31),
    )
    def test_every_private_image_has_one_client(
        self, kind: str, clients: int, open_images: int, seed: int
    ) -> None:
        found = divide(
            kind=kind, clients=clients, open_images=open_images, seed=seed, min_size=1, cap=None
        )
        everything = np.concatenate([found.open_set, *found.parts])
        assert sorted(everything.tolist()) == list(range(len(LABELS)))
        assert len(found.open_set) == open_images
        assert all(len(part) for part in found.parts)

    def test_a_seed_decides_it_all(self) -> None:
        assert divide(seed=3).digest() == divide(seed=3).digest()
        assert divide(seed=3).digest() != divide(seed=4).digest()

    def test_the_open_set_does_not_depend_on_the_partition(self) -> None:
        one, other = divide(open_images=20), divide(open_images=20, kind="iid")
        assert one.open_set.tolist() == other.open_set.tolist()

    def test_too_many_open_images_are_refused(self) -> None:
        with pytest.raises(errors.BadRecipe, match="open_images 196 of 200 training images"):
            divide(open_images=196)


class TestDirichlet:
    def test_a_small_alpha_leaves_clients_few_labels(self) -> None:
        held = [
            (divide(alpha=alpha, min_size=1, cap=None).label_counts(LABELS, CLASSES) > 0).sum()
            for alpha in (0.01, 100.0)
        ]
        assert held[0] < held[1] == 5 * CLASSES

    def test_a_full_client_gets_none_of_the_later_labels(self) -> None:
        counts = divide(alpha=0.05, min_size=1, cap=1.0, seed=1).label_counts(LABELS, CLASSES)
        # Whoever has a fifth of all after a label has no image of the next.
        full = counts.cumsum(1)[:, :-1] >= 40
        assert full.any()
        assert not counts[:, 1:][full].any()

    def test_an_impossible_draw_ends_with_the_way_out(self) -> None:
        with pytest.raises(errors.BadRecipe) as caught:
            divide(alpha=1e-6, clients=10, min_size=15, tries=20)
        assert re.match(
            r"no partition with alpha 1e-06 gives each of 10 clients 15 of 200 images: in 20 "
            r"draws .* at most \d+; raise partition.alpha, or lower min_size or clients",
            caught.value.message,
        )
        assert caught.value.details["field"] == "method/federation/partition/alpha"

    def test_a_minimum_that_cannot_be_is_not_tried(self) -> None:
        with pytest.raises(errors.BadRecipe, match="asks for 250 images, and 200 are there"):
            divide(min_size=50)


class TestShards:
    def test_a_client_has_about_as_many_labels_as_shards(self) -> None:
        counts = divide(kind="shards", clients=10).label_counts(LABELS, CLASSES)
        assert counts.sum(1).tolist() == [20] * 10
        assert ((counts > 0).sum(1) <= 3).all()

    def test_more_shards_than_images_are_refused(self) -> None:
        with pytest.raises(errors.BadRecipe, match="need 300 images, and 200 are there"):
            divide(kind="shards", clients=3, shards_per_client=100)


class TestFewTargets:
    def test_target_labels_keep_a_few_images(self) -> None:
        found = divide(kind="fd", samples=100, target_labels=3, target_samples=2)
        counts = found.label_counts(LABELS, CLASSES)
        assert np.sort(counts, axis=1)[:, :3].tolist() == [[2, 2, 2]] * 5
        # Clients draw on their own.
        assert sum(map(len, found.parts)) > len(np.unique(np.concatenate(found.parts)))

    def test_a_client_without_images_is_refused(self) -> None:
        with pytest.raises(errors.BadRecipe, match="leaves client 0 without images"):
            divide(kind="fd", samples=50, target_labels=4, target_samples=0)


class TestGiven:
    @pytest.mark.parametrize(
        ("indices", "message"),
        [
            ([[0], [200]], "the list of client 1 in partition.indices names image 200"),
            ([[0], []], "the list of client 1 in partition.indices is empty"),
            ([[0]], "has 1 lists, and there are 2 clients"),
        ],
    )
    def test_lists_are_checked(self, indices: list[list[int]], message: str) -> None:
        with pytest.raises(errors.BadRecipe, match=message):
            divide(kind="given", indices=indices, clients=2)

    def test_lists_are_taken_as_they_are(self) -> None:
        found = divide(kind="given", indices=[[3, 1], [7]], clients=2)
        assert [part.tolist() for part in found.parts] == [[1, 3], [7]]

    def test_an_open_image_belongs_to_nobody(self) -> None:
        taken = int(divide(open_images=1).open_set[0])
        with pytest.raises(errors.BadRecipe, match="is in the open set"):
            divide(kind="given", indices=[[taken]], clients=1, open_images=1)


class TestWithoutHolder:
    def test_names_labels_that_nobody_has(self) -> None:
        assert partition.without_holder(np.array([[0, 1, 0], [0, 2, 3]])) == [0]


class TestOpenImages:
    @pytest.mark.parametrize(
        ("asked", "uses", "expected"),
        [(None, True, 200), (None, False, 0), (7, False, 7), (0.3, True, 300), (0.0001, False, 1)],
    )
    def test_a_fifth_unless_asked(self, asked: float | None, uses: bool, expected: int) -> None:
        assert partition.open_images_of(asked, uses_open_set=uses, count=1000) == expected
