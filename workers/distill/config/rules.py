"""Every "A contradicts B" of a job, written once.

A rule is a function that yields faults: the field at fault, a stable code, and a sentence. The
service executes the rules at submission, and answers with all faults; the engine executes them at
preparation, and raises the first (`errors.refuse`). Both hand over plain values: `training` and
`method` are complete JSON objects, the rest are descriptions (`descriptions.py`). What a
description does not know is None, and a rule that depends on it yields nothing.

Rules that read the shapes of a network's maps (as many stages, large enough maps) need the built
networks; they stand in the constructors of the methods that have them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from workers.distill.config import teachers
from workers.distill.config.descriptions import (
    BOX_TASKS,
    COMBINE,
    DENSE_TASKS,
    FEATURES,
    MAPS,
    MASK_TASKS,
    TAKEN_FROM,
    WITHOUT_CLASSES,
    Exchange,
    MethodDescription,
    NetworkDescription,
    value_at,
)
from workers.distill.config.devices import FEWEST_ROWS
from workers.distill.config.federation import REMOTE
from workers.distill.config.synthesis import GENERATOR_STRIDES

# A complete JSON object, each value of which was checked on its own before.
Json: TypeAlias = Mapping[str, Any]

START_MODEL = "start model"
"""What the weights that a student starts from are called in messages."""
SIMPLE_AUGMENTATIONS = ("none", "standard")
CLASS_AUGMENTATIONS = ("autoaugment", "randaugment", "trivialaugment")
"""Those that move parts of an image where its masks and boxes do not follow."""
CROPPING_AUGMENTATIONS = ("standard", *CLASS_AUGMENTATIONS)
"""Those that begin with a random crop."""


@dataclass(frozen=True)
class Violation:
    """What is wrong with one field; `field` is its path in a job's spec, such as `method/name`."""

    field: str
    code: str
    message: str


class FaultyFieldError(Exception):
    """A rule has read a field that is at fault itself, so the rule has nothing to say."""


class Partial(dict[str, Any]):
    """An object some of whose fields are at fault; whoever reads one gets `FaultyFieldError`."""

    def __init__(self, content: Json, faulty: Iterable[str]) -> None:
        super().__init__(content)
        self._faulty = frozenset(faulty)

    def __getitem__(self, field: str) -> Any:  # Any: a JSON value
        """Return a field's value."""
        if field in self._faulty:
            raise FaultyFieldError(field)
        return super().__getitem__(field)


Rule: TypeAlias = Callable[..., Iterator[Violation]]


def _each(rules: Iterable[Rule], *subjects: object) -> Iterator[Violation]:
    """Yield the faults of each rule; those that read a faulty field are left out."""
    for rule in rules:
        try:
            yield from list(rule(*subjects))
        except FaultyFieldError:
            continue


# -- training --------------------------------------------------------------------------------------


def of_training(training: Json) -> Iterator[Violation]:
    """Yield what contradicts itself in a complete training."""
    return _each(_TRAINING, training)


def _nesterov(training: Json) -> Iterator[Violation]:
    optimizer = training["optimizer"]
    if optimizer["name"] == "sgd" and optimizer["nesterov"] and optimizer["momentum"] == 0:
        yield Violation(
            "training/optimizer/nesterov",
            "nesterov_without_momentum",
            "nesterov needs a momentum greater than 0, got momentum 0",
        )


def _dot_delta(training: Json) -> Iterator[Violation]:
    optimizer = training["optimizer"]
    if optimizer["name"] != "dot":
        return
    momentum, delta = optimizer["momentum"], optimizer["delta"]
    if delta > momentum or momentum + delta >= 1:
        yield Violation(
            "training/optimizer/delta",
            "delta_out_of_range",
            "dot needs a delta of at most the momentum, and a sum of both below 1, got momentum "
            f"{momentum:g} and delta {delta:g}",
        )


def _dot_precision(training: Json) -> Iterator[Violation]:
    if training["optimizer"]["name"] == "dot" and training["precision"] == "float16":
        yield Violation(
            "training/precision",
            "dot_float16",
            "optimizer dot cannot scale two gradients for precision float16; choose bfloat16 or "
            "float32",
        )


def _dot_compile(training: Json) -> Iterator[Violation]:
    if training["optimizer"]["name"] == "dot" and training["compile"] == "on":
        yield Violation(
            "training/compile",
            "dot_compile",
            "optimizer dot goes backwards twice through one graph, which a compiled network does "
            "not allow; choose compile off or auto",
        )


def _patience(training: Json) -> Iterator[Violation]:
    patience, every = training["patience_epochs"], training["evaluate_every_epochs"]
    if patience is not None and patience < every:
        yield Violation(
            "training/patience_epochs",
            "patience_too_short",
            f"patience_epochs {patience} is shorter than evaluate_every_epochs {every}; raise the "
            "first or lower the second",
        )


def _warmup(training: Json) -> Iterator[Violation]:
    warmup, epochs = training["schedule"]["warmup_epochs"], training["epochs"]
    if warmup > epochs:
        yield Violation(
            "training/schedule/warmup_epochs",
            "warmup_too_long",
            f"schedule.warmup_epochs {warmup:g} is longer than epochs {epochs}; lower it",
        )


def _cache_or_mixing(training: Json) -> Iterator[Violation]:
    if training["teacher_cache"] is not None and training["mixing"] is not None:
        yield Violation(
            "training/mixing",
            "mixing_with_cache",
            "mixing makes new images at every step, which a teacher_cache cannot hold; set one of "
            "both to null",
        )


def _cached_views(training: Json) -> Iterator[Violation]:
    cache, augmentation = training["teacher_cache"], training["augmentation"]
    if cache is not None and cache["views"] > 1 and augmentation == "none":
        yield Violation(
            "training/teacher_cache/views",
            "views_are_equal",
            f"teacher_cache.views {cache['views']} would be equal to one another with "
            "augmentation none; set views to 1 or choose an augmentation",
        )


def _cached_visits(training: Json) -> Iterator[Violation]:
    cache, batch_size = training["teacher_cache"], training["batch_size"]
    if cache is None:
        return
    views, per_visit = cache["views"], cache["per_visit"]
    if per_visit > views or batch_size % per_visit:
        yield Violation(
            "training/teacher_cache/per_visit",
            "visit_does_not_fit",
            f"teacher_cache.per_visit {per_visit} must divide batch_size {batch_size} and be at "
            f"most views {views}",
        )


def _scale_jitter(training: Json) -> Iterator[Violation]:
    low, high = training["scale_jitter"]
    if low > high:
        yield Violation(
            "training/scale_jitter",
            "scales_out_of_order",
            f"scale_jitter takes the lower factor first, got {low:g} and {high:g}",
        )


def _crop_without_effect(training: Json) -> Iterator[Violation]:
    augmentation = training["augmentation"]
    if training["random_resized_crop"] is None or augmentation in CROPPING_AUGMENTATIONS:
        return
    yield Violation(
        "training/random_resized_crop",
        "crop_without_effect",
        f"augmentation {augmentation} cuts no part of an image that random_resized_crop could "
        "replace; set random_resized_crop to null, or choose one of "
        f"{', '.join(CROPPING_AUGMENTATIONS)}",
    )


def _crop_bounds(training: Json) -> Iterator[Violation]:
    for name in ("random_resized_crop", "random_erasing"):
        given = training[name] or {}
        for field in ("scale", "ratio"):
            low, high = given.get(field, (0, 0))
            if low > high:
                yield Violation(
                    f"training/{name}/{field}",
                    "bounds_out_of_order",
                    f"{name}.{field} takes the smaller number first, got {low:g} and {high:g}",
                )


def _flip(training: Json) -> Iterator[Violation]:
    flip, augmentation = training.get("flip"), training["augmentation"]
    if (flip, augmentation) in ((True, "none"), (False, "flip")):
        says = "mirrors nothing" if flip else "does nothing but mirror images"
        way_out = "choose augmentation flip or standard" if flip else "choose augmentation none"
        yield Violation(
            "training/flip",
            "flip_without_effect",
            f"flip is {str(flip).lower()}, but augmentation {augmentation} {says}; leave flip out, "
            f"or {way_out}",
        )


def _sizes_twice(training: Json) -> Iterator[Violation]:
    sizes = training["evaluate_sizes"]
    if len(set(sizes)) < len(sizes):
        yield Violation(
            "training/evaluate_sizes",
            "listed_twice",
            f"evaluate_sizes lists a size twice: {list(sizes)}; list each once",
        )


def _no_class_counts(training: Json) -> Iterator[Violation]:
    weights = training["class_weights"]
    if not isinstance(weights, str) and not any(weights):
        yield Violation(
            "training/class_weights",
            "no_class_counts",
            f"class_weights {list(weights)} give no class a weight greater than 0, so nothing "
            "would be learned from the masks; give one, or auto or none",
        )


_TRAINING: tuple[Rule, ...] = (
    _nesterov,
    _dot_delta,
    _dot_precision,
    _dot_compile,
    _patience,
    _warmup,
    _cache_or_mixing,
    _cached_views,
    _cached_visits,
    _scale_jitter,
    _crop_without_effect,
    _crop_bounds,
    _flip,
    _sizes_twice,
    _no_class_counts,
)


def of_precision(training: Json, accelerator: str) -> Iterator[Violation]:
    """Yield that a precision does not run on the kind of device, if so."""
    return _each((_half_precision,), training, accelerator)


def _half_precision(training: Json, accelerator: str) -> Iterator[Violation]:
    if training["precision"] == "float16" and accelerator == "cpu":
        yield Violation(
            "training/precision",
            "precision_of_device",
            "precision float16 needs a CUDA device; choose float32 or bfloat16 on the CPU",
        )


# -- several devices -------------------------------------------------------------------------------


def of_devices(
    description: MethodDescription, training: Json, task: str, devices: int
) -> Iterator[Violation]:
    """Yield why a job cannot run on so many devices, if so."""
    yield from _each((_sync_batch_norm,), training, devices)
    if devices > 1:
        rules = (_one_device, _one_device_task, _rows_of_each, _compiled_norms)
        yield from _each(rules, description, training, task, devices)


def _sync_batch_norm(training: Json, devices: int) -> Iterator[Violation]:
    if training["sync_batch_norm"] and devices == 1:
        yield Violation(
            "training/sync_batch_norm",
            "one_device",
            "sync_batch_norm has no effect on one device; leave it out, or ask for more in "
            "resources.devices",
        )


def _one_device(
    description: MethodDescription, _training: Json, _task: str, devices: int
) -> Iterator[Violation]:
    if description.across_devices != "one":
        return
    if description.is_federated:
        why = "its clients are trained one after another"
    elif description.is_data_free:
        why = "it makes its images one batch at a time, and one replay buffer keeps them"
    else:
        why = "it was not made for several"
    yield Violation(
        "resources/devices",
        "one_device_method",
        f"method {description.name} runs on one device, since {why}; set resources.devices to 1 "
        f"(now {devices}), or choose a method that learns from images",
    )


def _one_device_task(
    _description: MethodDescription, _training: Json, task: str, devices: int
) -> Iterator[Violation]:
    if task in BOX_TASKS:
        yield Violation(
            "resources/devices",
            "one_device_task",
            f"task {task} runs on one device, since boxes are matched and counted over the whole "
            f"batch; set resources.devices to 1 (now {devices})",
        )


def _rows_of_each(
    _description: MethodDescription, training: Json, _task: str, devices: int
) -> Iterator[Violation]:
    fewest = FEWEST_ROWS * devices
    if training["batch_size"] < fewest:
        yield Violation(
            "training/batch_size",
            "batch_too_small",
            f"batch_size {training['batch_size']} is the batch of all {devices} devices together, "
            f"and each needs {FEWEST_ROWS} images of it; set it to {fewest} or more, or lower "
            "resources.devices",
        )


def _compiled_norms(
    _description: MethodDescription, training: Json, _task: str, _devices: int
) -> Iterator[Violation]:
    if training["sync_batch_norm"] and training["compile"] == "on":
        yield Violation(
            "training/compile",
            "contradiction",
            "batch norms that are synchronised between devices cannot be compiled; set compile to "
            "off, or sync_batch_norm to false",
        )


# -- a method --------------------------------------------------------------------------------------


def of_method(description: MethodDescription, method: Json) -> Iterator[Violation]:
    """Yield which hyper-parameters of a complete method contradict each other."""
    rules = (_declared, _balance, _budget, _average, _moved_images, _federation)
    yield from _each(rules, description, method)


def of_part(description: MethodDescription, method: Json, place: int) -> Iterator[Violation]:
    """Yield the same of one method of a combination, counted from 0."""
    for fault in of_method(description, method):
        field = fault.field.replace("method/", f"method/methods/{place}/", 1)
        yield Violation(field, fault.code, fault.message)


def _declared(description: MethodDescription, method: Json) -> Iterator[Violation]:
    for one in description.contradictions:
        try:
            contradicts = all(condition.holds(method) for condition in one.when)
        except FaultyFieldError:
            continue
        if contradicts:
            yield Violation(f"method/{one.field.replace('.', '/')}", one.code, _filled(one, method))


def _filled(contradiction: Any, method: Json) -> str:
    text: str = contradiction.message
    for condition in contradiction.when:
        text = text.replace(f"{{{condition.field}}}", str(value_at(method, condition.field)))
    return text


def _balance(description: MethodDescription, method: Json) -> Iterator[Violation]:
    if "balance" not in method or "task_weight" not in method:
        return
    balance = method["balance"]
    if isinstance(balance, int | float) and method["task_weight"] == 0:
        yield Violation(
            "method/balance",
            "balance_without_task",
            f"balance {balance:g} compares with the gradient of the labels, and task_weight 0 "
            f"leaves them out of method {description.name}; raise task_weight, or choose balance "
            "published",
        )


def _budget(description: MethodDescription, method: Json) -> Iterator[Violation]:
    if not description.is_data_free:
        return
    yield from of_budget(method["synthesis"])


def of_budget(budget: Json) -> Iterator[Violation]:
    """Yield what a complete `synthesis` contradicts or leaves open."""
    steps, scale = budget["student_steps"], budget["data_scale"]
    if steps is not None and scale is not None:
        yield Violation(
            "method/synthesis/student_steps",
            "steps_twice",
            f"student_steps {steps} and data_scale {scale:g} both say how many steps the student "
            "makes; set one of them to null",
        )
    if steps is None and scale is None:
        yield Violation(
            "method/synthesis/student_steps",
            "budget_open",
            "student_steps and data_scale are both null; give one of them",
        )


def _average(description: MethodDescription, method: Json) -> Iterator[Violation]:
    if not description.is_data_free:
        return
    budget = method["synthesis"]
    decay = budget.get("average_decay")
    if decay is not None and budget["reuse"] != "none":
        yield Violation(
            "method/synthesis/average_decay",
            "nothing_new_to_average",
            f"average_decay {decay:g} makes new images, and reuse {budget['reuse']} asks for those "
            "of the call; set average_decay to null, or reuse to none",
        )


def _moved_images(description: MethodDescription, method: Json) -> Iterator[Violation]:
    """Yield that nothing moves the images of a synthesis call, if so."""
    images, student = description.image_weights, description.adversarial_weights
    if not (images or student or description.learns_from_student_only):
        return
    if any(method[name] > 0 for name in images):
        return
    if not description.learns_from_student_only and not any(method[name] > 0 for name in student):
        yield Violation(
            f"method/{(*images, *student)[0]}",
            "nothing_to_learn_from",
            f"no term of the synthesis loss moves the images: {_listed((*images, *student))} are "
            "all 0; raise one of them",
        )
        return
    warmup_calls = method["synthesis"]["warmup_calls"]
    if warmup_calls:
        yield Violation(
            "method/synthesis/warmup_calls",
            "nothing_to_learn_from",
            "synthesis.warmup_calls must be 0: the generator learns from nothing but the student, "
            f"which is not there during warm-up; got {warmup_calls}",
        )


def _federation(description: MethodDescription, method: Json) -> Iterator[Violation]:
    """Yield what a federation contradicts, by itself or with what the method exchanges."""
    if description.exchange is not None:
        federation = method["federation"]
        yield from _each((_few_clients, _given_parts, _open_round), federation)
        exchange = description.exchange.chosen(method)
        yield from _each(_OF_EXCHANGE, description, exchange, federation)


def _few_clients(federation: Json) -> Iterator[Violation]:
    clients, needed = federation["clients"], federation["min_clients"]
    if clients == REMOTE or needed is None:
        return
    drawn = max(1, round(federation["participation"] * clients))
    if needed > drawn:
        yield Violation(
            "method/federation/min_clients",
            "too_few_clients",
            f"min_clients {needed} is more than the {drawn} clients of a round (clients {clients}, "
            f"participation {federation['participation']:g}); lower it",
        )


def _given_parts(federation: Json) -> Iterator[Violation]:
    partition, clients = federation["partition"], federation["clients"]
    kind, indices = partition["kind"], partition["indices"]
    field = "method/federation/partition/indices"
    if kind == "given" and indices is None:
        yield Violation(field, "required", "partition given needs indices: a list for each client")
    elif kind != "given" and indices is not None:
        yield Violation(
            field,
            "without_effect",
            f"indices have no effect with partition {kind}; leave them out, or choose kind given",
        )
    elif indices is not None and clients != REMOTE and len(indices) != clients:
        yield Violation(
            field,
            "client_count",
            f"indices has {len(indices)} lists, and there are {clients} clients; give one for each",
        )


def _no_open_set(
    description: MethodDescription, exchange: Exchange, federation: Json
) -> Iterator[Violation]:
    if exchange.uses_open_set and federation["open_images"] == 0:
        yield Violation(
            "method/federation/open_images",
            "open_set_needed",
            f"method {description.name} exchanges predictions of open images, and open_images is "
            "0; raise it, or leave it out",
        )


def _open_round(federation: Json) -> Iterator[Violation]:
    images, of_round = federation["open_images"], federation["open_images_per_round"]
    # Below 1 it is a share, of a number that is known when the data is.
    if images is not None and images >= 1 and of_round is not None and of_round > images:
        yield Violation(
            "method/federation/open_images_per_round",
            "more_than_all",
            f"open_images_per_round {of_round} is more than open_images {images}; lower it",
        )


def _own_networks(
    description: MethodDescription, exchange: Exchange, federation: Json
) -> Iterator[Violation]:
    if exchange.shares_weights and federation["networks"] is not None:
        yield Violation(
            "method/federation/networks",
            "networks_differ",
            f"method {description.name} averages weights, so all clients have the student's "
            "network; leave networks out, or choose a method such as fd or dsfl",
        )


def _private_weights(
    description: MethodDescription, exchange: Exchange, federation: Json
) -> Iterator[Violation]:
    field = "method/federation/privacy"
    if federation["privacy"] is None:
        return
    if not exchange.sends:
        yield Violation(
            field,
            "without_effect",
            f"method {description.name} sends nothing that privacy could protect; leave it out",
        )
    elif "weights" in exchange.sends:
        yield Violation(
            field,
            "privacy_refused",
            f"privacy clips tables of outputs, and method {description.name} sends weights; leave "
            "it out, or choose a method such as fd or dsfl",
        )


def _remote_clients(
    description: MethodDescription, exchange: Exchange, federation: Json
) -> Iterator[Violation]:
    if federation["clients"] != REMOTE:
        return
    if not exchange.sends:
        yield Violation(
            "method/federation/clients",
            "nothing_travels",
            f"method {description.name} exchanges nothing with remote clients; choose another "
            "method, or a number of clients",
        )
    for name, neutral in (("participation", 1), ("dropout", 0), ("stragglers", 0)):
        if federation[name] != neutral:
            yield Violation(
                f"method/federation/{name}",
                "simulated_only",
                f"{name} {federation[name]:g} is simulated, and remote clients come and go by "
                f"themselves; set it to {neutral}",
            )
    if federation["networks"] is not None:
        yield Violation(
            "method/federation/networks",
            "simulated_only",
            "remote clients choose their own networks; leave networks out",
        )
    if federation["augmentation"] is not None:
        yield Violation(
            "method/federation/augmentation",
            "simulated_only",
            "augmentation makes clients send images, which remote clients never do; leave it out, "
            "or set clients to a number",
        )


_OF_EXCHANGE: tuple[Rule, ...] = (
    _no_open_set,
    _own_networks,
    _private_weights,
    _remote_clients,
)


def of_client_networks(
    description: MethodDescription, method: Json, reference: str, arguments: Json
) -> Iterator[Violation]:
    """Yield that no client has the network of the student that a client's model becomes, if so."""
    return _each((_student_among_clients,), description, method, reference, arguments)


def _student_among_clients(
    description: MethodDescription, method: Json, reference: str, arguments: Json
) -> Iterator[Violation]:
    exchange = description.exchange
    if exchange is None or exchange.delivers != "client":
        return
    federation = method["federation"]
    if federation["clients"] != REMOTE and not _has_student(federation, reference, arguments):
        yield Violation(
            "method/federation/networks",
            "student_not_among_clients",
            f"the model of a client becomes the student, and no client has the student's network "
            f"{reference} with these arguments; add it to networks",
        )


def _has_student(federation: Json, reference: str, arguments: Json) -> bool:
    """Return whether a simulated client has the student's network."""
    networks, clients = federation["networks"], federation["clients"]
    if networks is None:
        return True
    held = [(one["network"], one.get("arguments", {})) for one in networks[:clients]]
    return (reference, dict(arguments)) in held


def of_baseline(
    description: MethodDescription, method: Json, reference: str, arguments: Json
) -> Iterator[Violation]:
    """Yield what keeps a job from training a baseline besides, if anything does."""
    return _each((_baseline_of_clients,), description, method, reference, arguments)


def _baseline_of_clients(
    description: MethodDescription, method: Json, reference: str, arguments: Json
) -> Iterator[Violation]:
    if description.exchange is None:
        return
    federation = method["federation"]
    if federation["clients"] == REMOTE:
        yield Violation(
            "baseline",
            "clients_elsewhere",
            "the baseline trains each client alone, and the data of remote clients is elsewhere; "
            "set baseline to false, or method.federation.clients to a number",
        )
    elif description.exchange.delivers == "server" and not _has_student(
        federation, reference, arguments
    ):
        yield Violation(
            "baseline",
            "student_not_among_clients",
            "the baseline is the best of the clients that train alone, and none has the student's "
            f"network {reference} with these arguments; add it to method.federation.networks, or "
            "set baseline to false",
        )


def of_rounds(description: MethodDescription, method: Json, training: Json) -> Iterator[Violation]:
    """Yield that a federation and its training ask for different numbers of rounds, if so."""
    return _each((_rounds,), description, method, training)


def _rounds(description: MethodDescription, method: Json, training: Json) -> Iterator[Violation]:
    if not description.is_federated:
        return
    rounds, epochs = method["federation"]["rounds"], training["epochs"]
    if rounds is not None and rounds != epochs:
        yield Violation(
            "training/epochs",
            "rounds_differ",
            f"a round is an epoch of training, and federation.rounds {rounds} differs from epochs "
            f"{epochs}; leave one of them out",
        )


def of_weighed_labels(
    description: MethodDescription, method: Json, training: Json
) -> Iterator[Violation]:
    """Yield what is asked of the loss of the labels that a method leaves out, if anything."""
    return _each((_weighed_labels, _loss_without_labels), description, method, training)


def _weighed_labels(
    description: MethodDescription, method: Json, training: Json
) -> Iterator[Violation]:
    weights = training["class_weights"]
    if description.weighs_classes:
        return
    if weights != "none" and "task_weight" in method and method["task_weight"] == 0:
        shown = weights if isinstance(weights, str) else list(weights)
        yield Violation(
            "training/class_weights",
            "weights_without_task",
            f"class_weights {shown} weigh the classes in the loss of the labels, and task_weight 0 "
            f"leaves that out of method {description.name}; raise task_weight, or leave "
            "class_weights out",
        )


def _loss_without_labels(
    description: MethodDescription, method: Json, training: Json
) -> Iterator[Violation]:
    if training["task_loss"]["name"] != "cross_entropy" and method.get("task_weight") == 0:
        yield Violation(
            "training/task_loss",
            "loss_without_task",
            f"task_weight 0 leaves the loss of the labels out of method {description.name}, so "
            "that bce would have no effect; raise task_weight, or leave task_loss out",
        )


def of_original_images(
    description: MethodDescription, method: Json, *, has_dataset: bool
) -> Iterator[Violation]:
    """Yield that a budget is a share of an unknown number, if so."""
    return _each((_original_images,), description, method, has_dataset)


def _original_images(
    description: MethodDescription, method: Json, has_dataset: bool
) -> Iterator[Violation]:
    if not description.is_data_free or has_dataset:
        return
    budget = method["synthesis"]
    is_share = budget["student_steps"] is None and budget["data_scale"] is not None
    if is_share and budget["original_images"] is None:
        yield Violation(
            "method/synthesis/original_images",
            "size_unknown",
            "data_scale is a share of the teacher's training set, whose size is not known without "
            "a data set; give original_images, or student_steps instead",
        )


def of_task(description: MethodDescription, task: str) -> Iterator[Violation]:
    """Yield that a method is not for a task, if so."""
    if task not in description.tasks:
        # The parts of a combination may have none in common.
        tasks = " and ".join(description.tasks) or "no task that all its parts are for"
        way_out = "choose another method"
        if task in WITHOUT_CLASSES and "classification" in description.tasks:
            way_out = (
                "a backbone has no logits or labels to learn from; choose a method that compares "
                "embeddings or maps, such as embedkd (retort methods --for JOB.yaml lists them)"
            )
        yield Violation(
            "method/name",
            "wrong_task",
            f"method {description.name} is for {tasks}, and the task is {task}; {way_out}",
        )


def of_params_and_task(
    method: Json, task: str, describe: Callable[[str], MethodDescription]
) -> Iterator[Violation]:
    """Yield which hyper-parameters of a complete method, or of its parts, a task does not have."""
    is_combined = method["name"] == COMBINE
    for place, part in enumerate(method["methods"] if is_combined else [method]):
        above = f"method/methods/{place}" if is_combined else "method"
        for field, tasks in describe(part["name"]).task_params.items():
            if part.get(field) is not None and task not in tasks:
                yield Violation(
                    f"{above}/{field}",
                    "wrong_task",
                    f"method {part['name']} has {field} for {' and '.join(tasks)} alone, and the "
                    f"task is {task}; leave {field} out",
                )
        for one in describe(part["name"]).logits_when if task in WITHOUT_CLASSES else ():
            if one.holds(part):
                yield Violation(
                    f"{above}/{one.field}",
                    "no_logits",
                    f"method {part['name']} with {one.field} {one.value} compares logits, which a "
                    f"backbone has none of, and the task is {task}; choose another {one.field}",
                )


def of_task_and_training(task: str, training: Json) -> Iterator[Violation]:
    """Yield which settings need one class for each image, where a task has masks or boxes."""
    if task in DENSE_TASKS:
        yield from _settings(_DENSE, training, f"the targets of {task}")
    if task in BOX_TASKS:
        yield from _settings(_BOXES, training, task)
    if task in WITHOUT_CLASSES:
        yield from _settings(_WITHOUT_CLASSES, training, f"task {task}")
    if task not in MASK_TASKS:
        yield from _settings(_WITHOUT_MASKS, training, task)


@dataclass(frozen=True)
class Setting:
    """A setting of the training that some jobs can have certain values of alone.

    In `message`, `{subject}` stands for what forbids the others, `{value}` for the setting's.
    """

    field: str
    code: str
    is_fitting: Callable[[Any], bool]  # Any: a JSON value
    message: str


def _settings(rows: Iterable[Setting], training: Json, subject: str) -> Iterator[Violation]:
    """Yield which settings do not fit; those that are at fault themselves are left out."""
    for row in rows:
        try:
            value = training[row.field]
        except FaultyFieldError:
            continue
        if not row.is_fitting(value):
            message = row.message.format(subject=subject, value=value)
            yield Violation(f"training/{row.field}", row.code, message)


def _is_left_out(value: object) -> bool:
    return value is None


def _is_one(value: int) -> bool:
    return value == 1


def _is_zero(value: float) -> bool:
    return value == 0


def _is_empty(value: Sequence[object]) -> bool:
    return not value


def _is_none(value: object) -> bool:
    return value == "none"


_DENSE = (
    Setting(
        "augmentation",
        "augmentation_refused",
        lambda value: value not in CLASS_AUGMENTATIONS,
        "{value} moves parts of an image, and {subject} would not follow; choose none, flip, "
        "standard or scale_jitter",
    ),
    Setting(
        "random_resized_crop",
        "augmentation_refused",
        _is_left_out,
        "random_resized_crop changes the proportions of an image, and {subject} would not follow; "
        "set it to null, or choose augmentation scale_jitter",
    ),
    Setting(
        "random_erasing",
        "augmentation_refused",
        _is_left_out,
        "random_erasing overwrites parts of an image, and {subject} would not follow; leave it out",
    ),
    Setting(
        "crop_ratio",
        "augmentation_refused",
        _is_left_out,
        "crop_ratio cuts the images that students are scored on, and {subject} would not follow; "
        "set it to null",
    ),
    Setting(
        "mixing",
        "mixing_refused",
        _is_left_out,
        "{subject} are not one class for each image, so images cannot be mixed; leave mixing out",
    ),
    Setting(
        "pseudo_labels",
        "pseudo_labels_refused",
        _is_left_out,
        "{subject} are not one class for each image, so that none can be missing; leave "
        "pseudo_labels out",
    ),
    Setting(
        "label_noise",
        "label_noise_refused",
        _is_zero,
        "{subject} are not one class for each image, so none can be replaced by another; set "
        "label_noise to 0",
    ),
    Setting(
        "task_loss",
        "task_loss_refused",
        lambda value: value["name"] == "cross_entropy",
        "bce asks of an image whether it shows each class, and {subject} are not one class for "
        "each image; leave task_loss out",
    ),
    Setting(
        "evaluate_sizes",
        "sizes_refused",
        _is_empty,
        "evaluate_sizes resizes the images that a student is scored on, and {subject} would not "
        "follow; leave it out",
    ),
)
_WITHOUT_CLASSES = (
    Setting(
        "pseudo_labels",
        "no_labels",
        _is_left_out,
        "in {subject} nothing is learned from labels, so that none need be made; leave "
        "pseudo_labels out",
    ),
    Setting(
        "label_noise",
        "no_labels",
        _is_zero,
        "in {subject} nothing is learned from labels, got label_noise {value:g}; set it to 0",
    ),
    Setting(
        "task_loss",
        "no_labels",
        lambda value: value["name"] == "cross_entropy",
        "in {subject} nothing is learned from labels, so that bce has no effect; leave task_loss "
        "out",
    ),
    Setting(
        "evaluate_sizes",
        "sizes_refused",
        _is_empty,
        "in {subject} scores compare test images with training images, which have one size; leave "
        "evaluate_sizes out",
    ),
)
_WITHOUT_MASKS = (
    Setting(
        "class_weights",
        "class_weights_refused",
        _is_none,
        "class_weights weigh the pixels of masks, which {subject} has none of, got {value}; leave "
        "class_weights out",
    ),
)
_BOXES = (
    Setting(
        "teacher_cache",
        "boxes_not_stored",
        _is_left_out,
        "the cache stores the teacher's logits and embeddings, and in {subject} methods read its "
        "maps, its head or its boxes; leave teacher_cache out",
    ),
)


def of_inputs(
    description: MethodDescription, *, has_teacher: bool, has_dataset: bool, has_initial: bool
) -> Iterator[Violation]:
    """Yield which inputs a method lacks."""
    if "initial" in description.needs and not has_initial:
        yield Violation(
            "student/initial",
            "required",
            f"method {description.name} trains a classifier on the features of a trained network: "
            "name one of the models as student.initial",
        )
    if "teacher" in description.needs and not has_teacher:
        yield Violation(
            "teacher",
            "required",
            f"method {description.name} needs a teacher: name one of the models",
        )
    if not has_dataset and not description.is_data_free:
        what = (
            "a labelled data set" if "labels" in description.needs else "the images of a data set"
        )
        yield Violation(
            "dataset",
            "required",
            f"method {description.name} needs {what}: name one, or choose a method of the family "
            "datafree",
        )


# -- a method and how it is trained ----------------------------------------------------------------


def of_method_and_training(description: MethodDescription, training: Json) -> Iterator[Violation]:
    """Yield what of a complete training a method cannot do with."""
    if description.is_data_free:
        subject = f"method {description.name} synthesizes its images"
        yield from _settings(_WITHOUT_DATA, training, subject)
    else:
        yield from _each((_mixing, _teacher_cache), description, training)
    if description.is_federated:
        yield from _settings(_WITH_CLIENTS, training, f"method {description.name} trains clients")
    rules = (_dot_and_labels, _task_loss, _pseudo_labels, _small_batch)
    yield from _each(rules, description, training)


_WITHOUT_DATA = (
    Setting(
        "mixing",
        "mixing_refused",
        _is_left_out,
        "{subject}, which are not mixed; set mixing to null",
    ),
    Setting(
        "pseudo_labels",
        "no_labels",
        _is_left_out,
        "{subject} with their classes; leave pseudo_labels out",
    ),
    Setting(
        "label_noise",
        "no_labels",
        _is_zero,
        "{subject} and has no labels that could be wrong; set label_noise to 0",
    ),
    Setting(
        "class_weights",
        "no_labels",
        _is_none,
        "{subject} and has no masks whose classes could be weighed; leave class_weights out",
    ),
    Setting(
        "teacher_cache",
        "images_not_fixed",
        _is_left_out,
        "{subject}, so that the teacher sees new ones all the time; leave teacher_cache out",
    ),
    Setting(
        "augmentation",
        "augmentation_refused",
        lambda value: value in SIMPLE_AUGMENTATIONS,
        "{subject}, for which {value} is not made; choose none or standard",
    ),
    Setting(
        "random_resized_crop",
        "augmentation_refused",
        _is_left_out,
        "{subject}, for which random_resized_crop is not made; set it to null",
    ),
    Setting(
        "random_erasing",
        "augmentation_refused",
        _is_left_out,
        "{subject}, for which random_erasing is not made; leave it out",
    ),
    Setting(
        "patience_epochs",
        "never_chosen",
        _is_left_out,
        "{subject}, and no image of a data set decides when its student is done; leave "
        "patience_epochs out, and limit epochs, max_steps or max_seconds",
    ),
    Setting(
        "keep_best_epochs",
        "never_chosen",
        _is_one,
        "{subject}, and delivers the last epoch, with none beside it; leave keep_best_epochs out",
    ),
    Setting(
        "precision",
        "precision_refused",
        lambda value: value != "float16",
        "{subject} by gradients that float16 cannot hold; choose auto, bfloat16 or float32",
    ),
)


_WITH_CLIENTS = (
    Setting(
        "ema_decay",
        "ema_refused",
        _is_left_out,
        "{subject} for a round at a time, of which no moving average is kept; set ema_decay to "
        "null",
    ),
    Setting(
        "keep_best_epochs",
        "keep_best_refused",
        _is_one,
        "{subject}, and keeps the best round alone; leave keep_best_epochs out",
    ),
    Setting(
        "compile",
        "compile_refused",
        lambda value: value != "on",
        "{subject} at once or in turn, uncompiled; choose compile off or auto",
    ),
    Setting(
        "precision",
        "precision_refused",
        lambda value: value != "float16",
        "{subject} anew each round, which leaves the loss scaling of float16 no time; choose auto, "
        "bfloat16 or float32",
    ),
)


def _mixing(description: MethodDescription, training: Json) -> Iterator[Violation]:
    if training["mixing"] is not None and not description.accepts_mixed:
        yield Violation(
            "training/mixing",
            "mixing_refused",
            f"method {description.name} needs one true class for each image, so images cannot be "
            "mixed; leave mixing out or choose a method without that need, such as kd",
        )
    elif training["mixing"] is not None and description.wants_strong:
        yield Violation(
            "training/mixing",
            "strong_not_mixed",
            f"method {description.name} compares two views of each image, of which mixing changes "
            "one; leave mixing out",
        )


def _teacher_cache(description: MethodDescription, training: Json) -> Iterator[Violation]:
    field, name = "training/teacher_cache", description.name
    if training["teacher_cache"] is None:
        return
    if "teacher" not in description.needs:
        yield Violation(
            field,
            "no_teacher",
            f"method {name} has no teacher whose outputs could be kept; leave teacher_cache out",
        )
    elif MAPS & set(description.teacher_shows):
        yield Violation(
            field,
            "maps_not_stored",
            f"the cache stores the teacher's logits and embeddings, and method {name} needs its "
            "feature maps; leave teacher_cache out",
        )
    elif description.wants_strong:
        yield Violation(
            field,
            "strong_not_stored",
            f"method {name} shows the teacher a second view of each image, which the cache does "
            "not store; leave teacher_cache out",
        )


def _dot_and_labels(description: MethodDescription, training: Json) -> Iterator[Violation]:
    if training["optimizer"]["name"] == "dot" and not description.has_task:
        yield Violation(
            "training/optimizer/name",
            "optimizer_refused",
            f"dot keeps one momentum for the labels, and method {description.name} does not learn "
            "from them; choose sgd, adamw or lamb",
        )


def _task_loss(description: MethodDescription, training: Json) -> Iterator[Violation]:
    if training["task_loss"]["name"] == "cross_entropy" or description.accepts_bce:
        return
    yield Violation(
        "training/task_loss",
        "task_loss_refused",
        f"method {description.name} has a loss of its own for the labels, or none, so that bce "
        "would have no effect on it; leave task_loss out, or choose another method, such as kd",
    )


def _pseudo_labels(description: MethodDescription, training: Json) -> Iterator[Violation]:
    if training["pseudo_labels"] is not None and "teacher" not in description.needs:
        yield Violation(
            "training/pseudo_labels",
            "no_teacher",
            f"method {description.name} has no teacher that could give labels; leave pseudo_labels "
            "out, or choose a method with a teacher",
        )


def _small_batch(description: MethodDescription, training: Json) -> Iterator[Violation]:
    batch_size = training["batch_size"]
    if batch_size < description.smallest_batch:
        yield Violation(
            "training/batch_size",
            "batch_too_small",
            f"method {description.name} needs at least {description.smallest_batch} images in a "
            f"batch, got batch_size {batch_size}",
        )


# -- networks --------------------------------------------------------------------------------------

PRETRAINED = ("pretrained", "weights", "weights_backbone", "checkpoint_path", "pretrained_cfg")
"""Arguments by which libraries load weights, from the internet or from a file."""


def of_arguments(reference: str, arguments: Json) -> Iterator[Violation]:
    """Yield that a network is asked to fetch weights, if so; `field` is within the arguments."""
    for name in PRETRAINED:
        if name in arguments:
            yield Violation(
                name,
                "pretrained_refused",
                f"{reference} has no argument {name!r} here: weights are never fetched. Download "
                "them, upload them as a model (`retort upload model`), and name that model in "
                "student.initial, or as the teacher",
            )


def of_weights_tag(reference: str) -> Iterator[Violation]:
    """Yield that the weights which a name of timm asks for are not loaded, if it does."""
    library, _, name = reference.partition("/")
    network, _, tag = name.partition(".")
    if library == "timm" and tag:
        yield Violation(
            "student/network",
            "weights_tag_ignored",
            f"{reference} names the published weights {tag!r}, which are not fetched: it starts as "
            f"timm/{network} with random weights, or with those of student.initial",
        )


def of_smallest_side(role: str, network: NetworkDescription) -> Iterator[Violation]:
    """Yield that a network takes no images as small as these, if so; `role`: student or teacher."""
    side = network.smallest_side
    if side is not None and network.sides is not None and min(network.sides) < side:
        height, width = network.sides
        yield Violation(
            field_of(role),
            "image_too_small",
            f"{network.reference} needs images of at least {side}x{side}, got {height}x{width}",
        )


def of_sizes_without_dataset(training: Json, *, has_dataset: bool) -> Iterator[Violation]:
    """Yield that there are no images for `evaluate_sizes`, if so."""
    return _each((_sizes_without_dataset,), training, has_dataset)


def _sizes_without_dataset(training: Json, has_dataset: bool) -> Iterator[Violation]:
    if training["evaluate_sizes"] and not has_dataset:
        yield Violation(
            "training/evaluate_sizes",
            "no_dataset",
            "evaluate_sizes scores the student on the test split of a data set, and the job has "
            "none; name one, or leave evaluate_sizes out",
        )


def of_evaluated_sizes(training: Json, student: NetworkDescription) -> Iterator[Violation]:
    """Yield at which of `evaluate_sizes` a student cannot be scored, as far as that is known."""
    return _each((_evaluated_sizes,), training, student)


def _evaluated_sizes(training: Json, student: NetworkDescription) -> Iterator[Violation]:
    field = "training/evaluate_sizes"
    for side in training["evaluate_sizes"]:
        if student.takes_any_size is False:
            yield Violation(field, "fixed_size", evaluated_size(student.reference, side))
        elif student.smallest_side is not None and side < student.smallest_side:
            yield Violation(
                field,
                "image_too_small",
                f"{student.reference} needs images of at least {student.smallest_side}x"
                f"{student.smallest_side}, and evaluate_sizes asks for {side}; leave that out",
            )


def evaluated_size(reference: str, side: int) -> str:
    """Return the sentence about a student that takes no images of such a size."""
    return (
        f"evaluate_sizes asks for images of {side}x{side}, and {reference} takes images of the "
        "size alone that it was built for; leave that size out, or choose another student"
    )


def of_network_task(role: str, network: NetworkDescription, task: str) -> Iterator[Violation]:
    """Yield that a network is for another task, if so."""
    if network.task is None or network.task in (task, _taken_from(task)):
        return
    if network.task in WITHOUT_CLASSES and task == _taken_from(network.task):
        if role == START_MODEL:
            return  # its classifier is drawn anew
        yield Violation(
            field_of(role),
            "no_classifier",
            f"the {role} {network.reference} has no classifier, and the task is {task}; set task "
            f"to {network.task}, or choose a {role} with classes",
        )
    else:
        yield Violation(
            field_of(role),
            "wrong_task",
            f"the {role} {network.reference} is for {network.task}, and the task is {task}; choose "
            f"another {role}",
        )


def _taken_from(task: str) -> str | None:
    """Return the task whose networks and data sets a task takes besides its own, if any."""
    return TAKEN_FROM.get(task)  # type: ignore[call-overload,no-any-return]  # any name may be asked for


def of_unused_classifier(role: str, network: NetworkDescription, task: str) -> Iterator[Violation]:
    """Yield what a user should know of a classifier that is not used, or not there, if so."""
    if network.task in WITHOUT_CLASSES and task == _taken_from(network.task):
        yield Violation(
            field_of(role),
            "start_without_classifier",
            f"the {role} {network.reference} has no classifier: the student's starts with random "
            "weights",
        )
    elif network.task is not None and network.task == _taken_from(task):
        yield Violation(
            field_of(role),
            "classifier_not_used",
            f"the {role} {network.reference} is for {network.task}: its classifier is not used, "
            f"since the task is {task}",
        )


def of_student_classes(task: str, classes: int) -> Iterator[Violation]:
    """Yield that a student is to have classes in a task without any, if so."""
    if task in WITHOUT_CLASSES and classes:
        yield Violation(
            "student/classes",
            "class_count",
            f"the task {task} delivers a network without a classifier, and student.classes is "
            f"{classes}; set it to 0",
        )


def of_features(
    description: MethodDescription, role: str, network: NetworkDescription, task: str | None
) -> Iterator[Violation]:
    """Yield what a method wants to see of a network that the network does not show."""
    if network.shows is None:
        return
    others = f"a method that compares {'embeddings' if task in WITHOUT_CLASSES else 'logits'}"
    field, way_out = field_of(role), f"choose another {role}"
    if network.limits == teachers.SEVERAL_LIMITS:
        field, way_out = "teachers", "name one of them as teacher"
        others = f"choose {others}"
    for name in description.required_features(role, network.task):
        if name not in network.shows:
            alone = task in WITHOUT_CLASSES and (name == "embedding" or field == "teachers")
            yield Violation(
                field,
                "not_shown",
                f"method {description.name} needs {FEATURES[name]}, and the {role} "
                f"{network.reference} shows none{_because(network)}; {way_out}"
                f"{'' if alone else f', or {others}'}",
            )


def of_chosen_features(
    description: MethodDescription, method: Json, role: str, network: NetworkDescription
) -> Iterator[Violation]:
    """Yield what hyper-parameters ask to see of a network that the network does not show."""
    return _each((_chosen_features,), description, method, role, network)


def _chosen_features(
    description: MethodDescription, method: Json, role: str, network: NetworkDescription
) -> Iterator[Violation]:
    if network.shows is None:
        return
    for chosen in description.chosen_shows:
        wanted = chosen.role == role and chosen.when.holds(method)
        if wanted and chosen.feature not in network.shows:
            yield Violation(
                field_of(role),
                "not_shown",
                f"method {description.name} with {chosen.when.field} {chosen.when.value} needs "
                f"{FEATURES[chosen.feature]}, and the {role} {network.reference} shows none"
                f"{_because(network)}; choose another {role}, or another {chosen.when.field}",
            )


def of_batch_norm(
    description: MethodDescription, method: Json, teacher: NetworkDescription
) -> Iterator[Violation]:
    """Yield that a method reads batch norms that the teacher does not have, if so."""
    return _each((_batch_norm,), description, method, teacher)


def _batch_norm(
    description: MethodDescription, method: Json, teacher: NetworkDescription
) -> Iterator[Violation]:
    if teacher.has_batch_norm is not False or not description.needs_batch_norm(method):
        return
    ways_out = "choose a method that needs none, such as dafl"
    if teacher.reference == teachers.GRAPH:
        ways_out = (
            "exporters fold them into convolutions, so export the graph with its batch norms, or "
            + ways_out
        )
    if description.norm_weights:
        ways_out = f"set {_listed(description.norm_weights)} to 0, or {ways_out}"
    yield Violation(
        "teacher",
        "no_batch_norm",
        f"method {description.name} reads the teacher's batch norms, and the teacher "
        f"{teacher.reference} has none; {ways_out}",
    )


def of_equal_classes(
    description: MethodDescription, student: NetworkDescription, teacher: NetworkDescription
) -> Iterator[Violation]:
    """Yield that networks whose logits are compared tell apart other classes, if so."""
    if "equal_classes" in description.needs:
        yield from equal_classes(description.name, student.classes, teacher.classes)


def equal_classes(method: str, student: int | None, teacher: int | None) -> Iterator[Violation]:
    """Yield that two networks tell apart different numbers of classes, if so."""
    if None not in (student, teacher) and student != teacher:
        yield Violation(
            "teacher",
            "unequal_classes",
            f"method {method} compares logits, so teacher and student need equal classes; the "
            f"teacher has {teacher}, the student {student}",
        )


def of_classes(description: MethodDescription, classes: int | None) -> Iterator[Violation]:
    """Yield that a method needs more classes than the student tells apart, if so."""
    if classes is not None and classes < description.smallest_classes:
        yield Violation(
            "method/name",
            "too_few_classes",
            f"method {description.name} needs at least {description.smallest_classes} classes, got "
            f"{classes}; choose another method",
        )


def of_storage(method: Json, *, is_encoded: bool) -> Iterator[Violation]:
    """Yield that a method does not read pictures that are stored encoded, if so."""
    if is_encoded and "federation" in method:
        yield Violation(
            "dataset",
            "dataset_encoded",
            f"method {method['name']} divides images among clients, which are held in memory, and "
            "the data set's pictures are stored encoded; upload it anew with input "
            '{"storage": "decoded"}',
        )


def of_labels(
    description: MethodDescription,
    training: Json,
    *,
    splits: Mapping[str, int],
    labelled: Mapping[str, int] | None,
    has_teacher: bool,
) -> Iterator[Violation]:
    """Yield what cannot be learned from a data set of which some images have no label.

    `splits` has the images of each split, `labelled` those with a label, None where all have one.
    """
    if description.is_data_free:
        return
    known = splits if labelled is None else labelled
    count, without = splits.get("train", 0), splits.get("train", 0) - known.get("train", 0)
    if not without:
        yield from _each((_useless_pseudo_labels,), training)
    else:
        missing = f"{without:,} of the {count:,} training images have no label"
        yield from _each((_learned_labels,), description, training, missing, without == count)
        yield from _each((_noise_without_labels,), training, missing)
    for name in ("validation", "test"):
        if labelled is not None and splits.get(name) and not labelled[name] and not has_teacher:
            yield Violation(
                "dataset",
                "labels_missing",
                f"no image of the {name} split has a label, and there is no teacher whose answers "
                "could stand for them; name a teacher, or a data set with labels there",
            )


def _learned_labels(
    description: MethodDescription, training: Json, missing: str, has_none: bool
) -> Iterator[Violation]:
    if description.is_federated:
        yield Violation(
            "dataset",
            "labels_missing",
            f"clients of method {description.name} learn from labels, and {missing}; choose a data "
            "set whose training images all have one",
        )
    elif has_none and "teacher" not in description.needs:
        yield Violation(
            "dataset",
            "labels_missing",
            f"method {description.name} learns from labels alone, and no training image has one; "
            "choose a method with a teacher, such as kd",
        )
    elif description.reads_labels and training["pseudo_labels"] != {"threshold": 0}:
        yield Violation(
            "method/name",
            "labels_missing",
            f"method {description.name} needs the class of every image, and {missing}; choose a "
            "method that does not, such as kd, or take all of the teacher's classes: set "
            "training.pseudo_labels.threshold to 0",
        )


def _noise_without_labels(training: Json, missing: str) -> Iterator[Violation]:
    if training["label_noise"]:
        yield Violation(
            "training/label_noise",
            "labels_missing",
            f"label_noise replaces labels, and {missing}; set it to 0",
        )


def _useless_pseudo_labels(training: Json) -> Iterator[Violation]:
    if training["pseudo_labels"] is not None:
        yield Violation(
            "training/pseudo_labels",
            "no_effect",
            "pseudo_labels are for images without a label, and every training image has one; "
            "leave them out",
        )


def of_label_noise(training: Json, classes: int | None) -> Iterator[Violation]:
    """Yield that there is no other class for a wrong label, if so."""
    return _each((_label_noise,), training, classes)


def _label_noise(training: Json, classes: int | None) -> Iterator[Violation]:
    if classes is not None and classes < 2 and training["label_noise"] > 0:
        yield Violation(
            "training/label_noise",
            "one_class",
            "label_noise needs a second class to choose; set it to 0",
        )


def of_class_weights(training: Json, classes: int | None) -> Iterator[Violation]:
    """Yield that there are not as many weights as classes, if so."""
    return _each((_class_weights,), training, classes)


def _class_weights(training: Json, classes: int | None) -> Iterator[Violation]:
    weights = training["class_weights"]
    if classes is not None and not isinstance(weights, str) and len(weights) != classes:
        yield Violation(
            "training/class_weights",
            "wrong_length",
            f"class_weights need one number for each class of the data set ({classes}), in its "
            f"order, got {len(weights)}",
        )


def of_generator(
    description: MethodDescription, method: Json, teacher: NetworkDescription
) -> Iterator[Violation]:
    """Yield that a generator cannot make images of the teacher's size, if so."""
    return _each((_generator,), description, method, teacher)


def _generator(
    description: MethodDescription, method: Json, teacher: NetworkDescription
) -> Iterator[Violation]:
    if not description.is_data_free or teacher.sides is None:
        return
    name = method["synthesis"].get("generator")
    if name is not None:
        yield from generator_and_sides(name, teacher.sides)


def generator_and_sides(name: str, sides: tuple[int, int]) -> Iterator[Violation]:
    """Yield that a generator's stride does not divide both sides of its images, if so."""
    stride = GENERATOR_STRIDES[name]
    wrong = next((side for side in sides if side % stride), None)
    if wrong is None:
        return
    fitting = [
        other
        for other, divisor in GENERATOR_STRIDES.items()
        if not any(side % divisor for side in sides)
    ]
    advice = (
        f"generators that fit: {', '.join(fitting)}"
        if fitting
        else "no generator fits; choose a method that moves pixels, such as deepinversion"
    )
    yield Violation(
        "method/synthesis/generator",
        "generator_does_not_fit",
        f"generator {name} makes images whose sides are multiples of {stride}, and the teacher's "
        f"have {sides[0]} x {sides[1]} pixels: {stride} does not divide {wrong}; {advice}",
    )


# -- kinds of teachers -----------------------------------------------------------------------------


def of_only_teacher(role: str, reference: str) -> Iterator[Violation]:
    """Yield that a graph or a table of predictions is to be trained, if so."""
    if reference in teachers.ONLY_TEACHERS:
        yield Violation(
            field_of(role),
            "only_teaches",
            f"the {role} cannot be {reference}: {teachers.KINDS[teachers.kind_of(reference)]} can "
            "teach, and is never trained; choose a network, such as retort/resnet8",
        )


def of_gradients(
    description: MethodDescription, teacher: NetworkDescription
) -> Iterator[Violation]:
    """Yield that a method needs gradients through a teacher that gives none, if so."""
    if description.is_data_free and teacher.gives_gradients is False:
        yield Violation(
            "teacher",
            "no_gradients",
            f"method {description.name} follows gradients through its teacher to the images, and "
            f"the teacher {teacher.reference} gives none{_because(teacher)}; choose another "
            "teacher, or a method that learns from a data set",
        )


def of_teachers(*, has_teacher: bool, count: int, has_weighting: bool) -> Iterator[Violation]:
    """Yield how `teacher`, `teachers` (so many) and `teacher_weighting` contradict each other."""
    if has_teacher and count:
        yield Violation(
            "teachers",
            "teacher_and_teachers",
            f"teacher names one model and teachers {count}: put all of them into teachers, and "
            "leave teacher out",
        )
    if count == 1:
        yield Violation(
            "teachers",
            "one_of_several",
            "teachers names 1 model, and is for several: name it as teacher, and leave teachers "
            "out",
        )
    if count > teachers.MOST_TEACHERS:
        yield Violation(
            "teachers",
            "too_many_teachers",
            f"teachers names {count} models, and at most {teachers.MOST_TEACHERS} teach together, "
            "since all are in memory at once; leave some out",
        )
    if has_weighting and count < 2:
        yield Violation(
            "teacher_weighting",
            "no_effect",
            "teacher_weighting says how several teachers become one, and there is none but one; "
            "leave it out, or name several as teachers",
        )


def of_several_teachers(
    description: MethodDescription, references: Sequence[str]
) -> Iterator[Violation]:
    """Yield why a method cannot learn from several teachers, or from these together."""
    if len(references) < 2:
        return
    if description.is_data_free:
        yield Violation(
            "teachers",
            "several_teachers",
            f"method {description.name} makes images for one teacher, got {len(references)}; name "
            "one as teacher, or choose a method that learns from a data set",
        )
    for place, reference in enumerate(references):
        if reference == teachers.PREDICTIONS:
            yield Violation(
                f"teachers/{place}",
                "predictions_alone",
                "stored predictions teach alone; average them with those of the other teachers "
                "before the upload, and name the result as teacher",
            )


def of_predictions(
    description: MethodDescription, training: Json, teacher: NetworkDescription
) -> Iterator[Violation]:
    """Yield what a job shows its student that its teacher's predictions were not made for."""
    if teacher.predicted is not None and "teacher" in description.needs:
        yield from _predicted_method(description)
        yield from _each((_predicted_images, _predicted_views), training, teacher.predicted)


def _predicted_method(description: MethodDescription) -> Iterator[Violation]:
    if description.wants_strong:
        yield Violation(
            "teacher",
            "predictions_of_one_view",
            f"method {description.name} asks the teacher about a second view of each image, which "
            "was not predicted; choose another teacher, or another method",
        )


def _predicted_images(training: Json, predicted: Json) -> Iterator[Violation]:
    for field in ("random_resized_crop", "random_erasing", "crop_ratio"):
        if training[field] is not None:
            yield Violation(
                f"training/{field}",
                "predictions_augmented",
                "the teacher's predictions are of the images as the data set has them, or of views "
                f"that training.{field} would change; set it to null",
            )
    if training["mixing"] is not None:
        yield Violation(
            "training/mixing",
            "predictions_mixed",
            "the teacher's predictions are of single images, and mixing shows others; leave mixing "
            "out",
        )
    if predicted.get("views", 1) > 1:
        return
    if training["augmentation"] != "none":
        yield Violation(
            "training/augmentation",
            "predictions_augmented",
            "the teacher's predictions are of the images as they are stored, and augmentation "
            f"{training['augmentation']} shows others; set training.augmentation to none, or "
            "upload predictions of several views of each image",
        )
    if training["teacher_cache"] is not None:
        yield Violation(
            "training/teacher_cache",
            "predictions_are_stored",
            "the teacher's predictions are stored already, one for each image; leave teacher_cache "
            "out",
        )


def _predicted_views(training: Json, predicted: Json) -> Iterator[Violation]:
    # A view follows from seed, image and number: only with the same is it what was predicted.
    views = predicted.get("views", 1)
    if views == 1:
        return
    cache = training["teacher_cache"]
    found = None if cache is None else cache["views"]
    if found != views:
        yield Violation(
            "training/teacher_cache",
            "predicted_views",
            f"the teacher's predictions are of {views} views of each image, and "
            f"training.teacher_cache.views is {found}; set it to {views}",
        )
    for field in ("seed", "augmentation"):
        if predicted.get(field) != training[field]:
            yield Violation(
                f"training/{field}",
                "predicted_views",
                f"the teacher's predictions are of views with {field} {predicted.get(field)}, and "
                f"training.{field} is {training[field]}; set it to {predicted.get(field)}",
            )
    if training["flip"] is not None:
        yield Violation(
            "training/flip",
            "predicted_views",
            "the teacher's predictions are of views that are mirrored as the data set says, and "
            f"training.flip is {training['flip']}; leave flip out",
        )


def of_predicted_dataset(predicted: Json, reference: str, digest: str) -> Iterator[Violation]:
    """Yield that predictions are of the images of another data set, if so."""
    if predicted.get("digest") not in (None, digest):
        yield Violation(
            "teacher",
            "other_dataset",
            f"the teacher's predictions are of the images of {predicted['dataset']} "
            f"({predicted['digest']}), and the job's data set is {reference} ({digest}); name that "
            "data set, or upload predictions of this one (retort upload predictions)",
        )


def _because(network: NetworkDescription) -> str:
    return f" ({network.limits})" if network.limits else ""


# -- networks and a data set -----------------------------------------------------------------------


def of_dataset_task(dataset_task: str, task: str) -> Iterator[Violation]:
    """Yield that a data set is for another task, if so."""
    if dataset_task not in (task, _taken_from(task)):
        yield Violation(
            "dataset",
            "wrong_task",
            f"the data set is for {dataset_task}, and the task is {task}; choose another data set",
        )


def of_dataset_classes(
    role: str, network: NetworkDescription, classes: int | None, task: str | None
) -> Iterator[Violation]:
    """Yield that a network tells apart other classes than a data set has, if so."""
    if task in WITHOUT_CLASSES or None in (network.classes, classes):
        return
    if network.classes != classes:
        yield Violation(
            field_of(role),
            "class_count",
            f"the {role} {network.reference} has {network.classes} classes and the data set has "
            f"{classes}; choose a {role} made for this data set",
        )


def of_dataset_channels(
    role: str, expected: int | None, channels: int | None
) -> Iterator[Violation]:
    """Yield that a network that expects other channels cannot see a data set's images, if so."""
    if None in (expected, channels):
        return
    if expected != channels and (channels, expected) != (1, 3):
        yield Violation(
            field_of(role),
            "channels",
            f"the {role} expects {expected} channels and the data set has {channels}; only "
            "1 to 3 can be adapted, so choose another network or data set",
        )


def field_of(role: str) -> str:
    """Return the field that names a network; of several teachers, `teacher 2` is teachers/1."""
    if role.startswith(teachers.ROLE):
        return f"teachers/{int(role.removeprefix(teachers.ROLE)) - 1}"
    return {"student": "student/network", START_MODEL: "student/initial"}.get(role, role)


def _listed(names: tuple[str, ...]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
