"""What README, CONTRIBUTING and docs name exists: files, folders and modules."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts import source

SUFFIXES = "py|md|json|toml|txt|yaml|yml|sh"
FILE = re.compile(rf"(?<![\w/.<>{{-])(?:[\w.-]+/)+[\w.-]+\.(?:{SUFFIXES})(?![\w>])")
FOLDER = re.compile(r"`((?:[\w.-]+/)+)`")
MODULE = re.compile(r"python3? -m ([a-z_][\w.]*)")
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")

# Made by the service while it runs, so absent from the tree.
MADE_AT_RUN_TIME = {
    "retort-data/client.json": "written by `retort up`",
    "api/page_files/": "built by `make web`",
    "report/": "of a student's version in the registry",
    "synthetic/": "of a student's version in the registry",
}


def documents() -> list[Path]:
    """Return the documents that people read and write; `docs/methods.md` is generated."""
    return [
        path
        for path in source.files()
        if path.suffix == ".md"
        and (path.parts[0] == "docs" or len(path.parts) == 1)
        and path != Path("docs/methods.md")
    ]


def missing(path: Path, text: str) -> Iterator[str]:
    """Yield what a document names and the tree does not have."""
    plain = LINK.sub("", text)
    for name in [*FILE.findall(plain), *FOLDER.findall(plain)]:
        if name not in MADE_AT_RUN_TIME and not (source.ROOT / name).exists():
            yield f"{path}: {name}"
    for name in MODULE.findall(plain):
        place = source.ROOT / name.replace(".", "/")
        ours = name.split(".")[0] in (*source.PACKAGES, "tests", "benchmarks")
        if ours and not (place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()):
            yield f"{path}: python -m {name}"
    for name in LINK.findall(text):
        if not (source.ROOT / path.parent / name).exists():
            yield f"{path}: link to {name}"


class TestDocuments:
    @pytest.mark.parametrize("path", documents(), ids=str)
    def test_name_what_exists(self, path: Path) -> None:
        breaches = sorted(set(missing(path, source.text(path))))
        assert not breaches, "\n" + "\n".join(breaches)

    @pytest.mark.parametrize(
        "text",
        [
            "see `workers/gone.py`",
            "see `workers/gone/`",
            "   1  workers/gone.py   claims the job",
            "run `python -m workers.gone`",
            "see [there](gone.md)",
        ],
    )
    def test_would_be_caught_naming_what_does_not(self, text: str) -> None:
        assert list(missing(Path("README.md"), text)) != []

    @pytest.mark.parametrize(
        "text",
        [
            "`workers/distill/methods/<family>/<name>.py`",
            "`api/errors.py`, `docs/decisions/`",
            "`retort/resnet8`, `timm/...`",
            "`python -m retort`",
            "[architecture](docs/architecture.md#states)",
            "<http://127.0.0.1:8765/docs>",
        ],
    )
    def test_may_name_places_placeholders_and_networks(self, text: str) -> None:
        assert list(missing(Path("README.md"), text)) == []
