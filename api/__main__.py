"""Print the OpenAPI document of this version: `python -m api`."""

import json
import secrets
import sys

from api.app import create_app
from models_registry.settings import Settings


def main() -> None:
    """Print the document as JSON, always in the same order; nothing is connected to."""
    app = create_app(Settings(cursor_secret=secrets.token_hex(32), docs=True))
    sys.stdout.write(json.dumps(app.openapi(), sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
