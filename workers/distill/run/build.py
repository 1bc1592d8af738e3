"""A phase of training at its start: student, method, optimizer, and where its images come from."""

import logging

import torch
from jaxtyping import UInt8
from torch import Tensor

from workers.distill import errors
from workers.distill.config.synthesis import resolve_budget
from workers.distill.data import stateless_rng
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import validation
from workers.distill.methods import catalog
from workers.distill.methods.base import Method
from workers.distill.methods.datafree.base import DataFreeMethod
from workers.distill.networks.interface import Network
from workers.distill.run import prepare
from workers.distill.run.prepare import JobContext
from workers.distill.synthesis import data_source
from workers.distill.synthesis.synthesizers import base as synthesizers
from workers.distill.training import optimizers
from workers.distill.training.meters import LossMeter
from workers.distill.training.state import TrainState

LOG = logging.getLogger(__name__)


def plan(setting: JobContext, phase: str, *, compiles: bool) -> TrainState:
    """Return a phase of training at its start."""
    asked, device = setting.recipe, setting.device
    seed = asked.training.seed
    # Both phases draw the same start weights, whatever their methods draw afterwards.
    torch.manual_seed(seed)
    student = prepare.placed(prepare.build("student", asked.student, asked.task), device)
    if asked.initial:
        path = setting.workdir / "initial" / "model.safetensors"
        prepare.load(student, path, asked.student, errors.InitialLoad)
    torch.manual_seed(stateless_rng.mix(seed, 1))
    method = catalog.build(setting.method_of(phase), student, setting.teacher).to(device)
    invented = furnish(setting, method, student)
    if invented is None:
        method.prepare(setting.split_to_learn.in_order(asked.training.batch_size))
    torch.manual_seed(stateless_rng.mix(seed, 2))
    observe: optimizers.Observe = student.observe
    if compiles:
        observe = try_compile(setting, student, setting.student_view)
    # What a data-free method learns is moved by its synthesis calls alone.
    learning = (student, method) if invented is None else (student,)
    validate = None
    if setting.held is not None:
        validate = validation.Validator(setting.held, setting.student_view, setting.example)
    return TrainState(
        phase=phase,
        training=asked.training,
        student=student,
        observe=observe,
        method=method,
        view=setting.student_view,
        source=invented or setting.split_to_learn,
        precision=setting.precision,
        stepper=optimizers.Stepper(learning, asked.training, setting.precision),
        tally=LossMeter(device),
        validate=validate,
        studio=invented,
    )


def furnish(
    setting: JobContext, method: Method, student: Network
) -> data_source.SyntheticDataSource | None:
    """Return where a data-free method's images are invented; None for all other methods."""
    teacher, view = setting.teacher, setting.teacher_view
    if not isinstance(method, DataFreeMethod) or teacher is None or view is None:
        return None
    training = setting.recipe.training
    params = method.params
    budget = resolve_budget(
        params.synthesis, batch_size=training.batch_size, known_images=setting.known_images
    )
    sight = synthesizers.SynthesisContext(
        method=method,
        teacher=teacher,
        student=student,
        teacher_view=view,
        student_view=setting.student_view,
        precision=setting.precision,
        device=setting.device,
        mean=tuple(setting.size.mean),
        std=tuple(setting.size.std),
        flip=setting.mirrors(budget),
    )
    return data_source.SyntheticDataSource(
        sight,
        budget,
        training,
        capacity=data_source.capacity(budget, training, method.image_shape),
        caches_logits=setting.recipe.task == "classification",
    )


def try_compile(setting: JobContext, network: Network, view: Preprocessor) -> optimizers.Observe:
    """Return a compiled `observe`, or the plain one with a warning where compiling fails."""
    example = view(sample(setting))
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


def sample(setting: JobContext) -> UInt8[Tensor, "N c h w"]:
    """Return a batch to try a network on."""
    batch_size = setting.recipe.training.batch_size
    if setting.source is None:
        return setting.sample(batch_size)
    return next(setting.source.in_order(batch_size)).images
