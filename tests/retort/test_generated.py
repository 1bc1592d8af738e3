"""A client generated from the OpenAPI document alone: made without complaint, and it works."""

import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from models_registry import catalog

PROGRAM = """
import sys
from generated_retort import AuthenticatedClient
from generated_retort.api.catalog import list_methods
client = AuthenticatedClient(base_url=sys.argv[1], token=sys.argv[2])
methods = list_methods.sync(client=client, limit=100).data
sys.stdout.write(" ".join(sorted(method.name for method in methods)))
"""


@pytest.mark.slow
def test_a_client_generator_accepts_the_document_and_its_client_works(
    service: str, api_key: str, tmp_path: Path
):
    (tmp_path / "openapi.json").write_bytes(
        httpx.get(f"{service}/v1/openapi.json", timeout=60).content
    )
    command = [str(Path(sys.executable).with_name("openapi-python-client")), "generate"]
    command += ["--path", "openapi.json", "--output-path", "generated_retort", "--meta", "none"]
    # It formats with ruff, which it looks for on the path.
    search = {"PATH": f"{Path(sys.executable).parent}:{os.defpath}"}
    made = subprocess.run(
        command, cwd=tmp_path, env=search, capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "warning" not in (made.stdout + made.stderr).lower()
    asked = subprocess.run(
        [sys.executable, "-c", PROGRAM, service, api_key],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.split() == sorted(catalog.load().methods)
