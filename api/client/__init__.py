"""The former place of the Python client, importable until version 0.3: it is `retort` now.

Every module here is the one of the same name in `retort`, so that an error caught under its old
name is the error that is raised.
"""

import importlib
import sys
import warnings

MOVED = (
    "client",
    "config",
    "datasets",
    "digests",
    "downloads",
    "errors",
    "fetching",
    "jobs",
    "models",
    "offers",
    "server_events",
    "specs",
    "studies",
    "transport",
    "types",
    "uploads",
    "watching",
)

warnings.warn(
    "api.client is now the package retort: write `import retort` and `retort.connect()`; "
    "api.client goes away with version 0.3",
    DeprecationWarning,
    stacklevel=2,
)
for _name in MOVED:
    _module = importlib.import_module(f"retort.{_name}")
    sys.modules[f"{__name__}.{_name}"] = _module
    globals()[_name] = _module
