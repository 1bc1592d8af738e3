"""The end of an engine's process, once its work is reported."""

import atexit
import os
import sys
from typing import NoReturn


def exit_process(code: int) -> NoReturn:
    """Run the exit handlers, flush, and end without taking the interpreter apart.

    To free every object of torch takes a second or two, and fills the log with what it leaks.
    """
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
