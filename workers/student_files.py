"""What a finished job leaves in the registry: the student's files, card and lineage."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models_registry import jobs, models, tables
from models_registry.spec import JobSpec

# Facts about the run that everyone may see; the report's own fields stay out.
_RESULT_FIELDS = (
    *("scores", "parameters", "flops", "images_per_second", "floor_share", "wall_seconds"),
    *("epochs", "steps", "best_epoch", "device", "precision", "compile", "versions", "latency_ms"),
)


@dataclass(frozen=True)
class Kit:
    """Files by the path they get, the version to add, and the job's result."""

    files: dict[str, Path]
    version: models.NewVersion
    result: dict[str, Any]


def make(job: tables.JobRow, report: dict[str, Any], workdir: Path) -> Kit:
    """Return everything that `leases.complete` needs, written into `workdir` where it is a file."""
    spec = jobs.spec_of(job)
    result = {name: report[name] for name in _RESULT_FIELDS if name in report}
    description = json.loads((workdir / "model.json").read_text())
    lineage = _lineage(job, spec, result)
    card = _card(job, spec, result)
    written = {
        "card.md": card,
        "manifest.json": json.dumps(lineage, indent=2) + "\n",
    }
    for name, text in written.items():
        (workdir / name).write_text(text)
    files = {
        models.WEIGHTS: workdir / "student.safetensors",
        "config.json": workdir / "model.json",
        "metrics.json": workdir / "metrics.json",
        **{name: workdir / name for name in written},
    }
    version = models.NewVersion(
        name=spec.student.register_as or "student",
        network=description["network"],
        arguments=description["arguments"],
        task=description["task"],
        classes=description["classes"],
        input=description["input"],
        job_id=job.id,
        parameters=result["parameters"]["student"],
        scores=result["scores"]["student"],
        lineage=lineage,
        card=card,
        tags={},
    )
    return Kit(files, version, result)


def _lineage(job: tables.JobRow, spec: JobSpec, result: dict[str, Any]) -> dict[str, Any]:
    return {
        "job": job.id,
        "attempt": job.attempt,
        "teacher": spec.teacher,
        "teacher_digest": job.spec.get("teacher_digest"),
        "initial": spec.student.initial,
        "initial_digest": job.spec.get("initial_digest"),
        "dataset": spec.dataset,
        "dataset_digest": job.spec.get("dataset_digest"),
        "method": spec.method,
        "training": spec.training,
        "device": result.get("device"),
        "versions": result.get("versions", {}),
    }


def _card(job: tables.JobRow, spec: JobSpec, result: dict[str, Any]) -> str:
    """Return the model card: how it was made, what it scores, how to load it."""
    scores = result["scores"]
    rows = [
        f"| {name} | {_percent(score)} | {float(score['ece']):.4f} |"
        for name, score in scores.items()
        if score is not None
    ]
    taught = f"from `{spec.teacher}` " if spec.teacher else ""
    return "\n".join(
        [
            f"# {spec.student.register_as}",
            "",
            f"`{spec.student.network}`, trained {taught}with the method `{spec.method['name']}` "
            f"on `{spec.dataset}` by job `{job.id}`.",
            "",
            "| | test accuracy (95 % interval) | calibration error |",
            "| --- | --- | --- |",
            *rows,
            "",
            f"Parameters: {result['parameters']['student']:,}. Chosen by validation accuracy, "
            f"epoch {result.get('best_epoch')} of {result.get('epochs')}; the scores are of the "
            "test split, which was used once.",
            "",
            "`model.safetensors` holds the weights; its header and `config.json` say how to build "
            "the network, its classes, and the size and normalisation of its input.",
            "",
        ]
    )


def _percent(score: dict[str, Any]) -> str:
    low, high = score["accuracy_interval"]
    return f"{score['accuracy']:.2%} ({low:.2%} to {high:.2%})"
