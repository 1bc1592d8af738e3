"""How fast images are invented and learned from: Retort's data-free loop against a plain one.

    python -m benchmarks.datafree [--rows ssdkd,fast,...] [--pairs 8] [--seconds 2] [--markdown]

Rows with the name of a method have networks, budgets and weights of `benchmarks.datafree_digits`;
`ssdkd_cifar` has images of 3x32x32, wrn_16_2 teaching wrn_16_1, and the methods' own weights. What
the images show does not matter for speed: teachers have learned nothing.

The two loops run in processes of their own and take turns of equally many rounds; a round is one
call of synthesis and the student's steps after it. Steps of both kinds are timed apart, with what
belongs to a call (a new optimizer, images into the pool, a look at the whole pool) or to an epoch.
Seconds are those of the processor, on one thread, so that other work on the machine counts little.
What counts is the median of the ratios of turns beside each other; the spread is told.

The plain loop is what the public repositories do, in one process: hooks on batch norms that use
the published formula for the variance, `torch.optim.Adam` and `torch.optim.SGD` as they are,
`loss.backward()`, `.item()` to keep the best images, `F.kl_div`, a tensor as pool, networks as they
are built (batch norms of the teacher unfolded, plain memory layout), no reports. It has the same
networks, terms, weights, crops and numbers of steps, but nothing else of the engine.
"""

import argparse
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import rich.console
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from torch import Tensor, nn

from benchmarks import datafree_digits
from benchmarks.train_step import machine
from benchmarks.turns import spread
from workers.distill.config.job import JobConfig, NetworkChoice
from workers.distill.methods import catalog
from workers.distill.networks import generators
from workers.distill.networks import weights as weight_files
from workers.distill.run import build, datafree, prepare, teacher_factory
from workers.distill.run.context import JobRequest
from workers.distill.runtime import events, signals
from workers.distill.runtime.device import keep_memory
from workers.distill.training.progress import ProgressReporter

Json: TypeAlias = dict[str, Any]  # fields of a recipe, and numbers to print
Round: TypeAlias = tuple[float, float]
"""Seconds of synthesis, and of the student's steps."""

PARTS = ("synthesis", "student")
EPOCHS = 1000
DIGITS: Json = {"channels": 1, "height": 8, "width": 8, "mean": [0.3], "std": [0.37]}
CIFAR: Json = {
    "channels": 3,
    "height": 32,
    "width": 32,
    "mean": [0.4914, 0.4822, 0.4465],
    "std": [0.2470, 0.2435, 0.2616],
}
CIFAR_METHOD: Json = {
    "name": "ssdkd",
    "synthesis": {
        "batch_size": 64,
        "steps": 5,
        "student_steps": 5,
        "data_scale": None,
        "warmup_calls": 1,
        "buffer_images": 128,
        "width": 64,
    },
}


@dataclass(frozen=True)
class Row:
    """One comparison."""

    name: str
    method: Json
    teacher: Json
    student: Json
    size: Json


def digits_row(name: str, key: str) -> Row:
    """Return a row of the small experiment on the digits."""
    method = datafree_digits.METHODS[key]
    teacher, _, student = datafree_digits.PAIRS["convnet"]
    return Row(name, method, teacher, student, DIGITS)


ROWS = {
    row.name: row
    for row in (
        digits_row("ssdkd", "ssdkd"),
        digits_row("fast", "fast"),
        digits_row("dafl", "dafl"),
        digits_row("cmi", "cmi, 60 steps"),
        digits_row("deepinversion", "deepinversion, 100 steps"),
        Row(
            "ssdkd_cifar",
            CIFAR_METHOD,
            {"network": "retort/wrn_16_2"},
            {"network": "retort/wrn_16_1"},
            CIFAR,
        ),
    )
}


def main() -> None:
    """Run the rows; print each on stderr as it is done, and all as JSON or Markdown on stdout."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.datafree")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--pairs", type=int, default=8, help="turns of each loop")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of a turn, about")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--serve", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.serve:
        serve(*asked.serve)
        return
    names = asked.rows.split(",")
    unknown = set(names) - set(ROWS)
    if unknown:
        parser.error(f"no row {', '.join(sorted(unknown))}; see --help")
    say = rich.console.Console(stderr=True, highlight=False).print
    found = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="retort-datafree-speed-") as folder:
            write_teacher(ROWS[name], Path(folder))
            found.append(compare(ROWS[name], Path(folder), asked))
        say(name, {part: found[-1][part]["ratio"] for part in (*PARTS, "round")})
    everything = {"machine": machine(threads=1, device="cpu"), "rows": found}
    text = markdown(found) if asked.markdown else json.dumps(everything, indent=2)
    sys.stdout.write(text + "\n")


# -- what both loops are given ---------------------------------------------------------------------


def params_of(row: Row) -> Any:
    """Return the method's parameters; which there are, depends on the method."""
    return catalog.find(row.method)[1]


def choice(network: Json, row: Row) -> NetworkChoice:
    """Return a network for the row's images, of ten classes."""
    fields = {**network, "classes": 10, "input": row.size}
    return NetworkChoice.model_validate(fields)


def recipe_of(row: Row) -> JobConfig:
    """Return a training that is longer than any measurement."""
    training = {**datafree_digits.TRAINING, "epochs": EPOCHS, "checkpoint_seconds": 86_400}
    return JobConfig.model_validate(
        {
            "teacher": choice(row.teacher, row).model_dump(),
            "student": choice(row.student, row).model_dump(),
            "method": row.method,
            "training": training,
            "report": False,
            "accelerator": "cpu",
        }
    )


@torch.no_grad()
def write_teacher(row: Row, folder: Path) -> None:
    """Write a teacher that has seen random pixels, so that its batch norms know some moments."""
    torch.manual_seed(0)
    teacher = prepare.build("teacher", choice(row.teacher, row), "classification").train()
    shape = (64, *(row.size[name] for name in ("channels", "height", "width")))
    for _ in range(20):
        teacher(torch.randn(shape))
    (folder / "teacher").mkdir()
    weight_files.save_student(folder / "teacher" / "model.safetensors", teacher, {"format": "pt"})


# -- the engine's loop -----------------------------------------------------------------------------


def engine_rounds(row: Row, folder: Path) -> Iterator[Round]:
    """Go the engine's way through training, as `synthesis.loop.train` does, round by round."""
    keep_memory()
    asked, stop = recipe_of(row), signals.Stop()
    # What a step costs besides its arithmetic includes that of the reports, written to nowhere.
    nowhere = events.Reporter(os.open(os.devnull, os.O_WRONLY))
    shared = datafree.LOOP.prepare(asked, folder, stop, strong=False)
    context = prepare.job_context(shared, JobRequest(asked, folder, nowhere))
    state, step = build.build(context, "student", compiles=False)
    teachers = teacher_factory.TeacherFactory(shared, [state.method], None)
    step.teacher = teachers.make(context, state.method)
    reports = ProgressReporter(
        nowhere,
        folder=folder / "checkpoints",
        digest="",
        steps_before=0,
        steps_overall=state.steps,
        finished={},
    )
    trainer = datafree.LOOP.make_trainer(state, step, reports)
    trainer.start()
    steps = state.iter_steps()
    while not state.finished:
        began = time.process_time()
        while trainer.source.needs_synthesis(state.step + 1):
            trainer.synthesis_step()
            trainer.checkpoint_is_due()
            stop.check()
        synthesized = time.process_time()
        while not state.finished and not trainer.source.needs_synthesis(state.step + 1):
            moment, batch = next(steps)
            trainer.train_step(batch, moment)
            trainer.finish_epoch()
            trainer.checkpoint_is_due()
            stop.check()
        yield synthesized - began, time.process_time() - synthesized


# -- the plain loop --------------------------------------------------------------------------------


class Hook:
    """Compares what a batch norm receives with the moments that it has stored."""

    def __init__(self, norm: nn.BatchNorm2d, rate: float) -> None:
        self.norm: Any = norm  # torch lets the moments be None
        self.rate = rate
        self.remembered: tuple[Tensor, Tensor] | None = None
        norm.register_forward_hook(self._look)

    def _look(self, norm: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
        if not torch.is_grad_enabled() or norm.training:
            return
        maps = inputs[0]
        mean = maps.mean((0, 2, 3))
        by_channel = maps.permute(1, 0, 2, 3).contiguous().view(maps.shape[1], -1)
        variance = by_channel.var(1, unbiased=False)
        if self.remembered is not None:
            rate = self.rate
            mean = rate * self.remembered[0] + (1 - rate) * mean
            variance = rate * self.remembered[1] + (1 - rate) * variance
        self.moments = mean, variance
        self.maps = maps
        gaps = (self.norm.running_mean - mean, self.norm.running_var - variance)
        self.distance = gaps[0].norm() + gaps[1].norm()

    def remember(self) -> None:
        """Keep the moments of the last look."""
        if self.rate > 0:
            self.remembered = (self.moments[0].detach(), self.moments[1].detach())


def hooks(network: nn.Module, rate: float = 0.0) -> list[Hook]:
    """Return a hook on each batch norm."""
    norms = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    return [Hook(norm, rate) for norm in norms]


class Plain:
    """What the plain loops of all methods have in common; images have pixels of 0..1."""

    def __init__(self, row: Row, folder: Path) -> None:
        asked = recipe_of(row)
        self.params = params_of(row)
        self.budget = self.params.synthesis
        self.training = asked.training
        self.image_shape = (row.size["channels"], row.size["height"], row.size["width"])
        self.classes = asked.student.classes
        self.teacher = prepare.build("teacher", choice(row.teacher, row), "classification")
        weight_files.load_into(self.teacher, folder / "teacher" / "model.safetensors")
        self.teacher.eval().requires_grad_(False)
        self.student = prepare.build("student", asked.student, "classification")
        self.optimizer = torch.optim.SGD(
            self.student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4
        )
        self.mean = torch.tensor(row.size["mean"]).view(1, -1, 1, 1)
        self.std = torch.tensor(row.size["std"]).view(1, -1, 1, 1)
        self.pool = torch.zeros(0, *self.image_shape, dtype=torch.uint8)
        self.calls = 0

    @property
    def uses_student(self) -> bool:
        """Whether the student has begun to learn."""
        return self.calls >= int(self.budget.warmup_calls)

    def synthesise(self) -> None:
        """Make one call."""
        raise NotImplementedError

    def shown(self) -> Tensor:
        """Return normalised images for a step of the student."""
        return self.of_pool(torch.randint(len(self.pool), (self.training.batch_size,)))

    def of_pool(self, places: Tensor) -> Tensor:
        """Return images of the pool as the student sees them."""
        return self.normalised(self.cropped(self.pool[places].float() / 255))

    def learn(self) -> None:
        """Make one step of the student."""
        self.student.train()
        images = self.shown()
        with torch.no_grad():
            taught = self.teacher(images)
        learned = self.student(images)
        loss = self.distillation(learned, taught)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
        self.optimizer.step()

    def distillation(self, learned: Tensor, taught: Tensor) -> Tensor:
        """Return the student's loss."""
        temperature = self.params.temperature
        soft = F.softmax(taught / temperature, dim=1)
        learned = F.log_softmax(learned / temperature, dim=1)
        loss: Tensor = temperature**2 * F.kl_div(learned, soft, reduction="batchmean")
        return loss

    def keep(self, images: Tensor) -> None:
        """Put images into the pool; the oldest leave it."""
        bytes_of = (images.clamp(0, 1) * 255).round().to(torch.uint8)
        self.pool = torch.cat([self.pool, bytes_of])[-self.budget.buffer_images :]

    def normalised(self, images: Tensor) -> Tensor:
        """Return images as both networks see them."""
        return (images - self.mean) / self.std

    def cropped(self, images: Tensor) -> Tensor:
        """Return each image cut at its own place from itself with zeros around it."""
        count, _, height, width = images.shape
        pad = max(1, round(height / 8))
        padded = F.pad(images, (pad, pad, pad, pad))
        top, left = torch.randint(2 * pad + 1, (2, count))
        rows = top[:, None] + torch.arange(height)
        columns = left[:, None] + torch.arange(width)
        number = torch.arange(count)[:, None, None]
        cut = padded[number, :, rows[:, :, None], columns[:, None, :]]
        return cut.permute(0, 3, 1, 2)

    def generator(self) -> generators.Generator:
        """Return a new generator."""
        return generators.build(
            self.budget.generator,
            image_shape=self.image_shape,
            latent_size=self.budget.latent_size,
            width=self.budget.width,
        )

    def adam(self, groups: list[Json]) -> torch.optim.Optimizer:
        """Return an optimizer for a generator."""
        return torch.optim.Adam(
            groups, lr=self.budget.learning_rate, betas=(self.budget.beta1, 0.999)
        )


def divergences(student: Tensor, teacher: Tensor) -> Tensor:
    """Return KL(teacher || student) of each image."""
    soft = F.softmax(teacher, dim=1)
    return F.kl_div(F.log_softmax(student, dim=1), soft, reduction="none").sum(1)


def adversarial(student: Tensor, teacher: Tensor) -> Tensor:
    """Return how far the networks are apart where they decide alike."""
    alike = (student.argmax(1) == teacher.argmax(1)).float()
    return (divergences(student, teacher) * alike).mean()


class Fast(Plain):
    """A meta-learned generator and the latent vectors of a call."""

    def __init__(self, row: Row, folder: Path) -> None:
        super().__init__(row, folder)
        self.hooks = hooks(self.teacher, getattr(self.params, "bn_momentum", 0.0))
        self.made = self.generator()
        self.meta = getattr(self.budget, "meta", "none") == "fomaml"
        if self.meta:
            self.learner = torch.optim.Adam(
                self.made.parameters(),
                lr=self.budget.learning_rate * self.budget.steps,
                betas=(self.budget.beta1, 0.999),
            )

    def synthesise(self) -> None:
        """Make one call."""
        budget = self.budget
        self.student.eval()
        worker = copy.deepcopy(self.made) if self.meta else self.made
        targets = torch.randint(self.classes, (budget.batch_size,))
        latent = torch.randn(budget.batch_size, budget.latent_size, requires_grad=True)
        groups = [
            {"params": worker.parameters()},
            {"params": [latent], "lr": budget.latent_learning_rate},
        ]
        optimizer = self.adam([*groups, *self.more_groups()])
        best, least = torch.empty(0), float("inf")
        for _ in range(budget.steps):
            images = worker(latent)
            loss = self.loss(images, targets)
            if loss.item() < least:
                best, least = images.detach(), loss.item()
                self.found_better()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
            if self.meta:
                self.gather(worker)
            optimizer.step()
        if self.meta:
            self.learner.step()
            self.learner.zero_grad()
            for own, seen in zip(self.made.buffers(), worker.buffers(), strict=True):
                own.copy_(seen)
        for hook in self.hooks:
            hook.remember()
        self.keep(best)
        self.calls += 1

    def more_groups(self) -> list[Json]:
        """Return what else learns in a call."""
        return []

    def found_better(self) -> None:
        """Remember more of the images that cost least."""

    def gather(self, worker: nn.Module) -> None:
        """Add the gradients of the copy to those of the generator."""
        for own, moved in zip(self.made.parameters(), worker.parameters(), strict=True):
            if moved.grad is not None:
                own.grad = moved.grad.clone() if own.grad is None else own.grad + moved.grad

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return what a call lowers."""
        params, seen = self.params, self.normalised(self.cropped(images))
        logits = self.teacher(seen)
        loss: Tensor = params.bn_weight * sum(hook.distance for hook in self.hooks)
        loss = loss + params.onehot_weight * self.onehot(logits, targets)
        if self.uses_student:
            apart = adversarial(self.student(seen), logits)
            loss = loss - params.adversarial_weight * apart
        return loss

    def onehot(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy with the targets."""
        return F.cross_entropy(logits, targets)


class SSDKD(Fast):
    """Fast, with modulation, and with priorities in the pool."""

    def __init__(self, row: Row, folder: Path) -> None:
        super().__init__(row, folder)
        self.logits = torch.zeros(0, self.classes)
        self.delta = torch.zeros(0)
        self.weights = torch.zeros(0)

    def onehot(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the cross-entropy, weighed by how rare and how hard an image is."""
        soft = F.softmax(logits.detach(), dim=1)
        largest, predicted = soft.max(1)
        seen = self.logits.argmax(1) if len(self.logits) else predicted
        shares = torch.bincount(seen, minlength=self.classes).float() / len(seen)
        phi: Tensor = (1 - shares[predicted]) * (1 - largest) ** self.params.gamma
        return (phi * F.cross_entropy(logits, targets, reduction="none")).mean()

    @torch.no_grad()
    def keep(self, images: Tensor) -> None:
        """Put images into the pool, and measure it anew."""
        super().keep(images)
        capacity = self.budget.buffer_images
        taught = self.teacher(self.normalised(images))
        self.logits = torch.cat([self.logits, taught])[-capacity:]
        self.weights = torch.cat([self.weights, torch.ones(len(images))])[-capacity:]
        learned = [
            self.student(self.normalised(part.float() / 255))
            for part in torch.split(self.pool, 256)
        ]
        self.delta = self.weights * divergences(torch.cat(learned), self.logits)
        self.weights = self.corrections()

    def shown(self) -> Tensor:
        """Draw by priority."""
        count = self.training.batch_size
        self.places = torch.multinomial(self.probabilities(), count, replacement=True)
        return self.of_pool(self.places)

    def distillation(self, learned: Tensor, taught: Tensor) -> Tensor:
        """Return the corrected loss, and set new priorities."""
        temperature, places = self.params.temperature, self.places
        omega = self.corrections()[places]
        apart = divergences(learned / temperature, taught / temperature)
        loss: Tensor = temperature**2 * (omega / omega.max() * apart).mean()
        with torch.no_grad():
            measured = divergences(learned, taught)
            self.delta[places] = self.weights[places] * measured
            self.weights[places] = self.corrections()[places]
        return loss

    def probabilities(self) -> Tensor:
        """Return the share with which each image is drawn."""
        priorities: Tensor = (self.delta.abs() + self.params.epsilon) ** self.params.alpha
        return priorities / priorities.sum()

    def corrections(self) -> Tensor:
        """Return what undoes uneven drawing."""
        return (len(self.pool) * self.probabilities()).pow(-self.params.beta)


class CMI(Fast):
    """A new generator in each call, and a contrast with a bank of features."""

    def __init__(self, row: Row, folder: Path) -> None:
        super().__init__(row, folder)
        with torch.enable_grad():
            self.teacher(torch.zeros(1, *self.image_shape))
        width = self.features().shape[1]
        self.head = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, self.params.head_width)
        )
        self.bank = torch.zeros(0, 2, width)

    def synthesise(self) -> None:
        """Make one call from a new generator."""
        self.made = self.generator()
        super().synthesise()
        self.bank = torch.cat([self.bank, self.best_views])[-self.params.bank_size :]

    def more_groups(self) -> list[Json]:
        """Return the head."""
        rate = self.params.head_learning_rate
        return [{"params": self.head.parameters(), "lr": rate, "betas": (0.9, 0.999)}]

    def found_better(self) -> None:
        """Remember the features of the images that cost least."""
        self.best_views = self.views.detach()

    def features(self) -> Tensor:
        """Return the means over positions of what each batch norm has received."""
        return torch.cat([hook.maps.mean((2, 3)) for hook in self.hooks], dim=1)

    def loss(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return what a call lowers."""
        loss = super().loss(images, targets)
        whole = self.features()
        self.teacher(self.normalised(resized_crop(images)))
        local = self.features()
        self.views = torch.stack([local, whole], dim=1)
        drawn = self.bank[torch.randperm(len(self.bank))[: self.params.bank_draws]]
        one = F.normalize(self.head(torch.cat([local, drawn[:, 0]])), dim=1)
        other = F.normalize(self.head(torch.cat([whole, drawn[:, 1]])), dim=1).detach()
        alike = one @ other.T / self.params.contrast_temperature
        contrast = F.cross_entropy(alike, torch.arange(len(alike)), reduction="none")
        count = len(local)
        total = contrast[:count].mean()
        if len(drawn):
            total = total + contrast[count:].mean()
        return loss + total * float(self.params.contrast_weight)


def resized_crop(images: Tensor) -> Tensor:
    """Return a part of each image, a quarter of it or more, at the size of the whole."""
    count = len(images)
    area = torch.empty(count).uniform_(0.25, 1)
    aspect = torch.empty(count).uniform_(-0.2877, 0.2877).exp()
    wide, tall = (area * aspect).sqrt().clamp(max=1), (area / aspect).sqrt().clamp(max=1)
    right, down = ((2 * torch.rand(count) - 1) * (1 - side) for side in (wide, tall))
    none = torch.zeros(count)
    rows = [torch.stack([wide, none, right], 1), torch.stack([none, tall, down], 1)]
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


class DAFL(Plain):
    """A generator that learns all along; each step of the student sees new images."""

    def __init__(self, row: Row, folder: Path) -> None:
        super().__init__(row, folder)
        self.made = self.generator()
        self.mover = self.adam([{"params": self.made.parameters()}])

    def synthesise(self) -> None:
        """Make one call."""
        params = self.params
        for _ in range(self.budget.steps):
            images = self.made(torch.randn(self.budget.batch_size, self.budget.latent_size))
            shown = self.teacher.observe(self.normalised(images))
            logits = shown.logits
            mean = F.softmax(logits, dim=1).mean(0)
            loss: Tensor = params.onehot_weight * F.cross_entropy(logits, logits.argmax(1))
            loss = loss + params.balance_weight * (mean * mean.log()).sum()
            loss = loss - params.activation_weight * shown.pooled.abs().mean()
            self.mover.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
            self.mover.step()
        self.calls += 1

    @torch.no_grad()
    def shown(self) -> Tensor:
        """Return new images."""
        latent = torch.randn(self.training.batch_size, self.budget.latent_size)
        return self.normalised(self.made(latent))


class DeepInversion(Plain):
    """Pixels from noise, in normalised space."""

    def __init__(self, row: Row, folder: Path) -> None:
        super().__init__(row, folder)
        self.hooks = hooks(self.teacher)
        self.student_hooks = hooks(self.student)

    def synthesise(self) -> None:
        """Make one call."""
        budget = self.budget
        self.student.eval()
        inputs = torch.randn(budget.batch_size, *self.image_shape, requires_grad=True)
        targets = torch.arange(budget.batch_size) % self.classes
        optimizer = torch.optim.Adam(
            [inputs], lr=budget.learning_rate, betas=(budget.beta1, budget.beta2)
        )
        low, high = -self.mean / self.std, (1 - self.mean) / self.std
        most = max(1, round(self.image_shape[1] / 8))
        best, least = inputs.detach(), float("inf")
        for _ in range(budget.steps):
            down, across = (int(torch.randint(-most, most + 1, ())) for _ in range(2))
            loss = self.loss(torch.roll(inputs, (down, across), (2, 3)), targets)
            if loss.item() < least:
                best, least = inputs.detach().clone(), loss.item()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch's stub
            optimizer.step()
            inputs.data = inputs.data.clamp(low, high)
        self.keep(best * self.std + self.mean)
        self.calls += 1

    def loss(self, seen: Tensor, targets: Tensor) -> Tensor:
        """Return what a call lowers."""
        params = self.params
        logits = self.teacher(seen)
        loss: Tensor = params.bn_weight * sum(hook.distance for hook in self.hooks)
        loss = loss + params.onehot_weight * F.cross_entropy(logits, targets)
        loss = loss + params.tv_weight * sum(each.norm() for each in neighbours(seen))
        if self.uses_student:
            learned = self.student(seen)
            apart = sum(hook.distance for hook in self.student_hooks)
            loss = loss - params.bn_weight * params.student_bn_weight * apart
            loss = loss + params.competition_weight * competition(learned, logits)
        return loss


def neighbours(images: Tensor) -> tuple[Tensor, ...]:
    """Return differences of neighbouring pixels in four directions."""
    return (
        images[:, :, :, :-1] - images[:, :, :, 1:],
        images[:, :, :-1] - images[:, :, 1:],
        images[:, :, :-1, :-1] - images[:, :, 1:, 1:],
        images[:, :, :-1, 1:] - images[:, :, 1:, :-1],
    )


def competition(student: Tensor, teacher: Tensor) -> Tensor:
    """Return one minus the Jensen-Shannon divergence at temperature 3."""
    one, other = F.softmax(student / 3, dim=1), F.softmax(teacher / 3, dim=1)
    middle = ((one + other) / 2).clamp(0.01, 0.99)
    apart = F.kl_div(one.clamp(0.01, 0.99).log(), middle, reduction="batchmean")
    apart = apart + F.kl_div(other.clamp(0.01, 0.99).log(), middle, reduction="batchmean")
    return 1 - (apart / 2).clamp(0, 1)


PLAIN: dict[str, Callable[[Row, Path], Plain]] = {
    "ssdkd": SSDKD,
    "fast": Fast,
    "dafl": DAFL,
    "cmi": CMI,
    "deepinversion": DeepInversion,
}


def plain_rounds(row: Row, folder: Path) -> Iterator[Round]:
    """Go the plain way, round by round."""
    loop = PLAIN[row.method["name"]](row, folder)
    for _ in range(loop.budget.warmup_calls):
        loop.synthesise()
    while True:
        began = time.process_time()
        loop.synthesise()
        invented = time.process_time()
        for _ in range(loop.budget.student_steps):
            loop.learn()
        yield invented - began, time.process_time() - invented


# -- turns -----------------------------------------------------------------------------------------


def serve(kind: str, row: str, folder: str) -> None:
    """Make as many rounds as each line of standard input asks for, and answer with the seconds."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    made = plain_rounds if kind == "plain" else engine_rounds
    rounds = made(ROWS[row], Path(folder))
    for line in sys.stdin:
        spent = [next(rounds) for _ in range(int(line))]
        answers.write(json.dumps([sum(part) for part in zip(*spent, strict=True)]) + "\n")
        answers.flush()


class Server:
    """One of the two loops in its process."""

    def __init__(self, kind: str, row: Row, folder: Path) -> None:
        # Libraries read the number of threads when they are loaded.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.datafree", "--serve", kind, row.name, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def rounds(self, count: int) -> Round:
        """Make rounds, and return the seconds of each part."""
        if self._process.stdin is None or self._process.stdout is None:
            raise RuntimeError("the loop was started without a way to ask it")
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a loop ended with code {self._process.wait()}; see above")
        synthesis, student = json.loads(line)
        return synthesis, student

    def end(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()


def compare(row: Row, folder: Path, asked: argparse.Namespace) -> Json:
    """Let both loops take turns, each first as often as the other."""
    budget = params_of(row).synthesis
    filling = -(-budget.buffer_images // budget.batch_size)
    servers = {kind: Server(kind, row, folder) for kind in ("plain", "retort")}
    turns: dict[str, list[Round]] = {"plain": [], "retort": []}
    try:
        # Both stand at the same round all along, the first time with full pools.
        for server in servers.values():
            server.rounds(max(1, filling - budget.warmup_calls))
        slowest = max(sum(server.rounds(1)) for server in servers.values())
        count = max(1, round(asked.seconds / slowest))
        for turn in range(asked.pairs):
            for kind in ("plain", "retort") if turn % 2 == 0 else ("retort", "plain"):
                turns[kind].append(servers[kind].rounds(count))
    finally:
        for server in servers.values():
            server.end()
    steps = {"synthesis": count * budget.steps, "student": count * budget.student_steps}
    told: Json = {"row": row.name, "rounds_a_turn": count, "steps_a_round": {}}
    for place, part in enumerate(PARTS):
        told["steps_a_round"][part] = steps[part] // count
        told[part] = amounts(
            [steps[part] / turn[place] for turn in turns["plain"]],
            [steps[part] / turn[place] for turn in turns["retort"]],
        )
    told["round"] = amounts(*([count / sum(turn) for turn in turns[kind]] for kind in turns))
    return told


def amounts(plain: list[float], retort: list[float]) -> Json:
    """Return the rates of both, and how often the plain rate Retort's is."""
    ratios = [ours / theirs for ours, theirs in zip(retort, plain, strict=True)]
    return {
        "plain_per_second": spread(plain),
        "retort_per_second": spread(retort),
        "ratio": spread(ratios),
    }


def markdown(rows: list[Json]) -> str:
    """Return the rows as a table."""
    lines = [
        "| row | steps | plain, a second | Retort, a second | ratio | spread |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for part in (*PARTS, "round"):
            found = row[part]
            ratio = found["ratio"]
            lines.append(
                f"| {row['row']} | {part} | {found['plain_per_second']['median']:.2f} | "
                f"{found['retort_per_second']['median']:.2f} | {ratio['median']:.2f} | "
                f"{ratio['least']:.2f} to {ratio['most']:.2f} |"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
