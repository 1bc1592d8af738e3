"""Pictures of an upload that cannot be read: left out while they are few, else refused together."""

from pathlib import Path
from typing import NoReturn

from workers.distill import errors
from workers.distill.data.formats.problems import MOST_LISTED, Problems


class BadPictures:
    """Collects what is wrong with single pictures, each once, in the order of their discovery."""

    def __init__(self, total: int, share: float) -> None:
        """Allow for this share (0 to 1) of `total` pictures."""
        self._total = total
        self._share = share
        self._refusals: dict[Path, errors.UploadRefused] = {}

    def add(self, file: Path, refusal: errors.UploadRefused) -> None:
        """Add what would have been raised for a single picture."""
        self._refusals.setdefault(file, refusal)

    @property
    def are_too_many(self) -> bool:
        """Whether there are more than may be left out."""
        return len(self._refusals) > self._share * self._total

    def refuse(self, first: errors.UploadRefused | None = None) -> NoReturn:
        """Raise one `UploadRefused` with the first 50 pictures, after another problem if given."""
        problems = Problems()
        if first is not None:
            problems.add_refusal(first)
        for refusal in self._refusals.values():
            problems.add_refusal(refusal)
        hint = (
            f"of {self._total} pictures, {len(self._refusals)} cannot be read; up to "
            f"{self._share:.3g} of them would be left out: input.max_bad_share sets another share"
        )
        problems.refuse(hint if self.are_too_many else "")
        raise AssertionError("there is nothing to refuse")

    def notes(self) -> list[str]:
        """Return a note that names the pictures that were left out, if there are any."""
        if not self._refusals:
            return []
        messages = [refusal.message for refusal in self._refusals.values()]
        first = f", the first {MOST_LISTED}" if len(messages) > MOST_LISTED else ""
        return [
            f"{len(messages)} of {self._total} pictures were left out{first}: "
            + "; ".join(messages[:MOST_LISTED])
        ]
