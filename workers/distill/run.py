"""Distil one recipe in one folder: build, train the student, train its baseline, score, write."""

import logging
import pathlib
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pydantic
import torch
from torch import Tensor
from torch.utils import deterministic

from workers.distill import (
    catalog,
    checkpoint,
    errors,
    evaluate,
    optimizers,
    outputs,
    recipe,
    report,
    speed,
    stopping,
    weights,
)
from workers.distill.data import batches, stored
from workers.distill.evaluate import Labelled
from workers.distill.loops import course, desk, supervised, tally, teacher
from workers.distill.networks import catalog as networks
from workers.distill.networks.interface import Network

BASELINE: dict[str, Any] = {"name": "ce", "task_weight": 1.0}
LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Setting:
    """What stays fixed while a recipe is carried out."""

    recipe: recipe.Recipe
    workdir: pathlib.Path
    reporter: report.Reporter
    stop: stopping.Stop
    device: torch.device
    precision: optimizers.Precision
    classes: list[str]
    source: batches.Batches
    validation: Labelled
    test: Labelled
    student_view: batches.View
    teacher_view: batches.View | None
    teacher: Network | None
    """As loaded; what runs beside the student is a folded copy."""

    @property
    def phases(self) -> list[str]:
        """Return the phases of training, in order."""
        return ["student", "baseline"] if self.trains_baseline else ["student"]

    @property
    def trains_baseline(self) -> bool:
        """Whether a baseline is wanted that is not the student itself."""
        return self.recipe.baseline and catalog.find(self.recipe.method) != catalog.find(BASELINE)

    @property
    def steps(self) -> int:
        """Return the steps of one phase."""
        return self.recipe.training.epochs * self.source.steps_per_epoch


@dataclass(frozen=True)
class Trained:
    """A phase that is over: the network to deliver, and how it got there."""

    network: Network
    course: course.Course


def execute(
    recipe_path: pathlib.Path,
    workdir: pathlib.Path,
    reporter: report.Reporter,
    stop: stopping.Stop,
) -> int:
    """Distil, turn every way it can end into its last line, and return the exit code."""
    batch_size: int | None = None
    try:
        asked = read_recipe(recipe_path)
        batch_size = asked.training.batch_size
        distil(asked, workdir, reporter, stop)
    except errors.Interrupted:
        return stopping.EXIT_CODE
    except Exception as error:  # the one door through which failures leave
        LOG.exception("the engine failed")
        failure = translate(error, batch_size=batch_size)
        reporter.failure(
            failure.code, failure.message, retryable=failure.retryable, details=failure.details
        )
        return 1
    return 0


def read_recipe(path: pathlib.Path) -> recipe.Recipe:
    """Read and check a recipe."""
    try:
        return recipe.Recipe.model_validate_json(path.read_bytes())
    except OSError as error:
        raise errors.BadRecipe(f"the recipe {path.name} cannot be read: {error.strerror}") from None
    except pydantic.ValidationError as error:
        raise errors.BadRecipe(f"the recipe is refused: {catalog.first_complaint(error)}") from None


def translate(error: Exception, *, batch_size: int | None = None) -> errors.DistillError:
    """Return the failure that a caller should see for an exception."""
    if isinstance(error, errors.UnknownNetwork):
        return errors.IncompatibleNetworks(error.message, **error.details)
    if isinstance(error, errors.DistillError) and error.code in errors.RUN_CODES:
        return error
    words = str(error)
    size = f" with batch_size {batch_size}" if batch_size else ""
    if isinstance(error, torch.OutOfMemoryError) or "CUBLAS_STATUS_ALLOC_FAILED" in words:
        return errors.OutOfMemory(
            f"the device ran out of memory{size}; lower training.batch_size, choose precision "
            "bfloat16, or use a smaller network",
            batch_size=batch_size,
        )
    if isinstance(error, MemoryError) or "DefaultCPUAllocator" in words:
        return errors.HostOutOfMemory(
            f"the machine ran out of memory{size}; lower training.batch_size, or use a machine "
            "with more memory",
            batch_size=batch_size,
        )
    return errors.DistillError(f"an unexpected {type(error).__name__} ended the job: {words[:500]}")


def distil(
    asked: recipe.Recipe,
    workdir: pathlib.Path,
    reporter: report.Reporter,
    stop: stopping.Stop,
) -> None:
    """Carry out a recipe from wherever its newest checkpoint stands."""
    began = time.monotonic()
    setting = prepare(asked, workdir, reporter, stop)
    saved = checkpoint.newest(workdir / "checkpoints", asked.digest(), reporter)
    if saved:
        # Sums split over another number of threads round differently: a job that moves to a
        # machine with more cores must still end with the bytes it was heading for.
        torch.set_num_threads(saved["threads"])
    finished: dict[str, Any] = saved["finished"] if saved else {}
    phase = saved["course"]["phase"] if saved else "student"
    compiles = optimizers.choose_compile(asked.training, setting.device, setting.steps)
    before = setting.phases.index(phase) * setting.steps
    reporter.started(
        device=setting.device.type,
        device_name=describe(setting.device),
        precision=setting.precision.name,
        compile=compiles,
        resumed_from_step=before + saved["course"]["step"] if saved else 0,
        steps=setting.steps,
        epochs=asked.training.epochs,
        phases=setting.phases,
        versions=versions(),
        threads=torch.get_num_threads(),
    )
    if setting.teacher is not None and setting.teacher_view is not None and not saved:
        accuracy, _ = validator(setting, setting.teacher_view)(setting.teacher)
        reporter.metric("teacher/validation/accuracy", accuracy, step=0, epoch=0)
    trained = {
        name: carry_out(setting, name, finished, saved, compiles=compiles)
        for name in setting.phases
    }
    conclude(setting, trained, compiles=compiles, began=began)


def prepare(
    asked: recipe.Recipe,
    workdir: pathlib.Path,
    reporter: report.Reporter,
    stop: stopping.Stop,
) -> Setting:
    """Choose the device, read the data set, load the teacher, and check that all fit."""
    device = choose_device(asked.accelerator)
    catalog.find(asked.method)
    found = stored.load(workdir / "dataset")
    size = found.record.input
    train, validation, test = (found.split(name) for name in stored.SPLITS)
    classes = list(found.record.classes)
    for role, choice in (("student", asked.student), ("teacher", asked.teacher)):
        check_classes(role, choice, len(classes))
    if len(train.labels) < 2:
        raise errors.BadDataset(
            f"the train split holds {len(train.labels)} images; at least 2 are needed to learn"
        )
    training = asked.training
    teacher_view = (
        batches.View("teacher", asked.teacher.input, size, device) if asked.teacher else None
    )
    return Setting(
        recipe=asked,
        workdir=workdir,
        reporter=reporter,
        stop=stop,
        device=device,
        precision=optimizers.choose_precision(training, device),
        classes=classes,
        source=batches.Batches(
            train.images,
            train.labels,
            batch_size=training.batch_size,
            seed=training.seed,
            augment=training.augmentation == "standard",
            flip=found.record.flip,
            device=device,
        ),
        validation=on_device(validation, device),
        test=on_device(test, device),
        student_view=batches.View("student", asked.student.input, size, device),
        teacher_view=teacher_view,
        teacher=load_teacher(asked.teacher, workdir, device) if asked.teacher else None,
    )


def choose_device(accelerator: str) -> torch.device:
    """Return the device to work on, and set it up for repeatable or fast work."""
    if accelerator == "cuda" and not torch.cuda.is_available():
        raise errors.BadRecipe(
            "accelerator cuda was asked for, and this machine has no CUDA device; ask for any or "
            "cpu"
        )
    if accelerator != "cpu" and torch.cuda.is_available():
        torch.backends.cudnn.benchmark = True
        return torch.device("cuda", 0)
    # Every CPU run must end with the same bytes; filling fresh memory would only cost time.
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    return torch.device("cpu")


def on_device(split: stored.Split, device: torch.device) -> Labelled:
    """Return a split as tensors on the device."""
    images = split.images.to(device).contiguous(memory_format=torch.channels_last)
    return Labelled(images, split.labels.to(device))


def check_classes(role: str, choice: recipe.NetworkChoice | None, classes: int) -> None:
    """Raise `IncompatibleNetworks` unless a network tells apart the data set's classes."""
    if choice is not None and choice.classes != classes:
        raise errors.IncompatibleNetworks(
            f"the {role} {choice.network} has {choice.classes} classes and the data set has "
            f"{classes}; choose a {role} made for this data set",
            **{f"{role}_classes": choice.classes, "dataset_classes": classes},
        )


def build(choice: recipe.NetworkChoice) -> Network:
    """Build a network with fresh weights."""
    return networks.build(
        choice.network,
        classes=choice.classes,
        channels=choice.input.channels,
        height=choice.input.height,
        width=choice.input.width,
        arguments=choice.arguments,
    )


def load_teacher(
    choice: recipe.NetworkChoice, workdir: pathlib.Path, device: torch.device
) -> Network:
    """Return the teacher with its weights, frozen."""
    network = build(choice)
    load(network, workdir / "teacher" / "model.safetensors", choice, errors.TeacherLoad)
    network.eval().requires_grad_(False)
    return placed(network, device)


def load(
    network: Network,
    path: pathlib.Path,
    choice: recipe.NetworkChoice,
    failure: type[errors.DistillError],
) -> None:
    """Load weights strictly, and name the network they do not fit."""
    try:
        weights.load_into(network, path)
    except (errors.KeysMismatch, errors.UploadRefused, OSError) as error:
        raise failure(
            f"the weights in {path.parent.name}/{path.name} do not fit {choice.network}: {error}",
            **getattr(error, "details", {}),
        ) from error


def placed(network: Network, device: torch.device) -> Network:
    """Return the network on the device, channels last."""
    return network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]  # torch's stub


def validator(setting: Setting, view: batches.View) -> course.Validate:
    """Return a function from a network to accuracy and loss on the validation split."""
    held = setting.validation

    def validate(network: Network) -> tuple[float, float]:
        with setting.precision.autocast():
            logits = evaluate.predict(network, view, held.images, between=setting.stop.check)
        right = (logits.argmax(1) == held.labels).sum()
        loss = torch.nn.functional.cross_entropy(logits, held.labels)
        return int(right) / len(held.labels), float(loss)

    return validate


def carry_out(
    setting: Setting,
    phase: str,
    finished: dict[str, Any],
    saved: dict[str, Any] | None,
    *,
    compiles: bool,
) -> Trained:
    """Train one phase to its end, or return it as it ended before."""
    moving = plan(setting, phase, compiles=compiles and phase not in finished)
    at_hand = saved["course"] if saved and saved["course"]["phase"] == phase else None
    if phase in finished:
        moving.restore_outcome(finished[phase])
        return Trained(moving.use_best(), moving)
    if at_hand is not None:
        moving.restore(at_hand)
    watcher = watch(setting, moving, compiles=compiles)
    reports = desk.Desk(
        setting.reporter,
        setting.stop,
        folder=setting.workdir / "checkpoints",
        digest=setting.recipe.digest(),
        steps_before=setting.phases.index(phase) * setting.steps,
        steps_overall=len(setting.phases) * setting.steps,
        finished=dict(finished),
    )
    setting.stop.can_wait = True
    try:
        supervised.train(moving, watcher, reports)
        check_finite(moving)
    except errors.Interrupted:
        reports.save(moving)
        raise
    reports.save(moving)  # whatever follows can be interrupted without losing this phase
    setting.stop.can_wait = False
    setting.stop.check()
    finished[phase] = moving.outcome()
    return Trained(moving.use_best(), moving)


def plan(setting: Setting, phase: str, *, compiles: bool) -> course.Course:
    """Return a phase of training at its start."""
    asked, device = setting.recipe, setting.device
    seed = asked.training.seed
    # Both phases draw the same start weights, whatever their methods draw afterwards.
    torch.manual_seed(seed)
    student = placed(build(asked.student), device)
    if asked.initial:
        path = setting.workdir / "initial" / "model.safetensors"
        load(student, path, asked.student, errors.InitialLoad)
    torch.manual_seed(batches.mix(seed, 1))
    choice = asked.method if phase == "student" else BASELINE
    method = catalog.build(choice, student, setting.teacher).to(device)
    method.prepare(setting.source.in_order(asked.training.batch_size))
    torch.manual_seed(batches.mix(seed, 2))
    observe: optimizers.Observe = student.observe
    if compiles:
        observe = try_compile(setting, student, setting.student_view)
    return course.Course(
        phase=phase,
        training=asked.training,
        student=student,
        observe=observe,
        method=method,
        view=setting.student_view,
        source=setting.source,
        precision=setting.precision,
        stepper=optimizers.Stepper((student, method), asked.training, setting.precision),
        tally=tally.Tally(device),
        validate=validator(setting, setting.student_view),
    )


def watch(setting: Setting, moving: course.Course, *, compiles: bool) -> teacher.Teacher:
    """Return what answers for the teacher in a phase."""
    if (
        setting.teacher is None
        or setting.teacher_view is None
        or "teacher" not in moving.method.needs
    ):
        return teacher.Absent(setting.device)
    watching = watching_teacher(
        setting, setting.teacher, setting.teacher_view, moving, compiles=compiles
    )
    repeatable = setting.recipe.training.augmentation == "none"
    small = teacher.fits_cache(
        setting.source.count, setting.teacher.classes, setting.teacher.pooled_width
    )
    if repeatable and small and not teacher.wants_stages(moving.method):
        return teacher.Remembering(watching, setting.source)
    return watching


def watching_teacher(
    setting: Setting,
    network: Network,
    view: batches.View,
    moving: course.Course,
    *,
    compiles: bool,
) -> teacher.Watching:
    """Return a teacher that looks at every batch, as fast as it can."""
    fast = speed.folded(network, view(setting.test.images[: speed.EXAMPLES]))
    observe = try_compile(setting, fast, view) if compiles else fast.observe
    return teacher.Watching(
        observe, view, setting.precision, stages=teacher.wants_stages(moving.method)
    )


def try_compile(setting: Setting, network: Network, view: batches.View) -> optimizers.Observe:
    """Return a compiled `observe`, or the plain one with a warning where compiling fails."""
    example = view(next(setting.source.in_order(setting.recipe.training.batch_size)).images)
    try:
        return optimizers.compiled(network, example, setting.precision)
    except Exception as error:  # compilers fail in any way; plain code still works
        LOG.warning("compiling failed", exc_info=True)
        setting.reporter.warning(
            "compile_failed",
            f"compiling {type(network).__name__} failed ({type(error).__name__}); it runs "
            "uncompiled",
        )
        return network.observe


def check_finite(moving: course.Course) -> None:
    """Raise `Diverged` if the last step left weights that are not finite."""
    broken = [
        name
        for name, value in moving.student.state_dict().items()
        if value.is_floating_point() and not bool(value.isfinite().all())
    ]
    if broken:
        raise errors.Diverged(
            f"weights of the student are not finite after the last step ({broken[0]} and "
            f"{len(broken) - 1} more); lower training.optimizer.learning_rate or set "
            "training.clip_norm",
            step=moving.step,
        )


def conclude(
    setting: Setting, trained: dict[str, Trained], *, compiles: bool, began: float
) -> None:
    """Score what was trained on the test split, once, and write the outputs."""
    student = trained["student"]
    facts = {
        "scores": score(setting, trained),
        **measure(setting, student),
        "wall_seconds": round(time.monotonic() - began, 3),
        "epochs": setting.recipe.training.epochs,
        "steps": setting.steps,
        "best_epoch": student.course.best.epoch,
        "device": setting.device.type,
        "device_name": describe(setting.device),
        "precision": setting.precision.name,
        "compile": compiles,
        "versions": versions(),
        "files": [{"path": name} for name in outputs.FILES],
    }
    histories = {phase: done.course.history for phase, done in trained.items()}
    outputs.write(
        setting.workdir, setting.recipe, setting.classes, student.network, facts, histories
    )
    setting.stop.ignore()
    setting.reporter.result(**facts)


def score(setting: Setting, trained: dict[str, Trained]) -> dict[str, Any]:
    """Return the test scores of teacher, student and baseline."""
    test = setting.test
    taught: Tensor | None = None
    scores: dict[str, Any] = {"teacher": None, "student": None, "baseline": None}
    say = evaluating(setting)
    if setting.teacher is not None and setting.teacher_view is not None:
        taught = evaluate.predict(setting.teacher, setting.teacher_view, test.images, between=say)
        scores["teacher"] = evaluate.scores(taught, test.labels)
    for phase, done in trained.items():
        logits = evaluate.predict(done.network, setting.student_view, test.images, between=say)
        scores[phase] = evaluate.scores(logits, test.labels, taught)
    if setting.recipe.baseline and not setting.trains_baseline:
        scores["baseline"] = scores["student"]  # the method is the baseline: the same run
    return scores


def evaluating(setting: Setting) -> Callable[[], None]:
    """Return what keeps saying that the evaluation goes on."""
    total = len(setting.phases) * setting.steps

    def say() -> None:
        setting.reporter.progress(
            phase="evaluation",
            step=setting.steps,
            epoch=setting.recipe.training.epochs,
            progress=round(total / (total + 1), 6),
            images_per_second=0.0,
            remaining_seconds=None,
        )

    return say


def measure(setting: Setting, student: Trained) -> dict[str, Any]:
    """Return sizes and speeds of teacher and student."""
    moving, network = student.course, student.network
    images = next(setting.source.in_order(setting.recipe.training.batch_size)).images
    seen = setting.student_view(images)
    sizes: dict[str, Any] = {
        "parameters": {"teacher": None, "student": count(network)},
        "flops": {"teacher": None, "student": speed.flops(network, seen)},
        "latency_ms": {"teacher": None, "student": round(speed.latency_ms(network, seen), 4)},
    }
    watching: Callable[[], object] | None = None
    if setting.teacher is not None and setting.teacher_view is not None:
        seen_by_teacher = setting.teacher_view(images)
        sizes["parameters"]["teacher"] = count(setting.teacher)
        sizes["flops"]["teacher"] = speed.flops(setting.teacher, seen_by_teacher)
        latency = speed.latency_ms(setting.teacher, seen_by_teacher)
        sizes["latency_ms"]["teacher"] = round(latency, 4)
        if "teacher" in moving.method.needs:
            watching = speed.forward(
                speed.folded(setting.teacher, seen_by_teacher[: speed.EXAMPLES]),
                seen_by_teacher,
                setting.precision,
            )
    rate = moving.step / moving.seconds * setting.source.count / setting.source.steps_per_epoch
    floor = speed.floor_seconds(moving.student, seen, watching, setting.precision)
    share = min(floor / len(images) * rate, 1.0)
    return {**sizes, "images_per_second": round(rate, 2), "floor_share": round(share, 4)}


def count(network: Network) -> int:
    """Return the number of parameters."""
    return sum(parameter.numel() for parameter in network.parameters())


def describe(device: torch.device) -> str:
    """Return the device in words."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def versions() -> dict[str, str]:
    """Return the versions that a result depends on."""
    return {"python": platform.python_version(), "torch": str(torch.__version__)}
