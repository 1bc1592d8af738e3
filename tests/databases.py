"""Marks for tests that need not run on both kinds of database."""

import pytest

# For what does not depend on the database: the other kind would only repeat it.
SQLITE_ONLY = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
POSTGRES_ONLY = pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
