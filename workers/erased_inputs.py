"""Drops inputs of erased data sets from this machine's cache, at every heartbeat."""

import sqlalchemy.exc
import structlog

from models_registry.persistence import database
from models_registry.retention import erasures
from models_registry.settings import Settings
from workers import staging

log = structlog.get_logger()


class ErasedInputs:
    """What was erased and is still to be looked for here.

    A blob is looked for during an hour: an attempt that had it when it was erased may put it into
    the cache a little later.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._settled = 0

    def drop(self, sessions: database.Sessions) -> int:
        """Delete what was erased from the cache; return how many files were there."""
        dropped, last = 0, self._settled
        try:
            while True:
                with sessions.begin() as session:
                    some = erasures.erased_after(session, last=last)
                if not some:
                    break
                for blob in some:
                    dropped += self._unlink(blob.sha256)
                    last = blob.number
                    if blob.is_settled:
                        self._settled = blob.number
        except sqlalchemy.exc.SQLAlchemyError as error:
            log.warning("erased_inputs_unknown", error=str(error))
        if dropped:
            # Folders of killed attempts may hold copies too.
            folders = staging.sweep_scratch(self._settings.scratch_dir)
            log.info("erased_inputs_dropped", files=dropped, scratch_removed=folders)
        return dropped

    def _unlink(self, sha256: str) -> int:
        path = self._settings.cache_dir / sha256
        was_there = path.exists()
        path.unlink(missing_ok=True)
        return int(was_there)
