"""Images: other sizes, crops, patches, colours. The layout is NHWC.

Where the pixel `i` of a result is taken from, with scale = input size / output size:

    half_pixel_centers  (i + 0.5) * scale - 0.5, so that the outer edges fit; nearest: (i + 0.5) * scale
    align_corners       i * (input size - 1) / (output size - 1), so that the centers of the corner pixels fit
    neither             i * scale, which moves the image by half a pixel, the default until TensorFlow 2

Source: tensorflow/core/ops/image_ops.cc, core/kernels/image.
"""

from typing import Final

import torch
import torch.nn.functional as F

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.sliding import Windows, as_format, channels_first, spatial
from torch_tfckpt.graph_ops.values import Ints, Tensor
from torch_tfckpt.text import quoted

# The weights of ResizeBicubic come from a table with this many steps between two pixels.
_STEPS: Final = 1024


@op("ResizeBilinear")
def resize_bilinear(
    images: Tensor, size: Ints, *, align_corners: bool = False, half_pixel_centers: bool = False
) -> Tensor:
    _check(images, size, align_corners, half_pixel_centers)
    x = images.float()
    if align_corners or half_pixel_centers:  # torch has these two
        channels = channels_first(x, "NHWC")
        resized = F.interpolate(channels, size, mode="bilinear", align_corners=align_corners)
        return as_format(resized, "NHWC")
    for axis, wanted in ((1, size[0]), (2, size[1])):
        places = _places(x, axis, wanted, False, False)
        lower = torch.floor(places)
        part = (places - lower).reshape(-1, *[1] * (3 - axis))
        first = x.index_select(axis, lower.long())
        second = x.index_select(axis, torch.clamp(lower.long() + 1, max=x.shape[axis] - 1))
        x = first + (second - first) * part
    return x


@op("ResizeNearestNeighbor")
def resize_nearest_neighbor(
    images: Tensor, size: Ints, *, align_corners: bool = False, half_pixel_centers: bool = False
) -> Tensor:
    _check(images, size, align_corners, half_pixel_centers)
    for axis, wanted in ((1, size[0]), (2, size[1])):
        places = _places(images, axis, wanted, align_corners, False, 0.5 if half_pixel_centers else 0.0)
        nearest = torch.floor(places + 0.5) if align_corners else torch.floor(places)
        images = images.index_select(axis, torch.clamp(nearest.long(), 0, images.shape[axis] - 1))
    return images


@op("ResizeBicubic")
def resize_bicubic(
    images: Tensor, size: Ints, *, align_corners: bool = False, half_pixel_centers: bool = False
) -> Tensor:
    _check(images, size, align_corners, half_pixel_centers)
    x = images.float()
    for axis, wanted in ((1, size[0]), (2, size[1])):
        places = _places(x, axis, wanted, align_corners, half_pixel_centers)
        lower = torch.floor(places)
        step = torch.round((places - lower) * _STEPS) / _STEPS
        sharpness = -0.5 if half_pixel_centers else -0.75
        weights = [
            _far(1 + step, sharpness),
            _near(step, sharpness),
            _near(1 - step, sharpness),
            _far(2 - step, sharpness),
        ]
        around = [lower.long() + offset for offset in (-1, 0, 1, 2)]
        inside = [torch.clamp(each, 0, x.shape[axis] - 1) for each in around]
        if half_pixel_centers:  # pixels beyond the edge do not count
            weights = [torch.where(a == b, w, 0) for a, b, w in zip(around, inside, weights, strict=True)]
            total = weights[0] + weights[1] + weights[2] + weights[3]
            weights = [each / total for each in weights]
        terms = [
            x.index_select(axis, index) * weight.reshape(-1, *[1] * (3 - axis))
            for index, weight in zip(inside, weights, strict=True)
        ]
        x = terms[0] + terms[1] + terms[2] + terms[3]
    return x


@op("CropAndResize")
def crop_and_resize(
    image: Tensor,
    boxes: Tensor,
    box_ind: Tensor,
    crop_size: Ints,
    *,
    method: str = "bilinear",
    extrapolation_value: float = 0.0,
) -> Tensor:
    _check(image, crop_size, no_channels=True)
    if boxes.dim() != 2 or boxes.shape[1] != 4 or tuple(box_ind.shape) != (boxes.shape[0],):
        raise InvalidArgumentError(
            f"boxes must have the shape [n, 4] and box_ind [n], found {list(boxes.shape)} and {list(box_ind.shape)}"
        )
    if method not in ("bilinear", "nearest"):
        raise InvalidArgumentError(f"method is {quoted(method)}, expected bilinear or nearest")
    check_size((boxes.shape[0], *crop_size, image.shape[3]))
    batch, height, width, _ = image.shape
    # Unlike indexing, index_select refuses negative numbers.
    numbers = torch.arange(batch, device=image.device).index_select(0, box_ind.long()).reshape(-1, 1, 1)
    y, rows_inside = _crop_places(boxes[:, 0], boxes[:, 2], height, crop_size[0])
    x, columns_inside = _crop_places(boxes[:, 1], boxes[:, 3], width, crop_size[1])
    y, x = y.unsqueeze(2), x.unsqueeze(1)
    if method == "nearest":
        found = image[numbers, _index(torch.floor(y + 0.5), height), _index(torch.floor(x + 0.5), width)].float()
    else:
        top, bottom = _index(torch.floor(y), height), _index(torch.ceil(y), height)
        left, right = _index(torch.floor(x), width), _index(torch.ceil(x), width)
        down, along = (y - torch.floor(y)).unsqueeze(3), (x - torch.floor(x)).unsqueeze(3)
        lines = [
            (first := image[numbers, row, left].float()) + (image[numbers, row, right].float() - first) * along
            for row in (top, bottom)
        ]
        found = lines[0] + (lines[1] - lines[0]) * down
    is_inside = rows_inside.unsqueeze(2) & columns_inside.unsqueeze(1)
    return torch.where(is_inside.unsqueeze(3), found, extrapolation_value)


@op("ExtractImagePatches")
def extract_image_patches(images: Tensor, *, ksizes: Ints, strides: Ints, rates: Ints, padding: str) -> Tensor:
    x = channels_first(images, "NHWC")
    kernel, steps = spatial(ksizes, "NHWC", "ksizes"), spatial(strides, "NHWC", "strides")
    windows = Windows.of(x.shape[2:], kernel, steps, padding, spatial(rates, "NHWC", "rates"))
    batch, channels = x.shape[:2]
    rows, columns = windows.counts
    depth = kernel[0] * kernel[1] * channels
    check_size((batch, rows, columns, depth))
    if windows.is_empty or 0 in x.shape:
        return images.new_zeros((batch, rows, columns, depth))
    padded = as_format(windows.fully_padded(x), "NHWC")
    for axis, (count, step, size, rate) in enumerate(
        zip(windows.counts, steps, kernel, windows.dilations, strict=True), 1
    ):
        starts = torch.arange(count, device=x.device).unsqueeze(1) * step
        places = starts + torch.arange(size, device=x.device) * rate
        padded = padded.index_select(axis, places.flatten())
    split = padded.reshape(batch, rows, kernel[0], columns, kernel[1], channels)
    return split.permute(0, 1, 3, 2, 4, 5).reshape(batch, rows, columns, depth)


@op("AdjustContrastv2")
def adjust_contrast(images: Tensor, contrast_factor: Tensor) -> Tensor:
    if images.dim() < 3:
        raise InvalidArgumentError(f"expected at least three dimensions, found the shape {list(images.shape)}")
    _check_number("contrast_factor", contrast_factor)
    x = images.float()
    mean = x.mean((-3, -2), keepdim=True)
    return ((x - mean) * contrast_factor + mean).to(images.dtype)


@op("RGBToHSV")
def rgb_to_hsv(images: Tensor) -> Tensor:
    red, green, blue = _colours(images)
    value = images.amax(-1)
    spread = value - images.amin(-1)
    saturation = torch.where(value > 0, spread / torch.where(value > 0, value, 1), 0)
    sixth = 1 / (6 * torch.where(spread > 0, spread, 1))
    hue = torch.where(
        red == value,
        sixth * (green - blue),
        torch.where(green == value, sixth * (blue - red) + 2 / 6, sixth * (red - green) + 4 / 6),
    )
    hue = torch.where(spread > 0, hue, 0)
    return torch.stack([torch.where(hue < 0, hue + 1, hue), saturation, value], -1)


@op("HSVToRGB")
def hsv_to_rgb(images: Tensor) -> Tensor:
    hue, saturation, value = _colours(images)
    angle = hue * 6
    pure = [torch.abs(angle - 3) - 1, 2 - torch.abs(angle - 2), 2 - torch.abs(angle - 4)]
    return torch.stack([((1 - saturation) + saturation * torch.clamp(each, 0, 1)) * value for each in pure], -1)


@op("AdjustSaturation")
def adjust_saturation(images: Tensor, scale: Tensor) -> Tensor:
    _check_number("scale", scale)
    hue, saturation, value = _colours(rgb_to_hsv(images.float()))
    return hsv_to_rgb(torch.stack([hue, torch.clamp(saturation * scale, 0, 1), value], -1)).to(images.dtype)


@op("AdjustHue")
def adjust_hue(images: Tensor, delta: Tensor) -> Tensor:
    _check_number("delta", delta)
    hue, saturation, value = _colours(rgb_to_hsv(images.float()))
    return hsv_to_rgb(torch.stack([torch.remainder(hue + delta, 1), saturation, value], -1)).to(images.dtype)


def _check(
    images: Tensor,
    size: Ints,
    align_corners: bool = False,
    half_pixel_centers: bool = False,
    no_channels: bool = False,
) -> None:
    """Check arguments; `no_channels`: whether there may be images without channels."""
    if images.dim() != 4 or 0 in images.shape[1 : 3 if no_channels else 4]:
        raise InvalidArgumentError(f"expected images [batch, height, width, channels], found {list(images.shape)}")
    if len(size) != 2 or any(each < 1 for each in size):
        raise InvalidArgumentError(f"the size must be two positive numbers, found {list(size)}")
    if align_corners and half_pixel_centers:
        raise InvalidArgumentError("align_corners and half_pixel_centers exclude each other")
    check_size((images.shape[0], *size, images.shape[3]))


def _check_number(name: str, value: Tensor) -> None:
    if value.dim() != 0:
        raise InvalidArgumentError(f"{name} must be a number, found the shape {list(value.shape)}")


def _places(
    x: Tensor, axis: int, wanted: int, align_corners: bool, half_pixel_centers: bool, start: float = 0.0
) -> Tensor:
    """Return where along the axis the pixels of a result are taken from; `start` is added before scaling."""
    size = x.shape[axis]
    scale = (size - 1) / (wanted - 1) if align_corners and wanted > 1 else size / wanted
    pixels = torch.arange(wanted, dtype=torch.float32, device=x.device)
    if half_pixel_centers:
        return (pixels + 0.5) * scale - 0.5
    return (pixels + start) * scale


def _near(distance: Tensor, sharpness: float) -> Tensor:
    """The cubic kernel up to distance 1."""
    return ((sharpness + 2) * distance - (sharpness + 3)) * distance * distance + 1


def _far(distance: Tensor, sharpness: float) -> Tensor:
    """The cubic kernel from distance 1 to 2."""
    return ((sharpness * distance - 5 * sharpness) * distance + 8 * sharpness) * distance - 4 * sharpness


def _crop_places(start: Tensor, end: Tensor, size: int, wanted: int) -> tuple[Tensor, Tensor]:
    """Return where the lines of each box are, [n, wanted], and whether they are inside the image."""
    start, end = start.unsqueeze(1), end.unsqueeze(1)
    if wanted > 1:
        step = (end - start) * (size - 1) / (wanted - 1)
        places = start * (size - 1) + torch.arange(wanted, dtype=start.dtype, device=start.device) * step
    else:
        places = 0.5 * (start + end) * (size - 1)
    return places, (places >= 0) & (places <= size - 1)


def _index(places: Tensor, size: int) -> Tensor:
    return torch.clamp(places, 0, size - 1).long()


def _colours(images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if images.dim() < 1 or images.shape[-1] != 3:
        raise InvalidArgumentError(f"the last dimension must have three colours, found {list(images.shape)}")
    red, green, blue = images.unbind(-1)
    return red, green, blue
