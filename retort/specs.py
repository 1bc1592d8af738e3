"""How a file on disk becomes a job spec: YAML (or JSON), plus `--set` overrides.

The YAML read here has the scalars of JSON: `on`, `off`, `yes` and `no` are words (PyYAML makes
booleans of them, which would break `compile: off`), `5e-4` is a number (PyYAML makes it text), and
a key that appears twice is an error.
"""

import json
import re
import sys
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from retort import errors

# A spec is JSON of the caller: its values are checked by the server, not here.
Spec = dict[str, Any]
SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|", ["~", "n", ""]),
    "tag:yaml.org,2002:bool": (r"true|false", list("tf")),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+",
        list("-+.0123456789"),
    ),
}


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key_node.value!r} appears twice", key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_float(self, node: yaml.ScalarNode) -> float:
        return float(self.construct_scalar(node))

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))  # YAML 1.1 reads 010 as eight


_Loader.yaml_implicit_resolvers = {}  # not those of YAML 1.1
for _tag, (_pattern, _first) in SCALARS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(f"^(?:{_pattern})$"), _first)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_float)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_integer)


def load(path: Path, overrides: Iterable[str] = ()) -> Spec:
    """Read a spec from a file (`-` is standard input) and apply `key.path=value` overrides."""
    spec = parse(_text(path), path)
    for override in overrides:
        apply(spec, override)
    return spec


def parse(text: str, path: Path) -> Spec:
    """Read a spec from text; `path` is named in errors."""
    try:
        spec = yaml.load(text, _Loader)
        json.dumps(spec, allow_nan=False)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}: " if mark else ""
        raise errors.LocalFileProblem(path, f"{where}{error.problem or error}") from error
    except (yaml.YAMLError, TypeError, ValueError) as error:
        raise errors.LocalFileProblem(path, f"cannot be sent as JSON: {error}") from error
    if not isinstance(spec, dict) or not all(isinstance(key, str) for key in spec):
        raise errors.LocalFileProblem(path, "a job spec is a mapping of names to values")
    return spec


def apply(spec: Spec, override: str) -> None:
    """Set one value in a spec in place: `training.epochs=5`, `method.methods.0.weight=0.5`."""
    dotted, equals, text = override.partition("=")
    steps = dotted.strip().split(".")
    if not equals or not all(steps):
        raise errors.BadOption(f"--set {override}: expected KEY.PATH=VALUE")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise errors.BadOption(f"--set {override}: the value is not YAML") from error
    _put(spec, steps, value, override)


def _put(node: object, steps: list[str], value: object, override: str) -> None:
    step, rest = steps[0], steps[1:]
    if isinstance(node, dict):
        if not rest:
            node[step] = value
            return
        if node.get(step) is None:  # absent or null: created
            node[step] = {}
        _put(node[step], rest, value, override)
    elif isinstance(node, list):
        if not step.isdecimal() or int(step) >= len(node):
            raise errors.BadOption(f"--set {override}: {step!r} is not one of {len(node)} entries")
        if rest:
            _put(node[int(step)], rest, value, override)
        else:
            node[int(step)] = value
    else:
        raise errors.BadOption(f"--set {override}: nothing can be set inside {node!r}")


def _text(path: Path) -> str:
    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except OSError as error:
        raise errors.LocalFileProblem(path, error.strerror or str(error)) from error
    except UnicodeDecodeError as error:
        raise errors.LocalFileProblem(path, "not a text file (UTF-8)") from error
