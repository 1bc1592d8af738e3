"""Write a student's model card: what it is, where it comes from, its scores, how to load it.

Markdown with the front matter that model hubs read. All content comes from database rows and from
the engine's result; the card states nothing that was not measured.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from models_registry import catalog
from models_registry.artifacts import datasets, models, references
from models_registry.jobs.spec import JobSpec
from models_registry.persistence import tables
from workers import card_program
from workers.distill.config import teachers
from workers.distill.config.descriptions import PRIMARY_METRICS
from workers.distill.config.result import (
    FederationSummary,
    LabelSummary,
    RunResult,
    SynthesisSummary,
    Timing,
)

# Free-form JSON: what the engine reported, a spec as stored.
Json = dict[str, Any]

_MOST_CLASSES = 20
_PICTURES = (
    ("accuracy.png", "Accuracy while training"),
    ("miou.png", "Mean IoU while training"),
    ("ap.png", "AP while training"),
    ("losses.png", "Loss terms while training"),
    ("agreement.png", "Agreement of student and teacher while training"),
    ("synthesis-losses.png", "Loss terms of synthesis"),
    ("buffer.png", "The replay buffer after each epoch"),
    ("class-histogram.png", "Classes that the teacher predicts for the synthetic images"),
    ("difficulty.png", "Confidence of the teacher on the synthetic images"),
    ("priority.png", "How often images are drawn, and how far the student is from the teacher"),
    ("time-split.png", "Time for synthesis and for training on its images"),
    ("rounds.png", "Accuracy of the student and of the clients, by rounds and by bytes"),
    ("partition.png", "Images of each class that each client has"),
    ("entropy.png", "Entropy of what the server sends back"),
    ("clients.png", "The clients' own models on the test split"),
    ("cka.png", "Similarity of the features to the teacher's while training (CKA)"),
    ("overlap.png", "Overlap of predicted and true areas of each class"),
    ("precision-recall.png", "Precision by recall of the detections"),
    ("average-precision.png", "Average precision of each class"),
    ("average-precision-by-size.png", "Average precision by the size of the boxes"),
    ("detection-errors.png", "Kinds of errors of the detections"),
    ("examples.png", "Test images, and what teacher and student say of them"),
    ("confusion.png", "Confusion of the student: predicted by true class"),
    ("correlation.png", "Correlation of logits, compared with the teacher"),
    ("calibration.png", "Calibration: accuracy by confidence"),
    ("tsne.png", "Features of test images, by t-SNE"),
    ("pca.png", "Features of test images, by PCA"),
)
_SHEET = re.compile(r"sheet-epoch-(\d+)\.png")


@dataclass(frozen=True)
class DataFacts:
    """What a card says about the data set."""

    reference: str
    digest: str | None
    card: str
    splits: dict[str, int]
    notes: Sequence[str] = ()
    source: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Of one that refers to files elsewhere: `source`, their address, and `source_digest`."""

    @classmethod
    def of(cls, row: tables.DatasetVersionRow) -> "DataFacts":
        """Return the facts from a row that belongs to a session."""
        digest = f"sha256:{row.sha256}" if row.sha256 else None
        return cls(
            datasets.reference_of(row),
            digest,
            row.card,
            row.splits,
            row.notes or (),
            row.lineage if row.source else {},
        )


@dataclass(frozen=True)
class TeacherFacts:
    """What a card says about the teacher."""

    reference: str
    digest: str
    network: str
    notes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Return what kind of teacher it is, in words."""
        return teachers.KINDS[teachers.kind_of(self.network)]

    @classmethod
    def of(cls, row: tables.ModelVersionRow) -> "TeacherFacts":
        """Return the facts from a row that belongs to a session."""
        notes = tuple(row.notes or ())
        return cls(models.reference_of(row), f"sha256:{row.sha256}", row.network, notes)


@dataclass(frozen=True)
class JobFacts:
    """A job and its inputs, as the card describes them."""

    job_id: str
    attempt: int
    spec: JobSpec
    dataset: DataFacts | None
    teacher: TeacherFacts | None
    warnings: tuple[str, ...] = ()
    """What submission and engine have warned of."""
    several: tuple[TeacherFacts, ...] = ()
    """The teachers of a job with several, which has no `teacher`."""

    @property
    def teachers(self) -> tuple[TeacherFacts, ...]:
        """Return all teachers: one, several, or none."""
        return self.several if self.teacher is None else (self.teacher,)


def write(
    origin: JobFacts, *, description: Json, result: RunResult, pictures: Collection[str]
) -> str:
    """Return the text of the card.

    `description` is the content of the student's config.json. `pictures` are the paths, relative to
    the card, of the report's files that are stored.
    """
    sections = (
        _front_matter(origin, description, result),
        _summary(origin, description, result),
        _scores(origin, description, result),
        _warnings(origin),
        _data(origin, description, result),
        _training(origin, result),
        _size_and_speed(result),
        _limits(origin, description, result),
        _use(origin, description),
        _lineage(origin, result),
        _report(pictures),
    )
    return "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def _front_matter(origin: JobFacts, description: Json, result: RunResult) -> list[str]:
    words = _TASKS[description["task"]]
    kind = words.pipeline_tag
    # JSON is YAML, and needs no rules for quoting.
    fields = {
        "license": "unknown",
        "library_name": _library(description["network"]),
        "pipeline_tag": kind,
        "tags": [kind, "knowledge-distillation", origin.spec.method["name"]],
    }
    score, measured_on = result.scores.get("student"), origin.spec.dataset
    by_teacher = result.labels is not None and result.labels.scored_by.get("test") == "teacher"
    # How far it agrees with its teacher is no accuracy, by which a hub would list it.
    if score is not None and measured_on is not None and not by_teacher:
        measured = {
            "task": {"type": kind},
            "dataset": {
                "name": measured_on,
                "type": references.parse(measured_on).name,
                "split": "test",
            },
            "metrics": [
                {"type": name, "value": round(score[key], 6)}
                for key, name in words.hub_metrics.items()
                if isinstance(score.get(key), int | float)
            ],
        }
        name = origin.spec.student.register_as or "student"
        fields["model-index"] = [{"name": name, "results": [measured]}]
    return ["---", *(f"{key}: {json.dumps(value)}" for key, value in fields.items()), "---"]


def _summary(origin: JobFacts, description: Json, result: RunResult) -> list[str]:
    spec, size, words = origin.spec, description["input"], _TASKS[description["task"]]
    source = _distilled_from(origin)
    learned_on = f"on `{spec.dataset}`"
    if _is_data_free(result):
        learned_on = "on synthetic images, without a training image"
    elif result.federation is not None:
        learned_on = f"in a federation of {result.federation.clients:,} clients"
    return [
        f"# {spec.student.register_as}",
        "",
        f"{words.noun}, `{description['network']}` with "
        f"{result.parameters['student']:,} parameters,{source} by the method "
        f"`{spec.method['name']}` {learned_on}. It takes images of "
        f"{size['channels']} x {size['height']} x {size['width']} (channels, height, width) and "
        f"{words.does_with(len(description['classes']))}.",
    ]


def _distilled_from(origin: JobFacts) -> str:
    named = [
        f"`{one.reference}`" + (f" ({one.kind})" if one.network in teachers.ONLY_TEACHERS else "")
        for one in origin.teachers
    ]
    if not named:
        return " trained alone"
    if len(named) == 1:
        return f" distilled from {named[0]}"
    return f" distilled from {len(named)} teachers ({', '.join(named)})"


def _is_data_free(result: RunResult) -> bool:
    return result.synthesis is not None


def _scores(origin: JobFacts, description: Json, result: RunResult) -> list[str]:
    scores = {name: score for name, score in result.scores.items() if score is not None}
    if "student" not in scores:
        return ["## Scores", "", "Not measured: the job had no data set to evaluate on."]
    names = {
        "teacher": "teacher",
        "student": "**student (this model)**",
    }
    words = _TASKS[description["task"]]
    names["baseline"] = words.baseline
    chosen = f"The epoch was chosen by validation {words.metric}: {result.best_epoch} of "
    chosen += f"{result.epochs}."
    if _is_data_free(result):
        names["baseline"] = "baseline (same student, on noise)"
        chosen = _not_chosen(result, words.metric)
    elif result.federation is not None:
        names["baseline"] = "baseline (best of the clients, each alone)"
        chosen = chosen.replace("epoch", "round")
    beside = [f"`{one.path}` ({one.score:.2%})" for one in result.kept_epochs if one.path]
    if beside:
        chosen += f" The next best are kept as files: {', '.join(beside)}."
    samples = scores["student"]["samples"]
    head = [
        "## Scores",
        "",
        f"On the {samples:,} images of the test split of `{origin.spec.dataset}`, which was used "
        f"once, after training. {chosen}",
        "",
    ]
    named = [(names[name], score) for name, score in scores.items()]
    sized = [
        f"{one.height} x {one.width} pixels: {one.scores['accuracy']:.2%}"
        for one in result.scores_by_size
    ]
    if sized:
        named_sizes = f"In other sizes of the images, its accuracy is: {', '.join(sized)}."
        head = [*head, named_sizes, ""]
    closing = [] if result.conclusion is None else ["", f"**In short:** {result.conclusion}"]
    return [*head, *words.scores(named), *closing]


def _warnings(origin: JobFacts) -> list[str]:
    if not origin.warnings:
        return []
    return ["## Warnings", "", *(f"- {_plain(told)}" for told in origin.warnings)]


def _not_chosen(result: RunResult, metric: str) -> str:
    """Return that the last epoch was delivered, with its validation score and the best one."""
    text = "The student is that of the last epoch; it was not chosen by validation."
    validation = result.validation
    if validation is None or validation.last is None or validation.best is None:
        return text
    return (
        f"{text} Its validation {metric} is {validation.last:.2%}, the best was "
        f"{validation.best:.2%} after epoch {validation.best_epoch}."
    )


def _data(origin: JobFacts, description: Json, result: RunResult) -> list[str]:
    names = [_plain(str(name)) for name in description["classes"]]
    more = len(names) - _MOST_CLASSES
    listed = ", ".join(names[:_MOST_CLASSES]) + (f" and {more} more" if more > 0 else "")
    if result.synthesis is not None:
        where = list(_synthetic(origin, result.synthesis, result.training_images_read))
    elif origin.dataset is None:
        where = []
    else:
        where = list(_facts_of(origin.dataset))
    if result.federation is not None:
        where += _federated(result.federation)
    if result.labels is not None:
        where += _labels(result.labels, _TASKS[description["task"]].agreement)
    return [
        "## Data",
        "",
        *where,
        f"- Classes: {listed or 'none, since it has no classifier'}",
        *_pixels(description),
    ]


def _labels(labels: LabelSummary, agreement: str) -> Iterator[str]:
    """Yield which images had labels, where some had none; `agreement` is what scores then are."""
    if labels.pseudo or labels.unlabelled:
        pseudo = f", {labels.pseudo:,} got the class that the teacher is sure of"
        yield (
            f"- Labels of training images: {labels.labelled:,} had one"
            f"{pseudo if labels.pseudo else ''}, {labels.unlabelled:,} had none and counted in the "
            "distillation alone"
        )
    for split, count in labels.left_out.items():
        if count:
            yield f"- {count:,} images of the {split} split had no label and were not scored"
    for split, whose in labels.scored_by.items():
        if whose == "teacher":
            yield (f"- No image of the {split} split had a label: {agreement}")


def _pixels(description: Json) -> Iterator[str]:
    """Yield what is done to images before the network sees them."""
    given = description["preprocessing"]
    height, width = given["picture_size"]
    if given["crop_mode"] == "center":
        share = given["crop_pct"]
        covered = "it" if share == 1 else f"{int(height / share)} x {int(width / share)}"
        fitted = f"scaled until they cover {covered} and cut at their centre"
    else:
        fitted = f"scaled until they fit into it and padded with {given['pad_value']}"
    how = f"({given['interpolation']} interpolation)"
    which = "Pictures of another size than" if given["crop_pct"] == 1 else "Pictures, for"
    yield f"- {which} {height} x {width} (height x width): {fitted} {how}"
    if given["input_size"][1:] != given["picture_size"]:
        _, tall, wide = given["input_size"]
        yield f"- Then resized to {tall} x {wide} {how}"
    order = given["channels_order"]
    yield (
        f"- Pixels{f' ({order})' if order else ''} are scaled to 0..1 and normalised with mean "
        f"{given['mean']} and deviation {given['std']}"
    )
    if description["training"]["flip"]:
        yield (
            "- Trained with horizontal mirroring: it hardly tells a picture from its mirror image, "
            "which is wrong for text and signs (`flip: false` in the job's `training` leaves it "
            "out)"
        )
    else:
        yield "- Trained without horizontal mirroring"


def _facts_of(facts: DataFacts) -> Iterator[str]:
    yield f"- Data set: `{facts.reference}`" + (f", `{facts.digest}`" if facts.digest else "")
    if facts.card.strip():
        yield f"- About: {_plain(facts.card.strip().splitlines()[0])}"
    splits = ", ".join(f"{count:,} {name}" for name, count in facts.splits.items())
    yield f"- Images: {splits}"
    if facts.source:
        yield (
            f"- Files: at {_plain(facts.source['source'])}, pinned by the digest of their listing, "
            f"`{facts.source['source_digest']}`; the service keeps no copy"
        )
    for note in facts.notes:
        yield f"- Note: {_plain(note)}"


def _synthetic(origin: JobFacts, made: SynthesisSummary, images_read: int | None) -> Iterator[str]:
    """Yield where the synthetic images come from that a student was trained on."""
    yield f"- Training images read: {images_read}"
    yield (
        f"- Synthetic, made by the method from the teacher: {made.images:,} images in "
        f"{made.calls:,} calls of {made.steps:,} optimizer steps altogether"
    )
    buffer = made.buffer
    if buffer is not None and buffer.images:
        present = sum(count > 0 for count in buffer.classes)
        yield (
            f"- In the replay buffer at the end: {buffer.images:,} images, which the teacher "
            f"assigns to {present} of {len(buffer.classes)} classes"
        )
    yield (
        f"- Time: {made.synthesis_seconds:,.1f} s of synthesis, "
        f"{made.distillation_seconds:,.1f} s of training on its images"
    )
    if origin.dataset is not None:
        facts = origin.dataset
        digest = f", `{facts.digest}`" if facts.digest else ""
        yield f"- For evaluation only: `{facts.reference}`{digest}"


def _federated(made: FederationSummary) -> Iterator[str]:
    """Yield who held the training images of a federation, whose model this is, what travelled."""
    how = ", ".join(f"{count:,} ({name})" for name, count in made.engines.items())
    digest = f", `sha256:{made.partition_sha256}`" if made.partition_sha256 else ""
    yield f"- Federation: {made.clients:,} clients, trained by {how}{digest}"
    if made.open_images:
        yield f"- Open images, without labels, that no client trained on: {made.open_images:,}"
    whose = "the server's" if made.delivered == "server" else f"that of `{made.delivered}`"
    skipped = f", {made.skipped_rounds:,} of them without effect" if made.skipped_rounds else ""
    yield f"- This model is {whose}, after up to {made.rounds:,} rounds{skipped}"
    if made.client_accuracy is not None:
        spread = made.client_accuracy
        yield (
            f"- The clients' own models on the test split: {spread.mean:.2%} on average "
            f"({spread.min:.2%} to {spread.max:.2%})"
        )
    if made.ensemble_accuracy is not None:
        yield f"- All clients together: {made.ensemble_accuracy:.2%}"
    yield f"- Sent by all clients: {made.bytes_up:,} bytes; received: {made.bytes_down:,}"
    if made.labels_without_holder:
        missing = ", ".join(_plain(name) for name in made.labels_without_holder)
        yield f"- No client had images of {missing}: this model could not learn them"
    if made.epsilon is not None:
        yield (
            f"- Privacy of what a client sent: epsilon {made.epsilon:.2f} at the delta of the "
            "settings; label counts were sent as they are"
        )
    for reason in made.not_vectorised:
        yield f"- Clients were trained one after the other: {_plain(reason)}"


def _training(origin: JobFacts, result: RunResult) -> list[str]:
    spec, method = origin.spec, origin.spec.method
    parts = [part["name"] for part in method.get("methods", [])]  # of a combination
    lines = ["## Method and training", ""]
    for name in (method["name"], *parts):
        lines += _method(name)
    for teacher in origin.teachers:
        lines.append(
            f"- Teacher: `{teacher.reference}`, `{teacher.network}`, `{teacher.digest}`, "
            f"{teacher.kind}"
        )
        lines += [f"- Of the teacher's file: {_plain(note)}" for note in teacher.notes]
    if origin.several:
        weighting = spec.teacher_weighting or "probabilities"
        lines.append(f"- The teachers taught together, weighted by `{weighting}`; each alone:")
        lines += _each_alone(origin, result)
    if spec.student.initial:
        lines.append(f"- Start weights: `{spec.student.initial}`")
    settings = {key: value for key, value in method.items() if key != "name"}
    rows = [*_rows("method", settings), *_rows("training", spec.training)]
    if result.class_weights:
        counted = sorted((weight, name) for name, weight in result.class_weights.items())
        (least, frequent), (most, rare) = counted[0], counted[-1]
        lines.append(
            f"- Pixels counted by their class: from {least:g} ({_plain(frequent)}) to {most:g} "
            f"({_plain(rare)})"
        )
    ran = f"{result.steps:,} steps on {result.device} in {result.precision}"
    shared = result.parallel
    if shared is not None:
        norms = shared.batch_norm.replace("_", " ")
        ran += (
            f", on {shared.devices} devices with {shared.batch_size} images a step together "
            f"(batch norm {norms}, loss of the {shared.loss.replace('_', ' ')})"
        )
    return [
        *lines,
        f"- Ran: {ran}",
        "",
        "| setting | value |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in rows),
    ]


def _each_alone(origin: JobFacts, result: RunResult) -> Iterator[str]:
    """Yield what each of several teachers scores without the others."""
    for fact, found in zip(origin.several, result.teachers, strict=True):
        metric = PRIMARY_METRICS[origin.spec.task]
        score = (found.scores or {}).get(metric)
        told = "not measured" if score is None else f"{100 * score:.2f}% {metric}"
        yield f"  - `{fact.reference}`: {told}"


def _method(name: str) -> Iterator[str]:
    """Yield the lines with a method's title, its source, and how this implementation differs."""
    entry = catalog.load().methods.get(name, {})
    source = entry.get("source", {})
    paper = [source.get("title"), source.get("venue")]
    if source.get("arxiv"):
        paper.append(f"arXiv:{source['arxiv']}")
    yield f"- Method: {entry.get('title', name)} (`{name}`)"
    yield f"- Source: {', '.join(part for part in paper if part) or 'unknown'}"
    if entry.get("differs"):
        yield f"- Differs from the source: {entry['differs']}"


def _size_and_speed(result: RunResult) -> list[str]:
    rows: tuple[tuple[str, Mapping[Any, Any], str], ...] = (
        ("parameters", result.parameters, ",d"),
        ("operations of one image (FLOPs)", result.flops, ",d"),
        *_latency_rows(result),
    )
    return [
        "## Size and speed",
        "",
        "| | teacher | student |",
        "| --- | --- | --- |",
        *(
            f"| {name} | {_number(values.get('teacher'), form)} "
            f"| {_number(values.get('student'), form)} |"
            for name, values, form in rows
        ),
        "",
        f"Measured on the training machine ({result.device}), other work beside it.",
    ]


def _latency_rows(result: RunResult) -> Iterator[tuple[str, Json, str]]:
    for field, name in (("one_thread", "one thread"), ("all_threads", "all threads")):
        found: dict[str, Timing | None] = {
            role: getattr(one, field) for role, one in result.latency.items() if one is not None
        }
        timings = {role: one for role, one in found.items() if one is not None}
        if not timings:
            continue
        if field == "all_threads":
            name += f" ({max(one.threads for one in timings.values())})"
        for part, word in (("p50_ms", "median"), ("p99_ms", "99th percentile")):
            values = {role: getattr(one, part) for role, one in timings.items()}
            yield f"one image, {name}: {word} (ms)", values, ".2f"


def _limits(origin: JobFacts, description: Json, result: RunResult) -> list[str]:
    measured = f"Measured on the test split of `{origin.spec.dataset}` alone"
    if result.scores.get("student") is None:
        measured = "Never measured on a real image"
    return [
        "## Limits",
        "",
        f"- {measured}; nothing is known of other images, and {_TASKS[description['task']].limit}.",
        "- Not measured: robustness to noise, to shifted data or to attacks; fairness between "
        "groups; differences between runs with other seeds.",
        "- A student may inherit errors and biases of its teacher and of the data.",
        "- Licence unknown: whoever passes it on has to look up the terms of the data and of the "
        "teacher.",
    ]


def _use(origin: JobFacts, description: Json) -> list[str]:
    files = [models.WEIGHTS, "config.json"]
    files += [card_program.FILE] if description["needs"] is not None else []
    *first, last = (f"`{name}`" for name in files)
    packages = " ".join(shlex.quote(name) for name in card_program.packages(description))
    reason = description["needs_retort"]
    return [
        "## How to use it",
        "",
        "This program prints what the student says of each file that it is given. It brings "
        "pictures to the size and the values that the student was evaluated with. "
        + ("It needs no Retort." if reason is None else f"It needs Retort itself: {reason}."),
        "",
        f"1. Put {', '.join(first)} and {last} into one folder; `retort download {origin.job_id} "
        "--all` does that.",
        f"2. `pip install {packages}`",
        "3. Save the program there as `predict.py`, and run it: `python predict.py FILE ...`",
        "",
        "```python",
        *card_program.lines(description),
        "```",
        "",
        *_exports(origin),
    ]


def _exports(origin: JobFacts) -> Iterator[str]:
    """Yield how the student is had in other forms, and which ones its job has asked for."""
    name = origin.spec.student.register_as
    yield (
        f"`retort export {name} --format onnx` has it written in another form, compared with this "
        "one before it is offered."
    )
    asked = [f"{choice.format} {choice.precision}" for choice in origin.spec.exports]
    if asked:
        yield (
            f"Its job has asked for {', '.join(asked)}; `retort exports {name}` says what became "
            "of them."
        )


def _lineage(origin: JobFacts, result: RunResult) -> list[str]:
    versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
    return [
        "## Lineage",
        "",
        f"Made by job `{origin.job_id}`, attempt {origin.attempt}, with {versions or 'unknown'}. "
        "`manifest.json` holds the digests of everything it was made from.",
    ]


def _report(pictures: Collection[str]) -> list[str]:
    by_name = {path.rpartition("/")[2]: path for path in pictures}
    shown = [(by_name[name], title) for name, title in _PICTURES if name in by_name]
    sheets = {int(found[1]): name for name in by_name if (found := _SHEET.fullmatch(name))}
    if sheets:
        newest = by_name[sheets[max(sheets)]]
        shown.insert(0, (newest, "The newest synthetic images of the method"))
    if not shown:
        return []
    lines = [f"![{title}]({path})" for path, title in shown]
    return ["## Report", "", *(text for line in lines for text in (line, ""))][:-1]


def _rows(prefix: str, settings: Json) -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, dict):
            yield from _rows(f"{prefix}.{key}", value)
        else:
            yield f"{prefix}.{key}", f"`{json.dumps(value)}`".replace("|", "\\|")


def _library(network: str) -> str:
    """Return the library that builds the network, as model hubs call it."""
    library = network.partition("/")[0]
    return library if library in ("timm", "torchvision") else "pytorch"


def _with_interval(score: Json, metric: str) -> str:
    shown = _number(score[metric], ".2%")
    # Segmenters had none before there was a bootstrap over images.
    interval = score.get(f"{metric}_interval")
    if interval is None:
        return shown
    low, high = interval
    return f"{shown} ({low:.2%} to {high:.2%})"


def _number(value: Any, form: str) -> str:  # Any: a number, the word NaN, or nothing
    if value is None:
        return "–"
    return format(int(value) if form.endswith("d") else float(value), form)


def _plain(words: str) -> str:
    """Return text of a user with control characters removed and Markdown escaped."""
    kept = "".join(letter if letter.isprintable() else " " for letter in words)
    return "".join(f"\\{letter}" if letter in "\\`*_[]<>|#!" else letter for letter in kept)


def _pixel_scores(named: list[tuple[str, Json]]) -> list[str]:
    rows = [
        f"| {name} | {_number(score['accuracy'], '.2%')} | {_with_interval(score, 'miou')} "
        f"| {_number(score.get('agreement'), '.2%')} |"
        for name, score in named
    ]
    return _score_table(
        ("pixel accuracy", "mean IoU (95 % interval)", "agrees with the teacher"),
        rows,
        "Mean IoU leaves out classes that neither the masks nor the answers have. Intervals are "
        "drawn by bootstrap over test images and speak of their choice alone; another seed may "
        "differ by more.",
    )


def _box_scores(named: list[tuple[str, Json]]) -> list[str]:
    rows = [
        f"| {name} | {_with_interval(score, 'ap')} | {_number(score['ap50'], '.2%')} "
        f"| {_number(score['ap75'], '.2%')} | {_number(score.get('agreement'), '.2%')} |"
        for name, score in named
    ]
    return _score_table(
        ("AP (95 % interval)", "AP50", "AP75", "agrees with the teacher"),
        rows,
        "AP is COCO's average precision: the mean over classes and over IoU thresholds from 0.5 to "
        "0.95; AP50 and AP75 are those of one threshold. Intervals are drawn by bootstrap over "
        "test images and speak of their choice alone; another seed may differ by more.",
    )


def _image_scores(named: list[tuple[str, Json]]) -> list[str]:
    rows = [
        f"| {name} | {_with_interval(score, 'accuracy')} "
        f"| {_number(score.get('agreement'), '.2%')} "
        f"| {_number(score['ece'], '.4f')} | {_number(score['loss'], '.4f')} |"
        for name, score in named
    ]
    return _score_table(
        ("accuracy (95 % interval)", "agrees with the teacher", "calibration error", "loss"),
        rows,
        "Intervals are Wilson's and speak of the choice of test images alone; another seed may "
        "differ by more. The calibration error is the expected one over 15 bins of confidence, "
        "without any correction; loss is cross-entropy in nats.",
    )


def _embedding_scores(named: list[tuple[str, Json]]) -> list[str]:
    rows = [
        f"| {name} | {_with_interval(score, 'knn')} | {_with_interval(score, 'linear_probe')} "
        f"| {_number(score.get('cka'), '.3f')} | {_number(score.get('shared_neighbours'), '.2%')} |"
        for name, score in named
    ]
    references = named[0][1]["reference_images"]
    return _score_table(
        (
            "k-NN (95 % interval)",
            "linear probe (95 % interval)",
            "CKA with the teacher",
            "nearest images shared with it",
        ),
        rows,
        "k-NN is the accuracy of the 20 nearest of "
        f"{references:,} labelled training images by cosine similarity, weighted with the "
        "temperature 0.07; the linear probe is a logistic regression on their embeddings. "
        "Intervals are Wilson's and speak of the choice of test images alone. Where no test image "
        "has a label, k-NN is the share of the nearest images that are also the teacher's.",
    )


def _score_table(columns: Sequence[str], rows: Iterable[str], note: str) -> list[str]:
    """Return a Markdown table, a named network in each row, and a note on its columns."""
    rule = "| --- " * (1 + len(columns)) + "|"
    return [f"| | {' | '.join(columns)} |", rule, *rows, "", note]


@dataclass(frozen=True)
class _TaskText:
    """What a card says about students of one task."""

    pipeline_tag: str
    """The task's name on model hubs."""
    noun: str
    does: str
    """What it does with its classes, of which `{}` is the number."""
    metric: str
    """The metric by which an epoch is chosen."""
    hub_metrics: dict[str, str]
    """Scores that model hubs are told, with their names there."""
    limit: str
    """What happens with what belongs to no class."""
    scores: Callable[[list[tuple[str, Json]]], list[str]]
    """Returns the table of scores; takes title and scores of each network."""
    baseline: str = "baseline (same student, no teacher)"
    agreement: str = "accuracy there is agreement with the teacher"
    """What scores are of a split without labels."""

    def does_with(self, classes: int) -> str:
        """Return what it does, with the number of its classes."""
        return self.does.format(classes)


_TASKS = {
    "classification": _TaskText(
        pipeline_tag="image-classification",
        noun="An image classifier",
        does="tells apart {} classes",
        metric="accuracy",
        hub_metrics={"accuracy": "accuracy"},
        limit="images of no class are still given one",
        scores=_image_scores,
    ),
    "segmentation": _TaskText(
        pipeline_tag="image-segmentation",
        noun="A segmentation network",
        does="tells apart {} classes",
        metric="mean IoU",
        hub_metrics={"accuracy": "accuracy", "miou": "mean_iou"},
        limit="pixels of no class are still given one",
        scores=_pixel_scores,
    ),
    "detection": _TaskText(
        pipeline_tag="object-detection",
        noun="A detector",
        does="finds objects of {} classes",
        metric="AP",
        hub_metrics={"ap": "map", "ap50": "map_50", "ap75": "map_75"},  # as torchmetrics says
        limit="objects of no class may be taken for one of a class",
        scores=_box_scores,
    ),
    "embedding": _TaskText(
        pipeline_tag="image-feature-extraction",
        noun="A backbone",
        does="answers with an embedding of each, and has no classifier",
        metric="k-NN score",
        hub_metrics={"knn": "knn_accuracy", "linear_probe": "linear_probe_accuracy"},
        limit="embeddings of images unlike those of the training may mean little",
        scores=_embedding_scores,
        baseline="same student before training",
        agreement="k-NN there is the share of the nearest images that are also the teacher's",
    ),
}
