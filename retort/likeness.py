"""What an upload can take over from a model or data set that the server has: `--like`."""

from dataclasses import dataclass

from retort import client, datasets, errors, models, types

_KINDS = ("dataset", "model")
_FIELDS = ("channels", "height", "width", "mean", "std")


@dataclass(frozen=True)
class Likeness:
    """The images and classes of a version."""

    reference: str
    input: types.Json
    classes: list[str]

    def told(self, *, without: set[str]) -> str:
        """Return what is taken over in one line, but not what the caller has given."""
        taken = {name: value for name, value in self.input.items() if name not in without}
        parts = []
        if "height" in taken and "width" in taken:
            parts.append(f"{taken['height']}x{taken['width']} pixels")
        if "channels" in taken:
            count = taken["channels"]
            parts.append("1 channel" if count == 1 else f"{count} channels")
        for name in ("mean", "std"):
            if name in taken:
                parts.append(f"{name} {','.join(f'{value:.4g}' for value in taken[name])}")
        if "classes" not in without:
            names = ", ".join(self.classes[:5]) + (", ..." if len(self.classes) > 5 else "")
            parts.append(f"{len(self.classes)} classes ({names})")
        return f"like {self.reference}: {', '.join(parts) or 'nothing, all was given'}"


def find(retort: client.Client, given: str) -> Likeness:
    """Return what a reference such as `digits@1` leads to, a data set or a model.

    Where there are both, `dataset:digits` and `model:digits` say which.

    Raises: errors.BadOption, with a way out.
    """
    kind, colon, name = given.partition(":")
    if not colon or kind not in _KINDS:
        kind, name = "", given
    found: list[types.DatasetVersion | types.ModelVersion] = []
    if kind != "model":
        found += _resolved(retort.datasets, name)
    if kind != "dataset":
        found += _resolved(retort.models, name)
    if len(found) > 1:
        raise errors.BadOption(
            f"--like {given}: a data set and a model are called so; write dataset:{name} or "
            f"model:{name}"
        )
    if not found:
        raise errors.BadOption(
            f"--like {given}: no {kind or 'data set or model'} is called so; see `retort datasets` "
            "and `retort models`"
        )
    [version] = found
    if version.input is None or version.state != "ready":
        raise errors.BadOption(
            f"--like {given}: {version.reference} is {version.state}, and of ready versions alone "
            "the images are known"
        )
    classes = version.classes if isinstance(version.classes, list) else []
    images = {field: version.input[field] for field in _FIELDS if field in version.input}
    return Likeness(version.reference, images, classes)


def _resolved(
    resource: datasets.Datasets | models.Models, name: str
) -> list[types.DatasetVersion | types.ModelVersion]:
    try:
        return [resource.resolve(name)]
    except errors.ProblemError as error:
        if error.status not in (404, 410):
            raise
        return []
