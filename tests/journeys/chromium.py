"""A real Chromium for the page: whatever the machine has, else Playwright's own."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from playwright import sync_api

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MISSING = (
    "no Chromium was found: install it (Debian, as root: apt-get install chromium), or run "
    "`.venv/bin/playwright install chromium`"
)


@contextlib.contextmanager
def started() -> Iterator[sync_api.Browser]:
    """Yield a running browser.

    Raises: RuntimeError where the machine has none; it says what to install.
    """
    found = next((path for name in NAMES if (path := shutil.which(name))), None)
    # Root may not use Chromium's sandbox; the pages are our own.
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        if found is None and not own.exists():
            raise RuntimeError(MISSING)
        browser = playwright.chromium.launch(executable_path=found, args=options)
        try:
            yield browser
        finally:
            browser.close()
