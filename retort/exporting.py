"""Bring exports to this machine: their files, or a folder that MLflow loads."""

import json
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath

import yaml

from retort import errors, fetching, types
from retort.cli import shell, transfer_bar

ONNX_FILE = "model.onnx"
DESCRIPTION_FILE = "export.json"
MLMODEL_FILE = "MLmodel"
# Of the flavour whose folder this is; every later MLflow reads it.
MLFLOW_VERSION = "2.9.0"
PYTHON_VERSION = "3.11"


def download(retort: shell.Shell, made: types.Export, folder: Path, *, force: bool) -> list[Path]:
    """Save the files of a ready export in a folder; returns the files written."""
    wanted = [(file, folder / PurePosixPath(file.path).name) for file in made.files]
    for file, destination in wanted:
        fetching.may_write(destination, file.sha256, force=force)
    folder.mkdir(parents=True, exist_ok=True)
    for file, destination in wanted:
        with transfer_bar.shown(retort.err, destination.name) as progress:
            retort.client.models.download_export(file, destination, progress=progress)
    return [destination for _, destination in wanted]


def write_mlflow(
    retort: shell.Shell, made: types.Export, folder: Path, *, force: bool
) -> list[Path]:
    """Write a folder that `mlflow.pyfunc.load_model` and `mlflow.onnx.load_model` take.

    MLflow itself is not needed for it. Returns the files written.
    """
    if not force and (folder / MLMODEL_FILE).exists():
        raise errors.LocalFileProblem(
            folder / MLMODEL_FILE, "exists already: give --force or another --output"
        )
    saved = download(retort, made, folder, force=force)
    described = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
    versions = made.library_versions
    needed = [
        "mlflow",
        "numpy",
        *(f"{name}>={versions[name]}" for name in ("onnx", "onnxruntime") if name in versions),
    ]
    environment = {"python": PYTHON_VERSION, "build_dependencies": ["pip"]}
    texts = {
        MLMODEL_FILE: _yaml(_mlmodel(made, described)),
        "requirements.txt": "".join(f"{line}\n" for line in needed),
        "python_env.yaml": _yaml({**environment, "dependencies": ["-r requirements.txt"]}),
        "conda.yaml": _yaml(
            {
                "name": "mlflow-env",
                "channels": ["conda-forge"],
                "dependencies": [f"python={PYTHON_VERSION}", "pip", {"pip": needed}],
            }
        ),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [*saved, *(folder / name for name in texts)]


def _mlmodel(made: types.Export, described: types.Json) -> types.Json:
    """Return the content of the file `MLmodel`, of the flavours `onnx` and `python_function`."""
    given = described["input"]
    _, *shape = given["shape"]
    inputs = [_tensor(given["name"], given["type"], shape)]
    # Sides beyond the batch are told by the graph itself.
    outputs = [_tensor(name, "float32", _output(described)) for name in described["outputs"]]
    return {
        "artifact_path": "model",
        "flavors": {
            "onnx": {
                "code": None,
                "data": ONNX_FILE,
                "onnx_version": made.library_versions.get("onnx", ""),
                "providers": ["CPUExecutionProvider"],
            },
            "python_function": {
                "data": ONNX_FILE,
                "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
                "loader_module": "mlflow.onnx",
                "python_version": PYTHON_VERSION,
            },
        },
        "metadata": {"retort_model": made.model, "retort_export": made.id},
        "mlflow_version": MLFLOW_VERSION,
        "model_uuid": uuid.uuid4().hex,
        "signature": {
            "inputs": json.dumps(inputs),
            "outputs": json.dumps(outputs),
            "params": None,
        },
        "utc_time_created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S.%f"),
    }


def _tensor(name: str, kind: str, shape: Sequence[int]) -> types.Json:
    return {
        "type": "tensor",
        "name": name,
        "tensor-spec": {"dtype": kind, "shape": [-1, *shape]},
    }


def _output(described: types.Json) -> list[int]:
    """Return the sides of an output beyond the batch; -1 where they depend on the head."""
    if described["task"] == "classification":
        return [len(described["classes"])]
    if described["task"] == "segmentation":
        return [len(described["classes"]), *described["input"]["shape"][2:]]
    return [-1, -1]


def _yaml(content: types.Json) -> str:
    return yaml.safe_dump(content, sort_keys=True)
