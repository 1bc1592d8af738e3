"""The bounds of a sample sheet, which the API tells and the engine keeps."""

SHEET_FILE = "samples.json"
MOST_CLASSES = 100
"""Classes that a sheet shows, in their order; of more, the first."""
MOST_PICTURES = 240
"""Of all classes together."""
MOST_OF_CLASS = 8
LONGEST_SIDE = 128
"""Pixels of a picture's longer side; larger pictures are shrunk."""
LOOKED_AT = 4096
"""Images with boxes or masks that are searched for each class, spread over the split."""


def pictures_of_class(classes: int) -> int:
    """Return how many pictures each of so many classes may have."""
    return max(1, min(MOST_OF_CLASS, MOST_PICTURES // max(1, min(classes, MOST_CLASSES))))
