"""Print the OpenAPI document of this version: `python -m api`."""

import json
import secrets

from api.app import create_app
from models_registry.settings import Settings


def main() -> None:
    """Print the document as JSON, always in the same order; nothing is connected to."""
    app = create_app(Settings(cursor_secret=secrets.token_hex(32), docs=True))
    print(json.dumps(app.openapi(), sort_keys=True))  # noqa: T201


if __name__ == "__main__":
    main()
