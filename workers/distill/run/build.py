"""A phase of training at its start: student, method, data source, optimizer."""

import logging
from collections.abc import Mapping

import torch
from jaxtyping import UInt8
from torch import Tensor, nn

from workers.distill import errors
from workers.distill.data import stateless_rng
from workers.distill.data.preprocessing import Preprocessor
from workers.distill.evaluation import evaluate, validation
from workers.distill.methods import catalog
from workers.distill.methods.base import Method
from workers.distill.networks.interface import Network, Observe
from workers.distill.run import prepare
from workers.distill.run.context import JobContext
from workers.distill.runtime.ranks import ALONE
from workers.distill.training import balance
from workers.distill.training.compilation import allow_several_backward_passes, compile_network
from workers.distill.training.ema import EMA
from workers.distill.training.meters import LossMeter
from workers.distill.training.optimizers import TrainOptimizer
from workers.distill.training.parallel import Parallel, SharedNorms, gathers_maps
from workers.distill.training.state import TrainState, Validate
from workers.distill.training.step import DistillationStep
from workers.distill.training.teachers import NoTeacher

LOG = logging.getLogger(__name__)


def build(
    context: JobContext, phase: str, *, compiles: bool
) -> tuple[TrainState, DistillationStep]:
    """Return a phase's state and step at the start, the step still without its teacher."""
    config, loop, device = context.config, context.loop, context.device
    seed = config.training.seed
    # Both phases draw the same start weights, whatever their methods draw afterwards.
    student = start_network(context)
    check_sizes(context, student)
    torch.manual_seed(stateless_rng.mix(seed, 1))
    method = catalog.build(context.method_of(phase), student, context.teacher).to(device)
    source = loop.make_source(context, method, student)
    torch.manual_seed(stateless_rng.mix(seed, 2))
    observe: Observe = student.observe
    has_labels = context.task.learns_targets and context.labelling.has_task_labels
    ranks, parallel = context.ranks, share_step(context, method)
    balanced = balance.of_method(method, student, device, has_labels=has_labels, ranks=ranks)
    if compiles and balanced is not None:
        allow_several_backward_passes()
    if compiles:
        observe = try_compile(context, student, context.student_preprocessor)
    trained: dict[str, nn.Module] = {"student": student}
    if loop.trains_method:
        trained["method"] = method
    validate: Validate | None = None
    if context.validation is not None:
        validate = on_first_rank(
            context,
            validation.Validator(
                context.validation, context.student_preprocessor, context.teacher_scores
            ),
        )
    norms = None
    if parallel.is_shared:
        # A method that reads the gathered outputs sees the whole batch anyway.
        shared = [student] if parallel.gathers else [student, method]
        norms = SharedNorms(shared, ranks, synchronise=config.training.sync_batch_norm)
    state = TrainState(
        phase=phase,
        training=config.training,
        student=student,
        method=method,
        source=source,
        optimizer=TrainOptimizer(trained.values(), config.training, context.precision, ranks),
        meter=LossMeter(device, context.task.count_correct, ALONE if parallel.gathers else ranks),
        validate=validate,
        balance=balanced,
        norms=norms,
        ema=None if config.training.ema_decay is None else EMA(trained, config.training.ema_decay),
        primary_metric=context.task.primary_metric,
        train_metric=loop.train_metric,
        delivers=loop.delivers,
    )
    step = DistillationStep(
        student,
        method,
        NoTeacher(device),
        context.student_preprocessor,
        context.precision,
        observe=observe,
        parallel=parallel,
    )
    return state, step


def share_step(context: JobContext, method: Method) -> Parallel:
    """Return how the ranks share a method's steps.

    A method whose loss is a mean over images is computed on slices, unless images count
    differently: by their class, or not at all where they have no label.
    """
    train_data = context.train_data
    counts_alike = train_data is None or train_data.counts_alike
    slices = method.across_devices == "slices" and counts_alike and context.task.means_over_images
    return Parallel(
        context.ranks,
        gathers=context.ranks.count > 1 and not slices,
        with_maps=gathers_maps(method),
        seed=context.config.training.seed,
    )


def on_first_rank(context: JobContext, validate: validation.Validator) -> Validate:
    """Return a validation that the first rank makes, and all know the result of."""
    ranks = context.ranks

    def validate_once(network: Network) -> Mapping[str, float]:
        return ranks.from_first(validate(network) if ranks.is_first else {})

    return validate if ranks.count == 1 else validate_once


def check_sizes(context: JobContext, student: Network) -> None:
    """Raise `IncompatibleNetworks` for a size of `evaluate_sizes` that the student cannot take."""
    for side in context.config.training.evaluate_sizes:
        evaluate.check_side(student, context.student_preprocessor, context.sample(1), side)


def start_network(context: JobContext) -> Network:
    """Return the student before training: with drawn weights, or those it starts from."""
    config = context.config
    torch.manual_seed(config.training.seed)
    student = prepare.build("student", config.student, config.task)
    if config.initial:
        path = context.workdir / "initial" / "model.safetensors"
        replaces_classifier = catalog.find(config.method)[0].describe().replaces_classifier
        if replaces_classifier or prepare.differs_in_classifier(config):
            prepare.load_features(student, path, config.student)
        else:
            prepare.load(student, path, config.student, errors.InitialLoad)
            prepare.order_classes(student, config.student, context.classes)
    return prepare.placed(student, context.device)


def try_compile(context: JobContext, network: Network, view: Preprocessor) -> Observe:
    """Return a compiled `observe`, or the plain one with a warning where compiling fails."""
    example = view(sample(context))
    try:
        return compile_network(network, example, context.precision)
    except Exception as error:  # compilers fail in any way; plain code still works
        LOG.warning("compiling failed", exc_info=True)
        context.reporter.warning(
            "compile_failed",
            f"compiling {type(network).__name__} failed ({type(error).__name__}); it runs "
            "uncompiled",
        )
        return network.observe


def sample(context: JobContext) -> UInt8[Tensor, "N c h w"]:
    """Return a batch to try a network on."""
    batch_size = context.config.training.batch_size
    if context.train_data is None:
        return context.sample(batch_size)
    return next(context.train_data.in_order(batch_size)).images
