"""The client's former place still works, says where it went, and shares its errors."""

from tests.contracts import source

PROGRAM = """
import warnings
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    from api.client.client import connect
    from api.client import errors
import retort
import retort.errors
assert connect is retort.connect
assert errors.CannotStart is retort.errors.CannotStart
print([str(one.message) for one in told if one.category is DeprecationWarning])
"""


def test_imports_with_a_warning_that_names_the_new_package() -> None:
    done = source.python("-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert "import retort" in done.stdout
    assert done.stdout.count("api.client is now") == 1
