"""Lists of slices that no straight cut separates, or that every cut separates badly."""

from hostile import box

from torch_tfckpt.format.tensor_slice import TensorSlice

WHOLE = (0, -1)  # an extent of `box`


def staircase(count: int) -> list[TensorSlice]:
    """A strip on the left, one at the top of the rest, one on the left of the rest: each cut splits off one slice."""
    size = count + 2
    steps = []
    for step in range(count // 2):
        steps.append(box((step, 1), (step, size - step)))
        steps.append(box((step + 1, size - step - 1), (step, 1)))
    return steps


def pinwheels(count: int, rank: int) -> list[TensorSlice]:
    """Groups of slices that no straight cut separates, next to each other, in `rank` dimensions."""
    wheel = [((0, 2), (0, 1)), ((2, 1), (0, 2)), ((1, 2), (2, 1)), ((0, 1), (1, 2))]
    return [
        box((3 * number + start, length), other, *[WHOLE] * (rank - 2))
        for number in range(count // 4)
        for (start, length), other in wheel
    ]


def knots(groups: int, size: int) -> list[TensorSlice]:
    """Groups of `size` interlocking slices; the groups can be separated from each other."""
    parts = []
    for group in range(groups):
        base = group * 4 * size
        # Two long arms that block all cuts along both axes, and unit squares between them.
        parts += [box((base, 2 * size), (0, 1)), box((base + 2 * size, 1), (0, 2 * size))]
        parts += [box((base + 1, 2 * size), (2 * size, 1)), box((base, 1), (1, 2 * size))]
        parts += [box((base + 1 + step, 1), (1 + step, 1)) for step in range(size - 4)]
    return parts
