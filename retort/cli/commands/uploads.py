"""Commands that upload: a teacher's weights, or a data set."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort import errors
from retort.cli import completion, shell
from retort.formats import FORMATS

if TYPE_CHECKING:
    from retort import likeness, types

app = typer.Typer(help="Upload a teacher's weights or a data set, and register it.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="Name in the registry.")]
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="File to upload.")]
ResumeOption = Annotated[
    str | None,
    typer.Option("--resume", metavar="UPLOAD", help="Resume an interrupted upload."),
]
WaitOption = Annotated[bool, typer.Option("--wait", help="Wait until a worker has inspected it.")]
ChannelsOption = Annotated[int | None, typer.Option(min=1, help="Channels of an image.")]
HeightOption = Annotated[int | None, typer.Option(min=1, help="Height of an image in pixels.")]
WidthOption = Annotated[int | None, typer.Option(min=1, help="Width; by default the height.")]
MeanOption = Annotated[
    str | None, typer.Option(metavar="M,M,M", help="Mean of each channel, of pixels in 0..1.")
]
StdOption = Annotated[
    str | None, typer.Option(metavar="S,S,S", help="Standard deviation of each channel.")
]
LikeOption = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="NAME[@V]",
        help="Take size, mean, std (and a model's classes) over from this data set or model.",
        autocompletion=completion.models_and_datasets,
    ),
]
FormatOption = Annotated[
    str,
    typer.Option(
        help="auto: recognised by the content; "
        + "; ".join(f"{name}: {title}" for name, title in FORMATS.items())
        + "."
    ),
]
TaskOption = Annotated[
    str,
    typer.Option(help="classification, segmentation: a class for each pixel, or detection: boxes."),
]
ModelTaskOption = Annotated[
    str,
    typer.Option(
        help="classification, segmentation: a class for each pixel, detection: boxes, or "
        "embedding: a backbone without a classifier, so without --classes."
    ),
]
TeacherTaskOption = Annotated[
    str,
    typer.Option(
        help="classification, or embedding: the output is an embedding of each image, and there "
        "are no --classes."
    ),
]
BACKBONE = "embedding"
"""Task of models without a classifier."""


@app.command("list")
@shell.connected
def list_uploads(retort: shell.Shell) -> None:
    """List uploads that are open or completed; an open one goes on with --resume."""
    from retort.cli import display

    retort.show(list(retort.client.uploads.list()), display.uploads)


@app.command("model")
@shell.connected
def upload_model(
    retort: shell.Shell,
    name: NameArgument,
    file: FileArgument,
    network: Annotated[
        str,
        typer.Option(
            help="Such as retort/resnet32x4 or timm/resnet18.", autocompletion=completion.networks
        ),
    ],
    classes: Annotated[
        str | None, typer.Option(metavar="N|A,B,C", help="Their number, or their names.")
    ] = None,
    like: LikeOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    channels: ChannelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    arguments: Annotated[
        str, typer.Option(metavar="JSON", help="Keyword arguments of the network.")
    ] = "{}",
    task: ModelTaskOption = "classification",
    entry: Annotated[
        str | None, typer.Option(help="Which of several networks in the file, such as model_ema.")
    ] = None,
    strict: Annotated[
        bool, typer.Option(help="Refuse weights that the network does not have.")
    ] = True,
    resize_positions: Annotated[
        bool,
        typer.Option("--resize-positions", help="Interpolate a transformer's positions."),
    ] = False,
    card: Annotated[str, typer.Option(help="A description, in Markdown.")] = "",
    resume: ResumeOption = None,
    wait: WaitOption = False,
) -> None:
    """Upload weights and register them as a new version of a model."""
    names, given = _described(
        retort,
        classes=classes,
        like=like,
        given=_input(channels, height, width, mean, std),
        needed={"--height": height, "--mean": mean, "--std": std},
        task=task,
    )
    keywords = _object("--arguments", arguments)
    upload = _send(retort, file, "model", resume)
    models = retort.client.models
    version = models.register(
        name,
        upload,
        network=network,
        classes=names,
        input=given,
        arguments=keywords,
        task=task,
        entry=entry,
        strict=strict,
        resize_positions=resize_positions,
        card=card,
    )
    _model_registered(retort, version, wait=wait)


@app.command("teacher")
@shell.connected
def upload_teacher(
    retort: shell.Shell,
    name: NameArgument,
    file: FileArgument,
    classes: Annotated[
        str | None, typer.Option(metavar="N|A,B,C", help="Their number, or their names.")
    ] = None,
    like: LikeOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    channels: ChannelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    pixels: Annotated[
        int | None,
        typer.Option(
            metavar="1|255",
            help="The graph normalises by itself: it takes pixels of 0..1, or of 0..255. In place "
            "of --mean and --std.",
        ),
    ] = None,
    input_name: Annotated[
        str | None, typer.Option("--input", help="Input that takes images; the only one.")
    ] = None,
    output_name: Annotated[
        str | None,
        typer.Option("--output", help="Output with the classes, or the embedding; the only one."),
    ] = None,
    embedding: Annotated[
        str | None, typer.Option(help="Output with an embedding of each image, if there is one.")
    ] = None,
    outputs: Annotated[
        str | None, typer.Option(help="logits or probabilities; by default recognised.")
    ] = None,
    task: TeacherTaskOption = "classification",
    arguments: Annotated[
        str, typer.Option(metavar="JSON", help="Further arguments of retort/onnx: layout, taps.")
    ] = "{}",
    card: Annotated[str, typer.Option(help="A description, in Markdown.")] = "",
    resume: ResumeOption = None,
    wait: WaitOption = False,
) -> None:
    """Upload an ONNX file, from any framework, and register it as a teacher."""
    if pixels is not None:
        mean, std = _own_normalisation(pixels, mean, std, channels, retort, like)
    described = _described(
        retort,
        classes=classes,
        like=like,
        given=_input(channels, height, width, mean, std),
        needed={"--height": height, "--mean (or --pixels)": mean, "--std": std},
        task=task,
    )
    ports = {
        "input": input_name,
        "output": output_name,
        "embedding": embedding,
        "outputs": outputs,
    }
    keywords = {key: value for key, value in ports.items() if value is not None}
    _register_teacher(
        retort,
        name,
        _send(retort, file, "model", resume),
        network="retort/onnx",
        task=task,
        described=described,
        arguments={**keywords, **_object("--arguments", arguments)},
        card=card,
        wait=wait,
    )


@app.command("predictions")
@shell.connected
def upload_predictions(
    retort: shell.Shell,
    name: NameArgument,
    file: FileArgument,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME[@V]",
            help="The data set whose images were predicted.",
            autocompletion=completion.models_and_datasets,
        ),
    ],
    outputs: Annotated[
        str | None, typer.Option(help="logits or probabilities; by default recognised.")
    ] = None,
    views: Annotated[
        int, typer.Option(min=1, help="Predictions of each training image; 1 is of it as stored.")
    ] = 1,
    seed: Annotated[int | None, typer.Option(min=0, help="training.seed of several views.")] = None,
    augmentation: Annotated[
        str | None, typer.Option(help="training.augmentation of several views.")
    ] = None,
    classes: Annotated[
        str | None, typer.Option(help="Number or names, for a data set without labels.")
    ] = None,
    card: Annotated[str, typer.Option(help="A description, in Markdown.")] = "",
    resume: ResumeOption = None,
    wait: WaitOption = False,
) -> None:
    """Upload a table of predictions for the images of a data set, and register it as a teacher."""
    version = retort.client.datasets.resolve(dataset)
    given: dict[str, object] = {"dataset": version.reference, "outputs": outputs, "views": views}
    further: dict[str, object] = {"seed": seed, "augmentation": augmentation}
    arguments = {k: v for k, v in {**given, **further}.items() if v is not None}
    if version.input is None or version.classes is None:
        raise errors.BadOption(f"--dataset {version.reference} is {version.state}: wait for it")
    # What a data set's input says beyond a network's, such as max_value, is about its files.
    sizes = ("channels", "height", "width", "mean", "std")
    described = {key: version.input[key] for key in sizes if key in version.input}
    _register_teacher(
        retort,
        name,
        _send(retort, file, "model", resume),
        network="retort/predictions",
        task="classification",
        described=(version.classes or _classes(classes), described),
        arguments=arguments,
        card=card,
        wait=wait,
    )


@app.command("dataset")
@shell.connected
def upload_dataset(
    retort: shell.Shell,
    name: NameArgument,
    file: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="File to upload; or --source.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="In place of FILE: s3://bucket/prefix or file:///folder of the workers, which the "
            "service reads where it is, without a copy; its operator allows such places.",
        ),
    ] = None,
    format: FormatOption = "auto",
    like: LikeOption = None,
    height: HeightOption = None,
    width: WidthOption = None,
    channels: ChannelsOption = None,
    mean: MeanOption = None,
    std: StdOption = None,
    max_value: Annotated[
        int | None,
        typer.Option(
            metavar="V", help="White of pictures of more than 8 bits; by default by their range."
        ),
    ] = None,
    max_bad_share: Annotated[
        float | None,
        typer.Option(metavar="S", help="Share of unreadable pictures to leave out; 0.01."),
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="HOW",
            help="auto, decoded (all in one size), or encoded (as files, for large sets).",
        ),
    ] = None,
    task: TaskOption = "classification",
    card: Annotated[str, typer.Option(help="A description, in Markdown.")] = "",
    resume: ResumeOption = None,
    wait: WaitOption = False,
) -> None:
    """Upload an archive of images, or name a --source, as a new version of a data set."""
    if (file is None) == (source is None):
        raise errors.BadOption("give either FILE, to upload it, or --source URL")
    if source is not None and resume is not None:
        raise errors.BadOption("--resume goes on with an upload, and --source has none: leave one")
    given = _input(channels, height, width, mean, std)  # the rest is measured
    if like is not None:
        given = {**_like(retort, like, {*given, "classes"}).input, **given}
    if max_value is not None:
        given["max_value"] = max_value
    if max_bad_share is not None:
        given["max_bad_share"] = max_bad_share
    if storage is not None:
        given["storage"] = storage
    datasets = retort.client.datasets
    if file is None:
        version = datasets.register_source(
            name, source or "", format=format, task=task, input=given or None, card=card
        )
    else:
        upload = _send(retort, file, "dataset", resume)
        version = datasets.register(
            name, upload, format=format, task=task, input=given or None, card=card
        )
    if wait:
        retort.note(f"{version.reference} is being inspected")
        version = datasets.wait(name, version.version, timeout=None)
        for note in version.notes or ():
            retort.note(note)
    _registered(retort, version, f"retort datasets {version.reference}")


def _described(
    retort: shell.Shell,
    *,
    classes: str | None,
    like: str | None,
    given: dict[str, object],
    needed: dict[str, object],
    task: str,
) -> tuple[int | list[str], dict[str, object]]:
    """Return the classes and the input of a model, as given or as those of something like it.

    A model without a classifier has no classes.
    """
    likeness = None
    if task == BACKBONE:
        if classes is not None:
            raise errors.BadOption(
                f"--classes {classes}: a model of task {BACKBONE} has no classifier; leave "
                "--classes out, or --task"
            )
    else:
        needed = {"--classes": classes, **needed}
    if like is None:
        missing = [option for option, value in needed.items() if value is None]
        if missing:
            raise errors.BadOption(
                f"{' and '.join(missing)} missing: they belong to the weights; --like NAME takes "
                "them over from a data set or model"
            )
        mean = given.get("mean")
        given.setdefault("channels", len(mean) if isinstance(mean, list) else 0)
    else:
        has_classes = classes is None and task != BACKBONE
        likeness = _like(retort, like, {*given, *([] if has_classes else ["classes"])})
        given = {**likeness.input, **given}
    if task == BACKBONE:
        return 0, given
    names = likeness.classes if likeness is not None and classes is None else _classes(classes)
    return names, given


def _own_normalisation(
    pixels: int,
    mean: str | None,
    std: str | None,
    channels: int | None,
    retort: shell.Shell,
    like: str | None,
) -> tuple[str, str]:
    """Return mean and standard deviation by which pixels reach a graph as 0..1, or as 0..255."""
    if pixels not in (1, 255):
        raise errors.BadOption(f"--pixels {pixels}: the graph takes pixels up to 1, or up to 255")
    if mean is not None or std is not None:
        raise errors.BadOption("--pixels takes the place of --mean and --std; leave those out")
    if channels is None and like is not None:
        from retort import likeness

        found = likeness.find(retort.client, like).input.get("channels")
        channels = found if isinstance(found, int) else None
    if channels is None:
        raise errors.BadOption("--channels is missing: --pixels does not tell their number")
    return ",".join(["0"] * channels), ",".join([repr(1 / pixels)] * channels)


def _register_teacher(
    retort: shell.Shell,
    name: str,
    upload: "types.Upload",
    *,
    network: str,
    task: str,
    described: tuple[int | list[str], dict[str, object]],
    arguments: dict[str, object],
    card: str,
    wait: bool,
) -> None:
    """Register an upload that is no weights, and show what was found in it."""
    models = retort.client.models
    classes, given = described
    version = models.register(
        name,
        upload,
        network=network,
        classes=classes,
        input=given,
        arguments=arguments,
        task=task,
        card=card,
    )
    _model_registered(retort, version, wait=wait)


def _model_registered(retort: shell.Shell, version: "types.ModelVersion", *, wait: bool) -> None:
    """Say that a model is registered, and after its inspection what was found in it."""
    if wait:
        retort.note(f"{version.reference} is being inspected")
        version = retort.client.models.wait(version.name, version.version, timeout=None)
        for note in version.notes or ():
            retort.note(f"note: {note}")
    _registered(retort, version, f"retort model {version.reference}")


def _registered(
    retort: shell.Shell, version: "types.ModelVersion | types.DatasetVersion", hint: str
) -> None:
    if retort.json:
        retort.emit(version)
        return
    retort.out.print(version.reference)
    later = ", what was found in the file included" if version.state == "pending" else ""
    retort.note(f"{version.state}; see it{later} with: {hint}")


def _send(retort: shell.Shell, file: Path, purpose: str, resume: str | None) -> "types.Upload":
    from retort.cli import transfer_bar

    uploads = retort.client.uploads
    begun = uploads.resume(file, resume) if resume else uploads.begin(file, purpose=purpose)
    try:
        with transfer_bar.shown(retort.err, file.name) as progress:
            return uploads.finish(begun, file, progress=progress)
    except (errors.UploadInterrupted, KeyboardInterrupt):
        retort.note(f"resume with the same command and --resume {begun.id}")
        raise


def _input(
    channels: int | None, height: int | None, width: int | None, mean: str | None, std: str | None
) -> dict[str, object]:
    """Return the given options about the images."""
    given: dict[str, object] = {}
    for name, size in (("channels", channels), ("height", height), ("width", width or height)):
        if size is not None:
            given[name] = size
    for name, text in (("mean", mean), ("std", std)):
        if text is not None:
            given[name] = _numbers(f"--{name}", text)
    counts = {len(values) for values in given.values() if isinstance(values, list)}
    expected = channels or next(iter(counts), None)
    if counts - {expected}:
        raise errors.BadOption(f"--mean and --std need one number for each of {expected} channels")
    return given


def _like(retort: shell.Shell, reference: str, given: set[str]) -> "likeness.Likeness":
    """Return what `--like` names, and say what is taken over."""
    from retort import likeness

    found = likeness.find(retort.client, reference)
    retort.note(found.told(without=given))
    return found


def _classes(text: str | None) -> int | list[str]:
    if text is None:
        raise errors.BadOption("--classes is missing: their number, or their names")
    return int(text) if text.isdecimal() else [name.strip() for name in text.split(",")]


def _numbers(option: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise errors.BadOption(f"{option} {text}: expected numbers such as 0.5,0.5,0.5") from error


def _object(option: str, text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise errors.BadOption(f"{option} {text}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise errors.BadOption(f'{option} {text}: expected an object such as {{"depth": 20}}')
    return value
