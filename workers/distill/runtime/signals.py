"""Handling of SIGTERM, from the first import on; this file must not import torch."""

import os
import signal
from types import FrameType

from workers.distill import errors

EXIT_CODE = 75
"""EX_TEMPFAIL: stopped on request, and can be continued."""


class Stop:
    """Whether the process was asked to stop.

    While the work calls `check` often, a signal only sets a flag, so that the work can be saved
    first. At other times (start-up, final evaluation) everything worth keeping is on the disk
    already, and a signal ends the process at once.
    """

    def __init__(self) -> None:
        self.can_wait = False
        self._is_requested = False

    def listen(self) -> None:
        """Handle SIGTERM from now on."""
        signal.signal(signal.SIGTERM, self._request)

    def ignore(self) -> None:
        """Ignore SIGTERM: the work is done, and its result is about to be reported."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def check(self) -> None:
        """Raise `Interrupted` if the process was asked to stop."""
        if self._is_requested:
            raise errors.Interrupted

    def _request(self, _number: int, _frame: FrameType | None) -> None:
        self._is_requested = True
        if not self.can_wait:
            os._exit(EXIT_CODE)
