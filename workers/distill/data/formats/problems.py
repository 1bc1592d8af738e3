"""Collect all that is wrong with an upload, so that its owner learns of it at once."""

from workers.distill import errors

MOST_LISTED = 50


class Problems:
    """Problems of an upload by file, in the order in which they were found."""

    def __init__(self) -> None:
        self._code = ""
        self._listed: list[str] = []
        self._count = 0

    @property
    def are_any(self) -> bool:
        """Whether anything is wrong."""
        return self._count > 0

    @property
    def are_many(self) -> bool:
        """Whether more problems would not be listed."""
        return self._count >= MOST_LISTED

    def add(self, code: str, sentence: str) -> None:
        """Add a problem: `sentence` names the file; the code of the first one is the upload's."""
        self._code = self._code or code
        self._count += 1
        if self._count <= MOST_LISTED:
            self._listed.append(sentence)

    def add_refusal(self, refusal: errors.UploadRefused) -> None:
        """Add what would have been raised for a single file."""
        self.add(refusal.refusal, refusal.message)

    def refuse(self, hint: str = "") -> None:
        """Raise one `UploadRefused` with the first 50 problems, one a line, if there are any.

        `hint` is a way out that stands after them.
        """
        if not self._count:
            return
        if self._count == 1:
            message = "\n".join([self._listed[0], hint]).rstrip()
            raise errors.UploadRefused(self._code, message)
        first = f", the first {MOST_LISTED}" if self._count > MOST_LISTED else ""
        raise errors.UploadRefused(
            self._code,
            "\n".join(
                [f"the upload has {self._count} problems{first}:", *self._listed, hint]
            ).rstrip(),
            problems=self._count,
        )
