"""Commands that take a version elsewhere: `retort push hub`, `retort push mlflow`."""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from retort.cli import completion, shell

if TYPE_CHECKING:
    from retort import types

app = typer.Typer(
    help="Upload a version to a Hugging Face hub or an MLflow server where you have an account."
)

ReferenceArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL[@V]",
        help="A version, such as digits-student@1; without @V the newest that is ready.",
        autocompletion=completion.models,
    ),
]
PrecisionOption = Annotated[
    Literal["float32", "float16"], typer.Option("--precision", help="Of the weights.")
]


@app.command("hub")
@shell.connected
def hub(
    retort: shell.Shell,
    reference: ReferenceArgument,
    repository: Annotated[str, typer.Option("--to", metavar="OWNER/NAME", help="Repository.")],
    precision: PrecisionOption = "float32",
    update: Annotated[
        bool, typer.Option("--update", help="Add a commit to a repository that exists.")
    ] = False,
    public: Annotated[
        bool, typer.Option("--public", help="A repository that is made is for all to see.")
    ] = False,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
) -> None:
    """Upload a version to a hub as a repository of its own, private unless --public.

    HF_TOKEN, or the token of `hf auth login`, is used; HF_ENDPOINT names another hub.
    """
    from retort import exporting, pushing

    target = pushing.HubTarget(repository, may_exist=update)
    made = _made(retort, reference, "hub", precision)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "files"
        exporting.download(retort, made, folder, force=False)
        said = message or f"{made.model}, from Retort"
        address = target.push(folder, is_public=public, message=said)
    _tell(retort, made, address)


@app.command("mlflow")
@shell.connected
def mlflow(
    retort: shell.Shell,
    reference: ReferenceArgument,
    name: Annotated[
        str | None,
        typer.Option("--to", metavar="NAME", help="Registered model; the model's own name."),
    ] = None,
    experiment: Annotated[str, typer.Option(help="Of the run that holds the files.")] = "retort",
) -> None:
    """Register a version with an MLflow server, as a model that mlflow.pyfunc loads.

    MLFLOW_TRACKING_URI names the server; credentials are MLflow's own variables. A registered
    model of the name gets a further version.
    """
    from retort import exporting, pushing

    target = pushing.MlflowTarget(name or reference.partition("@")[0], experiment=experiment)
    made = _made(retort, reference, "onnx", "float32")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        exporting.write_mlflow(retort, made, folder, force=False)
        registered = target.push(folder, made)
    _tell(retort, made, f"models:/{registered}")


def _made(
    retort: shell.Shell, reference: str, form: str, precision: Literal["float32", "float16"]
) -> "types.Export":
    """Return an export that is ready; a worker makes it where there is none."""
    made = retort.client.models.export(reference, format=form, precision=precision)
    if not made.is_settled:
        retort.note(f"{made.id} is {made.state}: waiting until a worker has made and checked it")
    return retort.client.models.wait_export(made)


def _tell(retort: shell.Shell, made: "types.Export", address: str) -> None:
    if retort.json:
        retort.emit({"model": made.model, "export": made.id, "address": address})
        return
    retort.out.print(address, soft_wrap=True)
