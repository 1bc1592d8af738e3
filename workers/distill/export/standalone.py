"""Write `model.py`: one of our own networks in one file that needs no Retort.

Its classes and functions are those of the network's own modules, copied when a student is written
(`source_bundle`), so the file cannot differ from what was trained. It builds the network from the
arguments in `config.json` and loads `model.safetensors`.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, cast

from workers.distill.export.source_bundle import Bundle
from workers.distill.export.source_modules import Library
from workers.distill.networks import backbones, catalog, interface
from workers.distill.networks.zoo import reused

FILE = "model.py"
RESERVED = ("ARGUMENTS", "BACKBONE", "BACKBONE_ARGUMENTS", "NETWORK", "build_network", "load")
"""Names of `model.py` that are not taken from our modules."""
IMPORTS = (
    Library("json", None, "json"),
    Library("pathlib", "Path", "Path"),
    Library("types", "SimpleNamespace", "SimpleNamespace"),
    Library("safetensors.torch", "load_file", "load_file"),
)
IDENTITY = Library("torch.nn", "Identity", "Identity")
"""What takes the place of a classifier that was removed."""

HEAD = '''\
"""The network {reference} and its weights, in one file that needs no Retort.

    import model

    network, config = model.load()  # config.json and model.safetensors beside this file

It needs {packages}.
Its classes are those that the network was trained with, copied when the weights were written.
"""

from __future__ import annotations

'''

LOAD = '''\
def load(folder=Path(__file__).parent):
    """Return the network with its weights, in evaluation mode, and the content of config.json."""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    network = build_network(config)
    network.load_state_dict(load_file(Path(folder) / "model.safetensors"))
    return network.eval(), config
'''


@dataclass(frozen=True)
class Standalone:
    """A network that needs no Retort: the text of its file, and the packages that it needs."""

    text: str
    packages: tuple[str, ...]
    """As an installer calls them."""


def why_not(reference: str, arguments: Mapping[str, Any]) -> str | None:
    """Return why a network cannot stand in a file of its own, or None where it can."""
    if reference not in catalog.NETWORKS:
        return f"{reference} is a network of another library, which builds it itself"
    inner = _backbone(reference, arguments)
    if inner is not None and inner["network"] not in catalog.NETWORKS:
        return (
            f"its backbone {inner['network']} is a network of another library, whose maps only "
            "Retort reads"
        )
    return None


def write(network: interface.Network) -> Standalone:
    """Return the file of a network for which `why_not` knows no reason.

    Raises `source_modules.CannotBundleError` for code that cannot be copied.
    """
    reference, inner = network.reference, _backbone(network.reference, network.arguments)
    removed = network.removed_classifier
    bundle = Bundle(RESERVED, IMPORTS if removed is None else (*IMPORTS, IDENTITY))
    bundle.add(interface.__name__, interface.Sizes.__name__)
    made = catalog.NETWORKS[reference if inner is None else inner["network"]]
    _add(bundle, made.make)
    constants = {"NETWORK": reference, "ARGUMENTS": _defaults(reference)}
    if inner is not None:
        bundle.add(reused.__name__, reused.build.__name__)
        constants |= {
            "BACKBONE": inner["network"],
            "BACKBONE_ARGUMENTS": _defaults(inner["network"]),
        }
    packages = ["torch", "safetensors", *_libraries(bundle.text(), network.arguments)]
    text = "\n".join(
        (
            HEAD.format(reference=reference, packages=_listed(packages)) + bundle.text(),
            "",
            *(f"{name} = {value!r}" for name, value in constants.items()),
            "\n",
            *_build_network(bundle, made.make, is_composed=inner is not None, removed=removed),
            "\n",
            LOAD,
        )
    )
    return Standalone(text, tuple(packages))


def _backbone(reference: str, arguments: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return which network a composed one is built around, with its arguments."""
    entry = catalog.NETWORKS[reference]
    if entry.composed_of is None:
        return None
    whole = entry.arguments.model_validate(dict(arguments)).model_dump()
    return cast("dict[str, Any]", whole[entry.composed_of])


def _defaults(reference: str) -> dict[str, Any]:
    return catalog.NETWORKS[reference].arguments().model_dump()


def _libraries(text: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    if "torchvision" in text:
        yield "torchvision"
    if str(arguments.get("backbone", "")).startswith("timm/"):
        yield "timm"


def _listed(packages: list[str]) -> str:
    return f"{', '.join(packages[:-1])} and {packages[-1]}"


def _build_network(
    bundle: Bundle,
    make: Callable[..., interface.Network],
    *,
    is_composed: bool,
    removed: str | None,
) -> Iterator[str]:
    """Yield the lines of `build_network`; `removed` is where a classifier is taken out again."""
    sizes = bundle.name_of(interface.__name__, interface.Sizes.__name__)
    yield "def build_network(config):"
    yield '    """Return the network that config.json describes, with fresh weights."""'
    yield '    if config["network"] != NETWORK:'
    yield "        raise ValueError("
    yield "            f\"config.json describes {config['network']}, this file builds {NETWORK}\""
    yield "        )"
    yield '    size = config["input"]'
    yield '    shape = size["channels"], size["height"], size["width"]'
    classes = 'len(config["classes"])' if removed is None else str(backbones.BUILT_CLASSES)
    yield f"    sizes = {sizes}({classes}, *shape)"
    yield '    arguments = SimpleNamespace(**{**ARGUMENTS, **config["arguments"]})'
    made = _call(bundle, make, "arguments, sizes")
    if is_composed:
        yield '    inner = {**BACKBONE_ARGUMENTS, **arguments.backbone["arguments"]}'
        yield f"    backbone = {_call(bundle, make, 'SimpleNamespace(**inner), sizes')}"
        yield f"    backbone.classes, backbone.image_shape = {classes}, shape"
        outer = bundle.name_of(reused.__name__, reused.build.__name__)
        made = f"{outer}(arguments, backbone)"
    if removed is None:
        yield f"    return {made}"
        return
    yield f"    network = {made}"
    yield f"    network.set_submodule({removed!r}, Identity())  # it answers with its embedding"
    yield "    return network"


def _call(bundle: Bundle, make: Any, given: str) -> str:
    """Return the call of a builder, with the arguments that its line of the catalog gives it."""
    if isinstance(make, functools.partial):
        first = "".join(f"{_literal(bundle, value)}, " for value in make.args)
        return f"{_literal(bundle, make.func)}({first}{given})"
    return f"{_literal(bundle, make)}({given})"


def _add(bundle: Bundle, value: Any) -> None:
    """Keep what a value of the catalog is made of: functions and classes of ours."""
    if isinstance(value, functools.partial):
        for part in (value.func, *value.args):
            _add(bundle, part)
    elif isinstance(value, type) or callable(value):
        bundle.add(value.__module__, value.__qualname__)
    elif is_dataclass(value):
        _add(bundle, type(value))
        for field in fields(value):
            _add(bundle, getattr(value, field.name))


def _literal(bundle: Bundle, value: Any) -> str:
    """Return the text of a value: a name of the bundle, data with its fields, or a literal."""
    if isinstance(value, type) or callable(value):
        return bundle.name_of(value.__module__, value.__qualname__)
    if is_dataclass(value):
        given = (
            f"{field.name}={_literal(bundle, own)}"
            for field in fields(value)
            if (own := getattr(value, field.name)) != field.default
        )
        return f"{_literal(bundle, type(value))}({', '.join(given)})"
    return repr(value)
