"""Pages of the documentation's site that are generated while it is built (a hook of MkDocs).

HTTP from the OpenAPI document, the command line from its own help, Python from the docstrings of
the client, and the list of decisions.
"""

import pathlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from api.app import create_app
from models_registry.settings import Settings

ROOT = pathlib.Path(__file__).parents[1]
CLIENT = (
    ("retort", "connect"),
    ("retort.client", "Client"),
    ("retort.jobs", None),
    ("retort.studies", None),
    ("retort.models", None),
    ("retort.datasets", None),
    ("retort.uploads", None),
    ("retort.federation", None),
    ("retort.errors", None),
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages to those of the tree; MkDocs calls this."""
    pages = {
        "reference/http.md": http,
        "reference/cli.md": cli,
        "reference/python.md": python,
        "decisions/index.md": decisions,
    }
    for path, write in pages.items():
        files.append(File.generated(config, path, content=write()))
    return files


def http() -> str:
    """Return the operations of the API by tag, with parameters, bodies and answers."""
    document = create_app(
        Settings(environment="test", cursor_secret="of no importance in a document")
    ).openapi()
    operations: dict[str, list[str]] = defaultdict(list)
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            tag = operation.get("tags", ["service"])[0]
            operations[tag].append("\n".join(_operation(method.upper(), path, operation)))
    parts = [
        "# HTTP",
        "Generated from the OpenAPI document, which a running service serves at "
        "`/v1/openapi.json`, with a page to try it at `/docs`. Every request under `/v1` carries "
        "`Authorization: Bearer <key>`; every error is a problem document (RFC 9457) that names "
        "the field, the value and the way out.",
    ]
    for tag, texts in operations.items():
        parts += [f"## {tag.capitalize()}", *texts]
    return "\n\n".join(parts) + "\n"


# Any: an OpenAPI document.
def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"### `{method} {path}`\n"
    yield f"{operation.get('description') or operation.get('summary', '')}\n"
    parameters = operation.get("parameters", [])
    if parameters:
        yield "| parameter | in | |\n|---|---|---|"
        for one in parameters:
            about = one.get("description", "").replace("\n", " ").replace("|", "\\|")
            needed = "required. " if one.get("required") and one["in"] != "path" else ""
            yield f"| `{one['name']}` | {one['in']} | {needed}{about} |"
        yield ""
    body = operation.get("requestBody", {}).get("content", {})
    if body:
        yield f"Body: {', '.join(_content(body))}\n"
    for status, answer in operation.get("responses", {}).items():
        if status.startswith("2"):
            kinds = ", ".join(_content(answer.get("content", {})))
            yield f"Answers {status}{f': {kinds}' if kinds else ''}\n"


def _content(content: dict[str, Any]) -> Iterator[str]:
    for kind, described in content.items():
        name = described.get("schema", {}).get("$ref", "").rpartition("/")[2]
        yield f"`{name}` (`{kind}`)" if name else f"`{kind}`"


def cli() -> str:
    """Return the help of every command."""
    command = [sys.executable, "-m", "typer", "retort.cli.app", "utils", "docs", "--name", "retort"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.replace("# `retort`", "# Command line", 1)


def python() -> str:
    """Return the page that is filled with the docstrings of the client."""
    parts = [
        "# Python",
        "`import retort` finds the address and key as the command line does. The package needs no "
        "PyTorch.",
    ]
    for module, name in CLIENT:
        parts.append(f"::: {module}.{name}" if name else f"::: {module}")
    return "\n\n".join(parts) + "\n"


def decisions() -> str:
    """Return the list of decision records, by their headings."""
    lines = ["# Decisions", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("0*.md")):
        heading = path.read_text().partition("\n")[0].lstrip("# ")
        lines.append(f"* [{heading}]({path.name})")
    return "\n".join(lines) + "\n"
