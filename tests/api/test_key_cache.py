"""Keys are known for some seconds, and forgotten at once where they are changed."""

import math
import time

import pytest

from api.key_cache import KeyCache
from models_registry.access import keys

CALLER = keys.Caller("prj_1", "key_1", keys.Role.EDITOR)
OTHER = keys.Caller("prj_1", "key_2", keys.Role.VIEWER)


def known(caller: keys.Caller = CALLER, *, valid_seconds: float = math.inf) -> keys.Authentication:
    return keys.Authentication(caller, due=False, valid_seconds=valid_seconds)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that have passed."""
    passed, start = [0.0], time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: start + passed[0])
    return passed


@pytest.mark.parametrize(
    ("valid_seconds", "lasts"), [(math.inf, 2.0), (0.5, 0.5), (0.0, 0.0), (-1.0, 0.0)]
)
def test_is_known_for_seconds_and_not_beyond_its_end(
    clock: list[float], valid_seconds: float, lasts: float
) -> None:
    cache = KeyCache(2.0)
    cache.keep("ak_a", known(valid_seconds=valid_seconds), generation=cache.generation)
    assert cache.find("ak_b") is None
    assert cache.find("ak_a") == (CALLER if lasts else None)
    clock[0] = lasts - 0.01
    assert cache.find("ak_a") == (CALLER if lasts else None)
    clock[0] = lasts
    assert cache.find("ak_a") is None


def test_of_no_seconds_keeps_nothing() -> None:
    cache = KeyCache(0)
    cache.keep("ak_a", known(), generation=cache.generation)
    assert cache.find("ak_a") is None


def test_forgets_all_secrets_of_a_key_and_no_other() -> None:
    cache = KeyCache(2.0)
    for text, caller in (("ak_a", CALLER), ("ak_b", CALLER), ("ak_c", OTHER)):
        cache.keep(text, known(caller), generation=cache.generation)
    cache.forget(CALLER.key_id)
    assert [cache.find(text) for text in ("ak_a", "ak_b", "ak_c")] == [None, None, OTHER]


def test_does_not_keep_what_was_read_before_a_change() -> None:
    cache = KeyCache(2.0)
    before = cache.generation
    cache.forget(CALLER.key_id)
    cache.keep("ak_a", known(), generation=before)
    assert cache.find("ak_a") is None


def test_does_not_hold_the_text() -> None:
    cache = KeyCache(2.0)
    cache.keep("ak_secret", known(), generation=cache.generation)
    assert "ak_secret" not in str(vars(cache))
