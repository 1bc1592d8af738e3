"""What `detection.py` and `segmentation.py` have in common: from a data set to a student's file.

Data set, teacher and job go through the service, as for any other client; the rest needs the
student's file alone.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich.console
import torch
from PIL import Image
from torch import Tensor

import retort
from retort import types
from workers.distill.config.job import Input
from workers.distill.data.builtin import digit_scenes
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.networks import weights

SMALL: dict[str, Any] = {"width": 8, "blocks": 1}
"""Arguments of a student that is about a quarter of the default."""
SCENES = 4


@dataclass(frozen=True)
class Wanted:
    """What is distilled: a task, its built-in scenes, the format of uploads, and the networks."""

    task: str
    builtin: str
    format: str
    network: str
    student: dict[str, Any]
    method: str
    training: dict[str, Any]
    steps: int


def arguments(wanted: Wanted, description: str) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--archive", type=Path, help=f"a ZIP archive, format {wanted.format}")
    parser.add_argument("--teacher", type=Path, help="weights of a teacher; trained if missing")
    parser.add_argument("--method", default=wanted.method, help="see `retort methods`")
    parser.add_argument("--steps", type=int, default=wanted.steps, help="of each training")
    parser.add_argument(
        "--pictures", type=Path, nargs="*", default=[], help="shown to the student at the end"
    )
    parser.add_argument("--output", type=Path, default=Path(f"{wanted.task}-student.safetensors"))
    return parser.parse_args()


def distil(wanted: Wanted, asked: argparse.Namespace) -> Path:
    """Go from the data set to the student's file, and tell how good all networks are."""
    with retort.connect() as client:  # finds the address and the key as the command line does
        dataset = data_set(client, wanted, asked.archive)
        say(f"{dataset.reference}: {dataset.splits}, classes {', '.join(dataset.classes)}")
        teacher = teacher_of(client, wanted, asked, dataset)
        job = run(
            client,
            {
                "name": f"{wanted.task}-{asked.method}",
                "task": wanted.task,
                "teacher": teacher.reference,
                "student": {"network": wanted.network, "arguments": wanted.student},
                "dataset": dataset.reference,
                "method": {"name": asked.method},
                "training": training(wanted, asked),
                # The same student without the teacher shows what the teacher was worth.
                "baseline": True,
            },
        )
        scores = job.result.scores if job.result else {}
        for role, score in scores.items():
            say(role, {name: one for name, one in (score or {}).items() if isinstance(one, float)})
        return client.jobs.download_student(job.id, asked.output)


def data_set(client: retort.Client, wanted: Wanted, archive: Path | None) -> types.DatasetVersion:
    """Upload an archive and wait until it is converted; without one, take the built-in scenes."""
    if archive is None:
        return client.datasets.version(wanted.builtin, 1)
    version = client.datasets.register(
        f"{wanted.task}-example",
        client.uploads.send(archive, purpose="dataset"),
        format=wanted.format,
        task=wanted.task,
    )
    return client.datasets.wait(version.name, version.version, timeout=None)


def teacher_of(
    client: retort.Client, wanted: Wanted, asked: argparse.Namespace, dataset: types.DatasetVersion
) -> types.ModelVersion:
    """Upload the weights of a teacher, which a job has trained where there are none yet."""
    path = asked.teacher
    if path is None:
        job = run(
            client,
            {
                "name": f"{wanted.task}-teacher",
                "task": wanted.task,
                "student": {"network": wanted.network},
                "dataset": dataset.reference,
                "method": {"name": "ce"},
                "training": training(wanted, asked),
                "report": False,
            },
        )
        path = asked.output.with_name(f"{wanted.task}-teacher.safetensors")
        client.jobs.download_student(job.id, path)
    version = client.models.register(
        f"{wanted.task}-teacher",
        client.uploads.send(path, purpose="model"),
        network=wanted.network,
        task=wanted.task,
        # The order of the classes, the size of the images and their normalisation are those
        # that the teacher was trained with.
        classes=dataset.classes,
        input=dataset.input or {},
    )
    return client.models.wait(version.name, version.version, timeout=None)


def training(wanted: Wanted, asked: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe for small scenes, what the task adds to it, and where it ends."""
    return {"recipe": "small_dense", **wanted.training, "max_steps": asked.steps}


def run(client: retort.Client, spec: dict[str, Any]) -> types.Job:
    """Submit a job and wait for its end; a failed one ends the program."""
    job = client.jobs.submit(spec)
    say(f"{spec['name']}: {job.id}; watch it with `retort watch {job.id}`")
    ended = client.jobs.wait(job.id, timeout=None)
    if ended.state != "succeeded":
        why = ended.failure.message if ended.failure else ended.state_message
        sys.exit(f"{ended.id} {ended.state}: {why}")
    return ended


def answers(student: Path, images: Tensor) -> tuple[Tensor, list[str]]:
    """Return what a student answers to images uint8 [N, C, H, W], and its classes' names.

    Network, weights and normalisation are rebuilt from the file alone.
    """
    network, header = weights.rebuild(student)
    size = Input.model_validate(header["input"])
    prepare = Preprocessor("student", size, size, torch.device("cpu"))
    network.eval()
    with torch.inference_mode():
        return network(prepare(images)), list(header["classes"])


def shown(student: Path, asked: argparse.Namespace) -> Tensor | None:
    """Return the pictures to show, uint8 [N, 3, H, W]; None where there are none.

    Of the built-in scenes, some of the test split are shown. Others are resized to what the student
    expects.
    """
    if asked.pictures:
        size = Input.model_validate(weights.read_header(student)["input"])
        pictures = []
        for path in asked.pictures:
            with Image.open(path) as opened:
                resized = opened.convert("RGB").resize((size.width, size.height))
            pictures.append(torch.from_numpy(np.array(resized)).permute(2, 0, 1))
        return torch.stack(pictures)
    if asked.archive is not None:
        say(f"{student} is there; name --pictures to see what it answers")
        return None
    return torch.from_numpy(digit_scenes.compose("test", SCENES).images)


def say(*what: object) -> None:
    """Print a line."""
    rich.console.Console(highlight=False, soft_wrap=True).print(*what)
