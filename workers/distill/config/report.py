"""Which pictures of a report show images of the data set, so that an erasure of it finds them."""

SHOW_IMAGES = frozenset({"examples"})
"""Names of their files, without the ending."""
