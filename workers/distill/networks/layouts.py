"""Names under which other libraries keep the weights of the same networks.

A layout says for each key of a network under which keys a file has it; where there are several,
their tensors are stacked. So a file is read by asking for what the network needs, and whatever is
not asked for remains to be told.

Source: models of Hugging Face transformers 4 (`modeling_vit.py`, `modeling_deit.py`,
`modeling_swin.py`, `modeling_convnext.py`, `modeling_resnet.py`) and of timm 1.
"""

import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

Rules = tuple[tuple[str, tuple[str, ...]], ...]
Sources = Callable[[str], tuple[str, ...] | None]


@dataclass(frozen=True)
class NameLayout:
    """One way to name a network's weights."""

    title: str
    """Whose names they are; empty for those of the network itself."""
    sources: Sources
    """Returns a key's names in a file, or None for a key that files of this layout do not have."""


def _own(key: str) -> tuple[str, ...]:
    return (key,)


OWN = NameLayout("", _own)

_QKV = ("query", "key", "value")
_BLOCK: Rules = (
    (r"norm1\.(.*)", (r"layernorm_before.\1",)),
    (r"attn\.proj\.(.*)", (r"attention.output.dense.\1",)),
    (r"norm2\.(.*)", (r"layernorm_after.\1",)),
    (r"mlp\.fc1\.(.*)", (r"intermediate.dense.\1",)),
    (r"mlp\.fc2\.(.*)", (r"output.dense.\1",)),
)


def _in_block(ours: str, theirs: str, rules: Rules) -> Rules:
    """Return rules for keys within a numbered block; `theirs` begins with the block's numbers."""
    shift = re.compile(ours).groups
    return tuple(
        (
            ours + pattern,
            tuple(theirs + re.sub(r"\\1", rf"\\{shift + 1}", name) for name in names),
        )
        for pattern, names in rules
    )


def _vit(stem: str, heads: Rules) -> Rules:
    qkv = tuple(rf"attention.attention.{name}.\1" for name in _QKV)
    return (
        ("cls_token", (f"{stem}.embeddings.cls_token",)),
        ("dist_token", (f"{stem}.embeddings.distillation_token",)),
        ("pos_embed", (f"{stem}.embeddings.position_embeddings",)),
        (r"patch_embed\.proj\.(.*)", (rf"{stem}.embeddings.patch_embeddings.projection.\1",)),
        *_in_block(
            r"blocks\.(\d+)\.",
            rf"{stem}.encoder.layer.\1.",
            (*_BLOCK, (r"attn\.qkv\.(.*)", qkv)),
        ),
        (r"norm\.(.*)", (rf"{stem}.layernorm.\1",)),
        *heads,
    )


_VIT = _vit("vit", ((r"head\.(.*)", (r"classifier.\1",)),))
_DEIT = _vit(
    "deit",
    (
        (r"head\.(.*)", (r"cls_classifier.\1",)),
        (r"head_dist\.(.*)", (r"distillation_classifier.\1",)),
    ),
)
_SWIN: Rules = (
    (r"patch_embed\.proj\.(.*)", (r"swin.embeddings.patch_embeddings.projection.\1",)),
    (r"patch_embed\.norm\.(.*)", (r"swin.embeddings.norm.\1",)),
    *_in_block(
        r"layers\.(\d+)\.blocks\.(\d+)\.",
        r"swin.encoder.layers.\1.blocks.\2.",
        (
            *_BLOCK,
            (r"attn\.qkv\.(.*)", tuple(rf"attention.self.{name}.\1" for name in _QKV)),
            (
                r"attn\.(relative_position_bias_table)",
                (r"attention.self.\1",),
            ),
        ),
    ),
    # There a stage ends with its downsampling; in timm the next one begins with it.
    (r"layers\.(\d+)\.downsample\.(.*)", (r"swin.encoder.layers.<\1>.downsample.\2",)),
    (r"norm\.(.*)", (r"swin.layernorm.\1",)),
    (r"head\.fc\.(.*)", (r"classifier.\1",)),
)
_CONVNEXT: Rules = (
    (r"stem\.0\.(.*)", (r"convnext.embeddings.patch_embeddings.\1",)),
    (r"stem\.1\.(.*)", (r"convnext.embeddings.layernorm.\1",)),
    (
        r"stages\.(\d+)\.downsample\.(.*)",
        (r"convnext.encoder.stages.\1.downsampling_layer.\2",),
    ),
    *_in_block(
        r"stages\.(\d+)\.blocks\.(\d+)\.",
        r"convnext.encoder.stages.\1.layers.\2.",
        (
            (r"gamma()", (r"layer_scale_parameter\1",)),
            (r"conv_dw\.(.*)", (r"dwconv.\1",)),
            (r"norm\.(.*)", (r"layernorm.\1",)),
            (r"mlp\.fc1\.(.*)", (r"pwconv1.\1",)),
            (r"mlp\.fc2\.(.*)", (r"pwconv2.\1",)),
        ),
    ),
    (r"head\.norm\.(.*)", (r"convnext.layernorm.\1",)),
    (r"head\.fc\.(.*)", (r"classifier.\1",)),
)
_RESNET: Rules = (
    (r"conv1\.(.*)", (r"resnet.embedder.embedder.convolution.\1",)),
    (r"bn1\.(.*)", (r"resnet.embedder.embedder.normalization.\1",)),
    (
        r"layer(\d+)\.(\d+)\.conv(\d)\.(.*)",
        (r"resnet.encoder.stages.<\1>.layers.\2.layer.<\3>.convolution.\4",),
    ),
    (
        r"layer(\d+)\.(\d+)\.bn(\d)\.(.*)",
        (r"resnet.encoder.stages.<\1>.layers.\2.layer.<\3>.normalization.\4",),
    ),
    (
        r"layer(\d+)\.(\d+)\.downsample\.0\.(.*)",
        (r"resnet.encoder.stages.<\1>.layers.\2.shortcut.convolution.\3",),
    ),
    (
        r"layer(\d+)\.(\d+)\.downsample\.1\.(.*)",
        (r"resnet.encoder.stages.<\1>.layers.\2.shortcut.normalization.\3",),
    ),
    (r"fc\.(.*)", (r"classifier.1.\1",)),
)
# Published implementations for CIFAR whose residual networks differ from ours in names alone.
_CIFAR: Rules = (
    (r"fc\.(.*)", (r"linear.\1",)),
    (r"(.*\.)downsample\.(.*)", (r"\1shortcut.\2",)),
    (r"(.*)", (r"\1",)),
)
_CIFAR_BACK: Rules = (
    (r"linear\.(.*)", (r"fc.\1",)),
    (r"(.*\.)shortcut\.(.*)", (r"\1downsample.\2",)),
    (r"(.*)", (r"\1",)),
)

_MMPRETRAIN: Rules = (
    (r"fc\.(.*)", (r"head.fc.\1",)),
    (r"(.*)", (r"backbone.\1",)),
)

_TRANSFORMERS = "transformers"
# Whose names, which key tells that a network is of the kind, and the rules.
_KNOWN: tuple[tuple[str, str, Rules], ...] = (
    (_TRANSFORMERS, "blocks.0.attn.qkv.weight", _VIT),
    (_TRANSFORMERS, "blocks.0.attn.qkv.weight", _DEIT),
    (_TRANSFORMERS, "layers.0.blocks.0.attn.relative_position_bias_table", _SWIN),
    (_TRANSFORMERS, "stages.0.blocks.0.conv_dw.weight", _CONVNEXT),
    (_TRANSFORMERS, "layer1.0.conv1.weight", _RESNET),
    ("OpenMMLab", "layer1.0.conv1.weight", _MMPRETRAIN),
    ("networks for CIFAR", "fc.weight", _CIFAR),
    ("torchvision", "linear.weight", _CIFAR_BACK),
)
_FOREIGN_MARK = re.compile(
    r"(^|\.)(vit|deit|beit|swin|convnext|resnet)\.(embeddings|embedder|encoder)\."
)


def candidates(expected: Collection[str]) -> Iterator[NameLayout]:
    """Yield the layouts in which a file may have the weights of a network with these keys."""
    yield OWN
    for title, marker, rules in _KNOWN:
        if marker in expected:
            yield NameLayout(title, _by(rules))


def hint(keys: Collection[str]) -> str:
    """Return whose names these keys are, where that is known and they were not read."""
    for key in keys:
        if found := _FOREIGN_MARK.search(key):
            return (
                f"These are names of transformers ({found.group(2)}): choose the network of timm "
                "that is the same one, in the same size; ViT, DeiT, Swin, ConvNeXt and ResNet are "
                "converted."
            )
    return ""


def _by(rules: Rules) -> Sources:
    compiled = [(re.compile(pattern), names) for pattern, names in rules]

    def sources(key: str) -> tuple[str, ...] | None:
        for pattern, names in compiled:
            if found := pattern.fullmatch(key):
                return tuple(_counted_from_0(found.expand(name)) for name in names)
        return None

    return sources


def _counted_from_0(name: str) -> str:
    """Return the name with each number in angle brackets lowered by one."""
    return re.sub(r"<(\d+)>", lambda number: str(int(number.group(1)) - 1), name)
