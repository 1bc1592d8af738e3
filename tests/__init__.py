"""Tests mirror the packages, path for path."""

# jaxtyping imports the top of the checker's name only, hence the re-export.
from tests.shapes import checked as checked
