"""Random graphs of common operations, from recipes. Runs in the TensorFlow process only.

A recipe is a list of (kind, first, second, number): apply `KINDS[kind]` to two earlier tensors. Each step is also run
eagerly, so that its shape is known although the placeholders of the graph have an unknown first size. A step that
TensorFlow refuses, or that gives a large tensor, is left out.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow.python.eager import context  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor

v1 = tf.compat.v1

LARGEST = 3000
Step = tuple[int, int, int, int]
# The serialized MetaGraphDef, the feeds, and the values of all steps by the name of their tensor.
RandomGraph = tuple[bytes, dict[str, RawTensor], dict[str, RawTensor]]


def count_kinds() -> tuple[int, int]:
    """Return how many kinds of steps there are, and how many of them are continuous: these come first."""
    return len(SMOOTH) + len(ROUGH), len(SMOOTH)


def random_graph(dtype: str, shapes: Sequence[Sequence[int]], recipe: Sequence[Step]) -> RandomGraph:
    """Build and run a graph whose placeholders have these shapes."""
    generator = np.random.default_rng(len(recipe))
    kinds = [*SMOOTH, *ROUGH]
    eager = [tf.constant(generator.standard_normal(shape), dtype) for shape in shapes]
    with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
        values = [v1.placeholder(dtype, [None, *shape[1:]] if shape else []) for shape in shapes]
        feeds = dict(zip(values, (each.numpy() for each in eager), strict=True))
        made: list[str] = []
        for kind, first, second, number in recipe:
            x, y = first % len(eager), second % len(eager)
            sizes = eager[x].shape.as_list(), eager[y].shape.as_list()
            function = kinds[kind % len(kinds)]
            try:
                with context.eager_mode():
                    known = tf.cast(function(eager[x], eager[y], *sizes, number), dtype)
                if math.prod(known.shape.as_list()) > LARGEST or not np.isfinite(known.numpy()).all():
                    continue
                value = tf.identity(tf.cast(function(values[x], values[y], *sizes, number), dtype), f"step{len(made)}")
            except (tf.errors.OpError, ValueError, TypeError, IndexError, ZeroDivisionError):
                continue
            made.append(value.name)
            values.append(value)
            eager.append(known)
        found = session.run(made, feeds)
        meta = v1.train.export_meta_graph(graph=graph).SerializeToString(deterministic=True)
    return (
        meta,
        {each.name: RawTensor.of(value) for each, value in feeds.items()},
        {name: RawTensor.of(value) for name, value in zip(made, found, strict=True)},
    )


# Two tensors, their sizes, and a number that chooses attributes.
Kind = Callable[[Any, Any, list[int], list[int], int], Any]

DIVIDED = (lambda x, y: x / (1 + tf.square(y)), lambda x, y: tf.math.divide_no_nan(x, 1 + tf.abs(y)))
JOINED = (tf.add, tf.subtract, tf.multiply, tf.maximum, tf.minimum, tf.math.squared_difference, *DIVIDED)
BOUNDED = (tf.tanh, tf.sigmoid, tf.sin, tf.cos, tf.square, tf.abs, tf.negative, tf.math.erf, tf.math.atan)
ACTIVATIONS = (
    tf.nn.relu, tf.nn.relu6, tf.nn.elu, tf.nn.selu, tf.nn.softplus, tf.nn.softsign, tf.nn.leaky_relu, tf.nn.swish,
)  # fmt: skip
POSITIVE = (tf.math.log1p, tf.sqrt, tf.math.rsqrt, tf.math.log, tf.math.reciprocal)  # of numbers of 1 and more
GROWING = (tf.exp, tf.math.expm1, tf.math.erfc, tf.math.tan)  # of numbers up to 1
COMPARED = (tf.less, tf.greater_equal, tf.equal, tf.not_equal, lambda x, y: tf.logical_and(x > 0, y > 0))


def _axis(s: list[int], n: int) -> int:
    """Return an axis, from the end if n is odd."""
    axis = (n // 2) % len(s)
    return axis - len(s) if n % 2 else axis


def _weights(n: int, *shape: int, dtype: Any) -> Any:
    return tf.constant(np.random.default_rng(n).standard_normal(shape) * 0.5, dtype)


def _image(x: Any, s: list[int], n: int) -> Any:
    """Reshape to [batch, height, width, channels], with a size of 1 where the elements cannot be divided."""
    total, sizes = math.prod(s), []
    for _ in range(3):
        size = next(each for each in (5 + n % 3, 4, 3, 2, 1) if total % each == 0)
        sizes.append(size)
        total //= size
    return tf.reshape(x, [total if n % 2 else -1, *sizes])


def _conv2d(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    image = _image(x, s, n)
    filters = _weights(n, 1 + n % 3, 1 + n // 2 % 3, image.shape[-1], 2, dtype=x.dtype)
    padding = ["SAME", "VALID", [[0, 0], [1, n % 2], [0, 1], [0, 0]]][n % 3]
    return tf.nn.conv2d(image, filters, [1, 1 + n // 3 % 2, 1 + n // 3 % 2, 1], padding)


def _depthwise(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    image = _image(x, s, n)
    filters = _weights(n, 2, 1 + n % 3, image.shape[-1], 1 + n // 2 % 2, dtype=x.dtype)
    return tf.nn.depthwise_conv2d(image, filters, [1, 1, 1, 1], ["SAME", "VALID"][n % 2])


def _conv_transpose(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    image = _image(x, s, n | 1)
    batch, height, width, channels = image.shape.as_list() if None not in image.shape.as_list() else (0, 0, 0, 0)
    if not batch:
        raise ValueError("unknown sizes")
    filters = _weights(n, 3, 2, 2, channels, dtype=x.dtype)
    return tf.nn.conv2d_transpose(image, filters, [batch, height * 2, width * 2, 2], 2, "SAME")


def _pool(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    function = [tf.nn.max_pool2d, tf.nn.avg_pool2d][n % 2]
    return function(_image(x, s, n), 1 + n // 2 % 3, 1 + n // 6 % 2, ["SAME", "VALID"][n // 12 % 2])


def _strided(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    parts = [slice(None), slice(n % 2, None, 2), slice(None, None, -1), slice(-2, None), n % 2, slice(0, -1), None, ...]
    return x[tuple(parts[(n + 3 * number) % 7] for number in range(min(len(s), 1 + n % 3)))]


def _slice(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    begin = [(n + number) % max(size, 1) for number, size in enumerate(s)]
    return tf.slice(
        x, begin, [-1 if (n + number) % 2 else max(s[number] - begin[number], 0) for number in range(len(s))]
    )


def _reduce(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    function = [tf.reduce_sum, tf.reduce_mean, tf.reduce_max, tf.reduce_min, tf.reduce_logsumexp][n % 5]
    axes = [None, [_axis(s, n)], list(range(len(s)))[: 1 + n % 2], []][n // 5 % 4] if s else None
    return function(x, axes, keepdims=n % 2 == 1)


def _transpose(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    return tf.transpose(x, np.random.default_rng(n).permutation(len(s)))


def _reshape(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    shapes: list[Any] = [[-1], [1, -1], tf.concat([tf.shape(x), [1]], 0), [*reversed(s)]]
    if s:
        shapes.append(tf.stack([tf.shape(x)[0], -1]))
    return tf.reshape(x, shapes[n % len(shapes)])


def _broadcast(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    return tf.broadcast_to(x, tf.concat([[1 + n % 3], tf.shape(x)], 0))


def _like(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    return [tf.zeros_like(x), tf.ones_like(x) + y, tf.fill(tf.shape(x), y), tf.fill(tf.shape(x)[:1], x[0])][n % 4]


def _range(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    return tf.range(tf.shape(x)[0] + n % 4, delta=1 + n % 2) * tf.rank(y) - tf.size(x) // 3


def _matmul(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    width = s[-1] if len(s) > 1 else 1
    left = x if len(s) > 1 else tf.reshape(x, [-1, 1])
    right = _weights(n, *([3, width] if n % 2 else [width, 3]), dtype=x.dtype)
    return tf.matmul(
        left, tf.broadcast_to(right, [*s[:-2], *right.shape]) if len(s) > 2 else right, transpose_b=n % 2 == 1
    )


def _gather(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    size = s[_axis(s, n)]
    if not size:
        raise ValueError("TensorFlow checks no index if the result is empty")
    return tf.gather(x, [[0, size - 1], [0, 0]], axis=_axis(s, n))


def _gram(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    return (
        tf.matmul(x, x, transpose_a=n % 2 == 1, transpose_b=n % 2 == 0) if n % 3 else tf.einsum("...i,...i->...", x, x)
    )


def _normalize(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    mean, variance = tf.nn.moments(x, [_axis(s, n)], keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, None if n % 2 else 0.5, 2.0 if n % 3 else None, 1e-2)


def _pad(x: Any, y: Any, s: list[int], t: list[int], n: int) -> Any:
    widths = [[(n + number) % 2, number % 2] for number in range(len(s))]
    return tf.pad(x, widths, ["CONSTANT", "REFLECT", "SYMMETRIC"][n % 3], constant_values=n % 4 - 1)


SMOOTH: list[Kind] = [
    lambda x, y, s, t, n: JOINED[n % len(JOINED)](x, y),
    lambda x, y, s, t, n: BOUNDED[n % len(BOUNDED)](x),
    lambda x, y, s, t, n: ACTIVATIONS[n % len(ACTIVATIONS)](x),
    lambda x, y, s, t, n: POSITIVE[n % len(POSITIVE)](1 + tf.abs(x)),
    lambda x, y, s, t, n: GROWING[n % len(GROWING)](tf.tanh(x)),
    lambda x, y, s, t, n: tf.pow(1 + tf.abs(x), [2.0, 0.5, -1.0][n % 3]),
    lambda x, y, s, t, n: tf.nn.softmax(x, _axis(s, n)) if n % 2 else tf.nn.log_softmax(x),
    lambda x, y, s, t, n: tf.clip_by_value(x, -1.0, 0.5 + n % 2),
    _reduce, _transpose, _reshape, _broadcast, _like, _range, _matmul, _gram, _normalize, _pad, _strided, _slice,
    _conv2d, _depthwise, _conv_transpose, _pool,
    lambda x, y, s, t, n: tf.concat([x, x * 2.0, y][: 2 + n % 2], _axis(s, n)),
    lambda x, y, s, t, n: tf.stack([x, x + 1.0], n % (len(s) + 1)),
    lambda x, y, s, t, n: tf.unstack(x, s[_axis(s, n)], _axis(s, n))[-1],
    lambda x, y, s, t, n: tf.split(x, [1, s[_axis(s, n)] - 1], _axis(s, n))[n % 2],
    lambda x, y, s, t, n: tf.split(x, s[_axis(s, n)], _axis(s, n))[0],
    lambda x, y, s, t, n: tf.expand_dims(x, n % (len(s) + 1) - n // 7 % 2 * (len(s) + 1)),
    lambda x, y, s, t, n: tf.squeeze(x) if n % 2 else tf.squeeze(tf.expand_dims(x, -1), [-1]),
    lambda x, y, s, t, n: tf.tile(x, [1 + (n + number) % 2 for number in range(len(s))]),
    _gather,
    lambda x, y, s, t, n: tf.gather_nd(x, [[0] * (1 + n % len(s)), [size - 1 for size in s[: 1 + n % len(s)]]]),
    lambda x, y, s, t, n: tf.reverse(x, [_axis(s, n)]),
    lambda x, y, s, t, n: tf.cumsum(x, _axis(s, n), exclusive=n % 3 == 0, reverse=n % 4 == 0),
    lambda x, y, s, t, n: tf.scatter_nd([[1], [0], [1]], tf.stack([x, x, x]), [3, *s]),
    lambda x, y, s, t, n: tf.math.top_k(x, 1 + n % s[-1]).values,
    lambda x, y, s, t, n: tf.sort(x, direction=["ASCENDING", "DESCENDING"][n % 2]),
    lambda x, y, s, t, n: tf.nn.bias_add(x, _weights(n, s[-1], dtype=x.dtype)),
    lambda x, y, s, t, n: tf.linalg.band_part(x, n % 3 - 1, n % 2),
    lambda x, y, s, t, n: tf.add_n([x, x, tf.stop_gradient(x)]),
    lambda x, y, s, t, n: tf.nn.l2_loss(x) + tf.reduce_prod(tf.tanh(x)),
    lambda x, y, s, t, n: tf.nn.space_to_depth(tf.tile(_image(x, s, n), [1, 2, 2, 1]), 2),
    lambda x, y, s, t, n: tf.image.resize(_image(x, s, n), [3 + n % 3, 4], "nearest"),
]  # fmt: skip
# A small error may become a large one: only for float64.
ROUGH: list[Kind] = [
    lambda x, y, s, t, n: [tf.floor, tf.math.ceil, tf.round, tf.sign, tf.math.rint][n % 5](x),
    lambda x, y, s, t, n: (tf.argmax if n % 3 else tf.argmin)(x, _axis(s, n), [tf.int32, tf.int64][n % 2]),
    lambda x, y, s, t, n: COMPARED[n % len(COMPARED)](x, y),
    lambda x, y, s, t, n: tf.where(x > y, x, y) if n % 2 else tf.where(tf.logical_not(x > 0), x * 2.0, x),
    lambda x, y, s, t, n: [tf.math.floormod(x, 0.7), tf.math.floordiv(x, 0.7), tf.truncatemod(x, y * y + 1)][n % 3],
    lambda x, y, s, t, n: tf.one_hot(tf.cast(tf.abs(x) * 2, tf.int32), 2 + n % 3, axis=-1 if n % 2 else 0),
    lambda x, y, s, t, n: tf.cast(x * 3, [tf.int32, tf.int64, tf.int8, tf.uint8, tf.bool][n % 3]),
    lambda x, y, s, t, n: tf.boolean_mask(x, x > 0) if n % 2 else tf.cast(tf.where(x > 0), tf.float64),
    lambda x, y, s, t, n: tf.reduce_any(x > y, _axis(s, n)) if n % 2 else tf.reduce_all(x > -1, _axis(s, n)),
    lambda x, y, s, t, n: tf.cond(tf.reduce_sum(x) > 0, lambda: x * 2.0, lambda: tf.nn.relu(x)),
    lambda x, y, s, t, n: tf.while_loop(lambda i, v: i < 2 + n % 3, lambda i, v: (i + 1, tf.sin(v) + x), (0, x))[1],
    lambda x, y, s, t, n: tf.math.unsorted_segment_sum(x, np.arange(s[0]) % (1 + n % 3), 1 + n % 3),
    lambda x, y, s, t, n: tf.math.top_k(x, 1 + n % s[-1]).indices,
]  # fmt: skip
