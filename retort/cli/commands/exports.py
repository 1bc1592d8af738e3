"""Commands for exports: a model version in the form that deployment takes."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from retort import errors
from retort.cli import completion, shell

app = typer.Typer()

MLFLOW = "mlflow"
_REFERENCE = "A version, such as digits-student@1; without @V the newest that is ready."


@app.command("export")
@shell.connected
def export(
    retort: shell.Shell,
    words: Annotated[
        list[str],
        typer.Argument(
            metavar="[mlflow] MODEL[@V]",
            help=f"{_REFERENCE} `mlflow MODEL`: write a folder that mlflow.pyfunc loads.",
            autocompletion=completion.models,
        ),
    ],
    format_name: Annotated[
        Literal["onnx", "torch_export", "openvino", "torch_state_dict", "hub"],
        typer.Option("--format", help="What to write."),
    ] = "onnx",
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="Of the weights; int8, of onnx alone, is calibrated on training images."),
    ] = "float32",
    preprocessing: Annotated[
        bool,
        typer.Option("--preprocessing", help="The graph takes pixels of 0..255 and normalises."),
    ] = False,
    max_drop: Annotated[
        float,
        typer.Option(min=0, max=1, help="The most of the deciding metric that may be lost."),
    ] = 0.01,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is made.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to save its files in; waits until it is made."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace files that exist.")] = False,
) -> None:
    """Have a version written in another form, and compared with the original."""
    from retort import exporting
    from retort.cli import export_display

    is_mlflow, reference = _meant(words)
    if is_mlflow and format_name != "onnx":
        raise errors.BadOption(f"--format {format_name}: a folder of MLflow holds a graph of onnx")
    made = retort.client.models.export(
        reference,
        format=format_name,
        precision=precision,
        include_preprocessing=preprocessing,
        max_drop=max_drop,
    )
    if is_mlflow or output is not None or wait:
        retort.note(f"{made.id} is {made.state}: waiting until a worker has made and checked it")
        made = retort.client.models.wait_export(made)
    saved: list[Path] = []
    if is_mlflow:
        folder = output or Path(f"{made.model.replace('@', '-')}-mlflow")
        saved = exporting.write_mlflow(retort, made, folder, force=force)
    elif output is not None:
        saved = exporting.download(retort, made, output, force=force)
    if retort.json:
        retort.emit({**made.model_dump(mode="json"), "saved": [str(path) for path in saved]})
        return
    export_display.export(retort.out, made)
    for path in saved:
        retort.out.print(str(path), soft_wrap=True)
    if not made.is_settled:
        retort.note(f"see how it goes with: retort exports {made.model}")


@app.command("exports")
@shell.connected
def list_exports(
    retort: shell.Shell,
    reference: Annotated[
        str,
        typer.Argument(metavar="MODEL[@V]", help=_REFERENCE, autocompletion=completion.models),
    ],
) -> None:
    """List the exports of a version, with what was measured of each."""
    from retort.cli import export_display

    found = list(retort.client.models.exports(reference))
    if retort.json:
        retort.emit(found)
        return
    export_display.exports(retort.out, found)


@app.command("predict")
@shell.connected
def predict(
    retort: shell.Shell,
    reference: Annotated[
        str,
        typer.Argument(metavar="MODEL[@V]", help=_REFERENCE, autocompletion=completion.models),
    ],
    pictures: Annotated[list[Path], typer.Argument(metavar="PICTURES...", help="Up to 32 files.")],
) -> None:
    """Ask what a version says of pictures, through its ONNX export: to try it, not to serve."""
    from retort.cli import export_display

    missing = [path for path in pictures if not path.is_file()]
    if missing:
        raise errors.LocalFileProblem(missing[0], "is not a file")
    try:
        answered = retort.client.models.predict(reference, pictures)
    except errors.ProblemError as error:
        if error.code != "export_needed":
            raise
        made = retort.client.models.export(reference, format="onnx")
        retort.note(f"{made.model} gets an ONNX export first ({made.id}), which answers")
        retort.client.models.wait_export(made)
        answered = retort.client.models.predict(made.model, pictures)
    if retort.json:
        retort.emit(answered)
        return
    export_display.prediction(retort.out, [str(path) for path in pictures], answered)


def _meant(words: list[str]) -> tuple[bool, str]:
    """Return whether a folder of MLflow is wanted, and of which version."""
    *before, reference = words
    if before not in ([], [MLFLOW]):
        raise errors.BadOption(f"{' '.join(words)}: expected MODEL[@V], or mlflow MODEL[@V]")
    return bool(before), reference
