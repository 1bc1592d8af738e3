"""What of a report shows images of the data set, so that an erasure of it can find them."""

SHOW_IMAGES = frozenset({"examples"})
"""Topics whose pictures show images of the test split; each picture has its topic's name."""
