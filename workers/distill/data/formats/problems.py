"""Collect all that is wrong with an upload, so that its owner learns of it at once.

Pictures that cannot be read are left out while they are few; they are problems where they are many,
or where there are other ones.
"""

from pathlib import Path

from workers.distill import errors

MOST_LISTED = 50


class Problems:
    """Problems of an upload by file, in the order in which they were found."""

    def __init__(self) -> None:
        self._code = ""
        self._listed: list[str] = []
        self._count = 0
        self._unreadable: dict[Path, errors.UploadRefused] = {}
        self._pictures = 0
        self._share = 0.0

    def allow_unreadable(self, share: float, *, pictures: int) -> None:
        """Allow this share (0 to 1) of the upload's pictures to be unreadable; by default none."""
        self._share, self._pictures = share, pictures

    @property
    def unreadable(self) -> int:
        """How many pictures cannot be read, so far as is known."""
        return len(self._unreadable)

    @property
    def are_any(self) -> bool:
        """Whether anything is wrong that refuses the upload."""
        return self._count > 0 or len(self._unreadable) > self._share * self._pictures

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

    def add_unreadable(self, file: Path, refusal: errors.UploadRefused) -> None:
        """Add a picture that cannot be read, once, with what would have been raised for it."""
        self._unreadable.setdefault(file, refusal)

    def is_readable(self, file: Path) -> bool:
        """Return whether nothing was found that makes a picture unreadable."""
        return file not in self._unreadable

    def refuse(self) -> None:
        """Raise one `UploadRefused` with the first 50 problems, one a line, if there are any."""
        if not self.are_any:
            return
        faults = list(self._unreadable.values())
        code = self._code or faults[0].refusal
        count = self._count + len(faults)
        lines = [*self._listed, *(fault.message for fault in faults)][:MOST_LISTED]
        if count > 1:
            first = f", the first {MOST_LISTED}" if count > MOST_LISTED else ""
            lines.insert(0, f"the upload has {count} problems{first}:")
        if faults and self._pictures:
            lines.append(
                f"{len(faults)} of {self._pictures} pictures cannot be read; a share of up to "
                f"{self._share:.3g} is left out: input.max_bad_share sets another one"
            )
        details = {"problems": count} if count > 1 else {}
        raise errors.UploadRefused(code, "\n".join(lines), **details)

    def notes(self) -> list[str]:
        """Return a note that names the pictures that were left out, if there are any."""
        if not self._unreadable:
            return []
        messages = [refusal.message for refusal in self._unreadable.values()]
        first = f", the first {MOST_LISTED}" if len(messages) > MOST_LISTED else ""
        return [
            f"{len(messages)} of {self._pictures} pictures were left out{first}: "
            + "; ".join(messages[:MOST_LISTED])
        ]
