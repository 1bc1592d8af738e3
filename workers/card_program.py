"""The program in a student's card: reads pictures and prints what the student says of them.

It runs beside the student's files and needs only what `config.json` says: torch, Pillow and
safetensors, with timm or torchvision where the network is theirs. Pictures become what the student
was evaluated on, so that its answers are those that its scores were measured with.
"""

import ast
from collections.abc import Iterator, Sequence
from typing import Any

from models_registry.artifacts import models

# Free-form JSON: the content of config.json.
Json = dict[str, Any]

FILE = "model.py"
WIDTH = 80
"""Columns of the program's lines; those of a table in a terminal."""
DISTRIBUTION = "retort-distill"
"""What an installer calls Retort (`project.name` in pyproject.toml)."""
PICTURE_MODES = {1: "L", 3: "RGB"}
"""Pillow's names of pictures by their channels; others are read as arrays."""


def packages(description: Json) -> list[str]:
    """Return what has to be installed for the program, as an installer calls it."""
    reader = (
        "pillow" if description["preprocessing"]["picture_channels"] in PICTURE_MODES else "numpy"
    )
    if description["needs"] is not None:
        return [*description["needs"], reader]
    if description["library_call"] is not None:
        library = description["library_call"]["function"].partition(".")[0]
        return ["torch", library, "safetensors", reader]
    return [f"{DISTRIBUTION}[worker]"]


def lines(description: Json) -> Iterator[str]:
    """Yield the lines of the program."""
    given = description["preprocessing"]
    is_picture = given["picture_channels"] in PICTURE_MODES
    yield from _imports(description, is_picture=is_picture)
    yield ""
    yield from _network(description)
    if description["classes"]:
        yield 'classes, given = config["classes"], config["preprocessing"]'
    else:
        yield 'given = config["preprocessing"]'
    yield ""
    yield ""
    yield "def read(path):"
    yield '    """Return the network\'s input, [1, channels, height, width], for a file."""'
    yield from _picture(given) if is_picture else _array(given)
    yield from _input(given)
    yield ""
    yield ""
    yield f"for path in sys.argv[1:]:  # {'pictures' if is_picture else 'files of numpy.save'}"
    yield "    with torch.inference_mode():"
    yield from ANSWERS[description["task"]](description)


def _imports(description: Json, *, is_picture: bool) -> Iterator[str]:
    call, has_file = description["library_call"], description["needs"] is not None
    plain = ["import sys"]
    if call is not None:
        plain = ["import json", *plain]
    foreign = ["import torch"] + ([] if is_picture else ["import numpy"])
    named = ["from PIL import Image, ImageOps"] if is_picture else []
    if call is not None:
        foreign.append(f"import {call['function'].partition('.')[0]}")
        named.append("from safetensors.torch import load_file")
    elif not has_file:
        plain = ["import json", *plain, "from pathlib import Path"]
        named.append("from workers.distill.networks import weights")
    if has_file:
        foreign.append(f"import {FILE.removesuffix('.py')}  # {FILE}, beside the weights")
    yield from plain
    yield ""
    yield from sorted(foreign)
    yield from named


def _network(description: Json) -> Iterator[str]:
    """Yield how network and config.json are loaded."""
    call = description["library_call"]
    if description["needs"] is not None:
        yield "network, config = model.load()"
        return
    yield 'config = json.load(open("config.json", encoding="utf-8"))'
    if call is None:
        yield f'network, _ = weights.rebuild(Path("{models.WEIGHTS}"))'
    else:
        keywords = ", ".join(f"{name}={value!r}" for name, value in call["keywords"].items())
        yield from _statement(f"network = {call['function']}({call['name']!r}, {keywords})")
        for path, part in call["replaced"].items():
            yield from _statement(f"network.set_submodule({path!r}, {part})")
        yield f'network.load_state_dict(load_file("{models.WEIGHTS}"))'
    yield "network.eval()"


def _picture(given: Json) -> Iterator[str]:
    """Yield how a picture gets the size of the images that the student was evaluated on."""
    height, width = given["picture_size"]
    mode = PICTURE_MODES[given["picture_channels"]]
    yield "    picture = ImageOps.exif_transpose(Image.open(path))"
    yield '    if picture.mode[0] in "IF":'
    yield '        sys.exit(f"{path}: more than 8 bits; scale its values to 0..255")'
    yield f'    picture = picture.convert("{mode}")'
    yield f"    height, width = {height}, {width}"
    if given["crop_mode"] == "center":
        share = given["crop_pct"]
        least = (int(height / share), int(width / share))
        if share == 1:
            yield "    # Scaled until it covers this size, then cut at its centre."
        else:
            yield f"    # Scaled until it covers {least[0]} x {least[1]}, then cut at its centre."
        names = ("height", "width") if share == 1 else least
        yield f"    scale = max({names[0]} / picture.height, {names[1]} / picture.width)"
        yield f"    tall = max({names[0]}, round(picture.height * scale))"
        yield f"    wide = max({names[1]}, round(picture.width * scale))"
    else:
        yield "    # Scaled until it fits into this size, at the top left; the rest is grey."
        yield "    scale = min(height / picture.height, width / picture.width)"
        yield "    tall = min(height, max(1, round(picture.height * scale)))"
        yield "    wide = min(width, max(1, round(picture.width * scale)))"
    yield "    if (tall, wide) != (picture.height, picture.width):"
    yield "        picture = picture.resize((wide, tall), Image.Resampling.BILINEAR)"
    if given["crop_mode"] == "center":
        yield "    left, top = (wide - width) // 2, (tall - height) // 2"
        yield "    picture = picture.crop((left, top, left + width, top + height))"
    else:
        fill = given["pad_value"]
        colour = fill if mode == "L" else (fill,) * given["picture_channels"]
        yield f'    canvas = Image.new("{mode}", (width, height), {colour})'
        yield "    canvas.paste(picture)"
        yield "    picture = canvas"
    yield "    pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)"
    yield "    image = pixels.view(1, height, width, -1).permute(0, 3, 1, 2).float()"


def _array(given: Json) -> Iterator[str]:
    height, width = given["picture_size"]
    yield f"    # Values of 0..255 as [{given['picture_channels']}, {height}, {width}]."
    yield "    image = torch.from_numpy(numpy.load(path))[None].float()"


def _input(given: Json) -> Iterator[str]:
    """Yield how an image of the data set becomes the network's input."""
    channels, height, width = given["input_size"]
    if [height, width] != given["picture_size"]:
        yield "    image = torch.nn.functional.interpolate("
        yield f'        image, size=({height}, {width}), mode="{given["interpolation"]}",'
        yield f"        antialias={given['antialias']}, align_corners=False,"
        yield "    )"
    if channels != given["picture_channels"]:
        yield f"    image = image.expand(1, {channels}, {height}, {width})  # grey in each channel"
    yield '    mean = torch.tensor(given["mean"]).view(1, -1, 1, 1)'
    yield '    std = torch.tensor(given["std"]).view(1, -1, 1, 1)'
    yield "    return (image / 255 - mean) / std"


def _class(_description: Json) -> Iterator[str]:
    yield "        probabilities = network(read(path)).softmax(1)[0]"
    yield "    best = int(probabilities.argmax())"
    yield '    print(path, classes[best], f"{float(probabilities[best]):.4f}", sep="\\t")'


def _mask(description: Json) -> Iterator[str]:
    output = 'network(read(path))["out"]' if description["library_call"] else "network(read(path))"
    yield f"        logits = {output}"
    yield "    mask = logits[0].argmax(0)  # the number of the class of each pixel"
    yield "    for number in mask.unique().tolist():"
    yield "        share = float((mask == number).float().mean())"
    yield '        print(path, classes[number], f"{share:.4f}", sep="\\t")'


def _boxes(description: Json) -> Iterator[str]:
    call = description["library_call"]
    if call is None:
        yield "        rows = network(read(path))[0].tolist()  # the highest scores first"
        yield "    for number, score, x1, y1, x2, y2 in rows:"
        yield "        if number < 0 or score < 0.3:  # rows of class -1 are padding"
        yield "            continue"
    else:
        first = call["keywords"]["num_classes"] - len(description["classes"])
        yield "        found = network(read(path))[0]  # the highest scores first"
        yield '    rows = zip(found["labels"], found["scores"], found["boxes"].tolist())'
        yield "    for number, score, (x1, y1, x2, y2) in rows:"
        yield "        if score < 0.3:"
        yield "            continue"
        if first:
            yield f"        number = number - {first}  # class 0 is background"
    yield "        box = (round(side, 1) for side in (x1, y1, x2, y2))  # in pixels"
    yield '        print(path, classes[int(number)], f"{float(score):.4f}", *box, sep="\\t")'


def _embedding(_description: Json) -> Iterator[str]:
    yield "        embedding = network(read(path))[0]"
    yield '    print(path, *(f"{number:.6g}" for number in embedding.tolist()), sep="\\t")'


ANSWERS = {
    "classification": _class,
    "segmentation": _mask,
    "detection": _boxes,
    "embedding": _embedding,
}


def _statement(text: str) -> Iterator[str]:
    """Yield an assignment or call of one line, an argument a line where it is too long."""
    if len(text) <= WIDTH:
        yield text
        return
    node = ast.parse(text).body[0]
    call = node.value if isinstance(node, ast.Assign | ast.Expr) else None
    if not isinstance(call, ast.Call):
        raise TypeError(f"no call: {text}")
    start = f"{ast.unparse(node.targets[0])} = " if isinstance(node, ast.Assign) else ""
    yield from _call(call, start, "", "")


def _call(call: ast.Call, start: str, end: str, indent: str) -> Iterator[str]:
    """Yield a call whose arguments stand on lines of their own, as do theirs where they must."""
    yield f"{indent}{start}{ast.unparse(call.func)}("
    inner: Sequence[ast.expr | ast.keyword] = (*call.args, *call.keywords)
    for one in inner:
        line = f"{indent}    {ast.unparse(one)},"
        if len(line) > WIDTH and isinstance(one, ast.Call):
            yield from _call(one, "", ",", f"{indent}    ")
        else:
            yield line
    yield f"{indent}){end}"
