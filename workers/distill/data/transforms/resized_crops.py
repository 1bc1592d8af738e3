"""Scale jitter: images resized by random factors, then cut or padded to their own size.

Source: Ghiasi et al., CVPR 2021, arXiv 2012.07177 ("large scale jittering"); segmentation has used
factors of 0.5 to 2 since Chen et al., arXiv 1706.05587.
Differs: padding is black, and what is cut out has the size of the stored image.
"""

import torch
import torch.nn.functional as F  # noqa: N812 - the name that every reader of PyTorch knows
from jaxtyping import Int, Integer, UInt8
from torch import Tensor

from workers.distill.data.stateless_rng import StatelessRNG
from workers.distill.data.types import Crops


def draw(
    stream: StatelessRNG,
    factors: tuple[float, float],
    *,
    height: int,
    width: int,
    flip: bool,
) -> Crops:
    """Draw a factor, a place and a flip for each image, uniformly; on the CPU."""
    low, high = factors
    scale = low + stream.shares() * (high - low)
    top = (stream.shares() * (scale * height - height)).round().long()
    left = (stream.shares() * (scale * width - width)).round().long()
    return Crops(top, left, stream.coins() & flip, height, width, scale.float())


def cut_images(images: UInt8[Tensor, "N c h w"], crops: Crops) -> UInt8[Tensor, "N c h w"]:
    """Return the crops of images, interpolated bilinearly; what is outside of an image is 0."""
    rows, columns = _sources(crops)
    # The centre of the first pixel is at 1/side - 1, that of the last at 1 - 1/side.
    y = (2 * rows + 1) / crops.height - 1
    x = (2 * columns + 1) / crops.width - 1
    shape = (len(images), crops.height, crops.width)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], dim=-1)
    cut = F.grid_sample(images.float(), grid, mode="bilinear", align_corners=False)
    return cut.round_().to(torch.uint8).contiguous(memory_format=torch.channels_last)


def cut_masks(
    masks: Integer[Tensor, "N h w"], crops: Crops, outside: int
) -> Integer[Tensor, "N h w"]:
    """Return the crops of masks by the nearest pixel; `outside` is what is not in the image."""
    rows, columns = _sources(crops)
    rows, columns = rows.round().long()[:, :, None], columns.round().long()[:, None, :]
    inside = (rows >= 0) & (rows < crops.height) & (columns >= 0) & (columns < crops.width)
    image: Int[Tensor, "N 1 1"] = torch.arange(len(masks), device=masks.device)[:, None, None]
    cut = masks[image, rows.clamp(0, crops.height - 1), columns.clamp(0, crops.width - 1)]
    return torch.where(inside, cut, outside)


def _sources(crops: Crops) -> tuple[Tensor, Tensor]:
    """Return where each row and column of a crop lies in its image [N, H], [N, W], in pixels."""
    device = crops.top.device
    columns = torch.arange(crops.width, device=device)
    columns = torch.where(crops.mirrored[:, None], crops.width - 1 - columns, columns)
    rows = torch.arange(crops.height, device=device) + crops.top[:, None]
    columns = columns + crops.left[:, None]
    if crops.scale is None:
        return rows.float(), columns.float()
    scale = crops.scale[:, None]
    return (rows + 0.5) / scale - 0.5, (columns + 0.5) / scale - 0.5
