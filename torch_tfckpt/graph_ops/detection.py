"""Non-maximum suppression: the best boxes that do not overlap much.

Boxes are two opposite corners, [y1, x1, y2, x2] in any order. Candidates are taken in the order of their scores, equal
ones in that of their numbers. One that overlaps a selected box by more than `iou_threshold` is dropped. With
`soft_nms_sigma` its score is lowered instead, and it waits for its turn again.

How many boxes are selected depends on the values, so that these operations cannot be exported with torch.export.

Source: tensorflow/core/kernels/image/non_max_suppression_op.cc.
"""

import heapq

import torch
import torch.nn.functional as F

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Tensor


@op("NonMaxSuppression")
def non_max_suppression(boxes: Tensor, scores: Tensor, max_output_size: int, *, iou_threshold: float = 0.5) -> Tensor:
    return _hard(boxes, scores, max_output_size, boxes.new_tensor(iou_threshold), None).int()


@op("NonMaxSuppressionV2")
def non_max_suppression_v2(boxes: Tensor, scores: Tensor, max_output_size: int, iou_threshold: Tensor) -> Tensor:
    return _hard(boxes, scores, max_output_size, iou_threshold, None).int()


@op("NonMaxSuppressionV3")
def non_max_suppression_v3(
    boxes: Tensor, scores: Tensor, max_output_size: int, iou_threshold: Tensor, score_threshold: Tensor
) -> Tensor:
    return _hard(boxes, scores, max_output_size, iou_threshold, score_threshold).int()


@op("NonMaxSuppressionV4", outputs=("selected_indices", "valid_outputs"))
def non_max_suppression_v4(
    boxes: Tensor,
    scores: Tensor,
    max_output_size: int,
    iou_threshold: Tensor,
    score_threshold: Tensor,
    *,
    pad_to_max_output_size: bool = False,
) -> tuple[Tensor, Tensor]:
    found = _hard(boxes, scores, max_output_size, iou_threshold, score_threshold)
    count = torch.tensor(found.shape[0], dtype=torch.int32, device=boxes.device)
    return (_padded(found, max_output_size) if pad_to_max_output_size else found).int(), count


@op("NonMaxSuppressionV5", outputs=("selected_indices", "selected_scores", "valid_outputs"))
def non_max_suppression_v5(
    boxes: Tensor,
    scores: Tensor,
    max_output_size: int,
    iou_threshold: Tensor,
    score_threshold: Tensor,
    soft_nms_sigma: Tensor,
    *,
    pad_to_max_output_size: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    _check(boxes, scores, max_output_size, iou_threshold)
    sigma = float(soft_nms_sigma)
    if sigma < 0:
        raise InvalidArgumentError(f"soft_nms_sigma is {sigma}, which must not be negative")
    if sigma:
        found, values = _soft(boxes, scores, max_output_size, float(score_threshold), sigma)
    else:
        found = _hard(boxes, scores, max_output_size, iou_threshold, score_threshold)
        values = scores.detach()[found]
    count = torch.tensor(found.shape[0], dtype=torch.int32, device=boxes.device)
    if pad_to_max_output_size:
        found, values = _padded(found, max_output_size), _padded(values, max_output_size)
    return found.int(), values, count


def _check(boxes: Tensor, scores: Tensor, max_output_size: int, iou_threshold: Tensor) -> None:
    if boxes.dim() != 2 or boxes.shape[1] != 4 or tuple(scores.shape) != (boxes.shape[0],):
        raise InvalidArgumentError(
            f"boxes must have the shape [n, 4] and scores [n], found {list(boxes.shape)} and {list(scores.shape)}"
        )
    if max_output_size < 0:
        raise InvalidArgumentError(f"max_output_size is {max_output_size}, which must not be negative")
    if not 0 <= float(iou_threshold) <= 1:
        raise InvalidArgumentError(f"iou_threshold is {float(iou_threshold)}, which must be between 0 and 1")


def _hard(
    boxes: Tensor, scores: Tensor, max_output_size: int, iou_threshold: Tensor, score_threshold: Tensor | None
) -> Tensor:
    """Return the numbers of the selected boxes."""
    _check(boxes, scores, max_output_size, iou_threshold)
    scores, boxes = scores.detach(), boxes.detach()
    order = torch.argsort(scores, descending=True, stable=True)
    if score_threshold is not None:
        order = order[scores[order] > score_threshold]
    corners = _sorted_corners(boxes[order])
    is_left = torch.ones(order.shape[0], dtype=torch.bool, device=boxes.device)
    selected: list[int] = []
    while len(selected) < max_output_size and bool(is_left.any()):
        best = int(is_left.int().argmax())
        selected.append(best)
        is_left &= ~(_overlap(corners[best], corners) > iou_threshold)
        is_left[best] = False
    return order[torch.tensor(selected, dtype=torch.int64, device=boxes.device)]


def _soft(
    boxes: Tensor, scores: Tensor, max_output_size: int, score_threshold: float, sigma: float
) -> tuple[Tensor, Tensor]:
    """Return the numbers of the selected boxes and their lowered scores."""
    scores, corners = scores.detach(), _sorted_corners(boxes.detach())
    # (-score, number, how many selected boxes its score has been compared with)
    waiting = [(-score, number, 0) for number, score in enumerate(scores.tolist()) if score > score_threshold]
    heapq.heapify(waiting)
    selected: list[int] = []
    values: list[float] = []
    while waiting and len(selected) < max_output_size:
        negative, number, seen = heapq.heappop(waiting)
        others = corners[torch.tensor(selected[seen:][::-1], dtype=torch.int64, device=boxes.device)]
        weights = torch.exp(-0.5 / sigma * _overlap(corners[number], others) ** 2)
        lowered = torch.cumprod(torch.cat([scores.new_tensor([-negative]), weights]), 0)
        if bool((lowered <= score_threshold).any()):
            continue
        score = float(lowered[-1])
        if score == -negative:
            selected.append(number)
            values.append(score)
        else:
            heapq.heappush(waiting, (-score, number, len(selected)))
    return torch.tensor(selected, dtype=torch.int64, device=boxes.device), scores.new_tensor(values)


def _sorted_corners(boxes: Tensor) -> Tensor:
    """[y1, x1, y2, x2] with the smaller numbers first."""
    first, second = boxes[:, :2], boxes[:, 2:]
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], 1)


def _overlap(box: Tensor, others: Tensor) -> Tensor:
    """Return intersection over union of a box and each of the others; 0 if one of them has no area."""
    area, areas = (box[2] - box[0]) * (box[3] - box[1]), (others[:, 2] - others[:, 0]) * (others[:, 3] - others[:, 1])
    sides = torch.clamp(torch.minimum(box[2:], others[:, 2:]) - torch.maximum(box[:2], others[:, :2]), min=0)
    common = sides[:, 0] * sides[:, 1]
    return torch.where((area <= 0) | (areas <= 0), 0, common / (area + areas - common))


def _padded(values: Tensor, size: int) -> Tensor:
    check_size([size])
    return F.pad(values, (0, size - values.shape[0]))
