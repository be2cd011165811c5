"""Image models with random weights, under the names of Keras, TF-slim and tensorflow/tpu. TensorFlow process only.

Keras's models are the reference for slim's and tensorflow/tpu's, too, where they compute the same: their weights are
stored under the other names. The ResNet and the Inception v4 of slim, which differ, are written here.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from keras.src.applications import densenet, resnet  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor
from tensorflow_side import save_v2

CLASSES = 11
APPLICATIONS = tf.keras.applications
LAYERS = tf.keras.layers

Array = np.ndarray[Any, Any]


def _resnet(**options: Any) -> Any:
    def stack(x: Any) -> Any:
        for number, (count, filters) in enumerate(zip((2, 1, 2, 1), (64, 128, 256, 512), strict=True)):
            stride = 1 if number == 0 else 2
            x = resnet.stack_residual_blocks_v1(x, filters, count, stride1=stride, name=f"conv{number + 2}")
        return x

    return resnet.ResNet(stack, preact=False, use_bias=True, **options)


def _vgg(counts: Sequence[int]) -> Callable[..., Any]:
    """VGG with fewer channels: 16 before the flattened map of 7 x 7, and 64 after it."""

    def build(input_shape: Sequence[int], **_: Any) -> Any:
        inputs = x = tf.keras.Input(input_shape)
        for block, (count, channels) in enumerate(zip(counts, (4, 8, 8, 12, 16), strict=True), 1):
            for number in range(1, count + 1):
                name = f"block{block}_conv{number}"
                x = LAYERS.Conv2D(channels, 3, padding="same", activation="relu", name=name)(x)
            x = LAYERS.MaxPooling2D()(x)
        x = LAYERS.Dense(64, activation="relu", name="fc1")(LAYERS.Flatten()(x))
        x = LAYERS.Dense(64, activation="relu", name="fc2")(x)
        return tf.keras.Model(inputs, LAYERS.Dense(CLASSES, name="predictions")(x))

    return build


KERAS: Mapping[str, Callable[..., Any]] = {
    "ResNet": _resnet,
    "MobileNet": APPLICATIONS.MobileNet,
    "MobileNetV2": lambda **options: APPLICATIONS.MobileNetV2(alpha=0.35, **options),
    "MobileNetV3Small": lambda **options: APPLICATIONS.MobileNetV3Small(include_preprocessing=False, **options),
    "MobileNetV3Large": lambda **options: APPLICATIONS.MobileNetV3Large(include_preprocessing=False, **options),
    "EfficientNetB0": APPLICATIONS.EfficientNetB0,
    "EfficientNetB1": APPLICATIONS.EfficientNetB1,
    "VGG16": _vgg((2, 2, 3, 3, 3)),
    "VGG19": _vgg((2, 2, 4, 4, 4)),
    "DenseNet": lambda **options: densenet.DenseNet((2, 3, 2, 2), **options),
    "InceptionV3": APPLICATIONS.InceptionV3,
}


def save_keras(kind: str, prefix: str, size: int) -> dict[str, RawTensor]:
    """Save a model by full names, by the other names if there are any, and as an object-based checkpoint.

    They are at prefix + ".names", ".others" and ".objects". Returns the inputs as they are after the model has scaled
    them, and the outputs.
    """
    rng = np.random.default_rng(17)
    tf.keras.backend.clear_session()  # names such as "conv2d_7" are numbered from here
    model = KERAS[kind](weights=None, input_shape=(size, size, 3), classes=CLASSES, classifier_activation=None)
    for weight in model.weights:
        if weight.dtype == "float32" and not weight.path.startswith("normalization"):
            weight.assign(random_value(rng, weight.path, weight.shape))
    values = _images(rng, size)
    scale = 255 if any(isinstance(layer, LAYERS.Rescaling) for layer in model.layers) else 1
    output = model(values * scale, training=False).numpy()
    named = {weight.path: weight.numpy() for weight in model.weights}
    save_v2(f"{prefix}.names", named)
    tf.train.Checkpoint(model=model).write(f"{prefix}.objects")
    if kind in _OTHERS:
        others = dict(
            _OTHERS[kind](name, value) for name, value in named.items() if not name.startswith("normalization/")
        )
        save_v2(f"{prefix}.others", _with_others(rng, kind, others))
    return {"in": RawTensor.of(values), "out": RawTensor.of(output.reshape(2, CLASSES))}


def random_value(rng: np.random.Generator, name: str, shape: Sequence[int]) -> Array:
    """A value for a variable of this name, so that the outputs of a deep network stay near 1."""
    leaf = name.rpartition("/")[2]
    if leaf in ("gamma", "moving_variance"):
        value: Array = rng.uniform(0.5, 1.5, shape)
    elif leaf in ("beta", "moving_mean", "bias", "biases"):
        value = rng.standard_normal(shape) * 0.1
    else:
        is_depthwise = "depthwise" in name or "dwconv" in name or "conv_dw" in name
        inputs = np.prod(shape[:2]) if is_depthwise else np.prod(shape[:-1])
        value = rng.standard_normal(shape) * np.sqrt(2 / inputs)
    return np.asarray(value, np.float32)


def _images(rng: np.random.Generator, size: int) -> Array:
    return np.asarray(rng.uniform(-1, 1, (2, size, size, 3)), np.float32)


def _with_others(rng: np.random.Generator, kind: str, values: Mapping[str, Array]) -> dict[str, Array]:
    """Add what else is stored: slots and a step; for EfficientNet, moving averages of all variables.

    The averages are the values that compute the outputs; the variables themselves are different.
    """
    stored = dict(values)
    for name, value in values.items():
        if kind.startswith("EfficientNet"):
            stored[f"{name}/ExponentialMovingAverage"] = value
            stored[name] = np.asarray(rng.standard_normal(value.shape), np.float32)
        if kind in ("MobileNet", "MobileNetV2", "EfficientNetB0") and "moving" not in name:
            stored[f"{name}/RMSProp"] = np.ones_like(value)
            stored[f"{name}/RMSProp_1"] = np.zeros_like(value)
    if kind == "InceptionV3":  # an auxiliary classifier, which is used for training only
        shapes: dict[str, tuple[int, ...]] = {"Conv2d_1b_1x1": (1, 1, 768, 128), "Conv2d_2a_5x5": (5, 5, 128, 768)}
        names = [(f"{layer}/weights", shape) for layer, shape in shapes.items()]
        leaves = ("beta", "moving_mean", "moving_variance")
        names += [(f"{layer}/BatchNorm/{leaf}", shape[-1:]) for layer, shape in shapes.items() for leaf in leaves]
        names += [("Conv2d_2b_1x1/weights", (1, 1, 768, CLASSES)), ("Conv2d_2b_1x1/biases", (CLASSES,))]
        stored |= {f"InceptionV3/AuxLogits/{name}": random_value(rng, name, shape) for name, shape in names}
    if kind.startswith("VGG"):
        stored[f"{next(iter(values)).split('/')[0]}/mean_rgb"] = np.zeros(3, np.float32)
    return {**stored, "global_step": np.asarray(218949, np.int64)}


def _renaming(scope: str, *rules: tuple[str, str]) -> Callable[[str, Array], tuple[str, Array]]:
    """Return a function from Keras's name and value to slim's. In rules, {1} is a group, {1-1} one less."""

    def renamed(name: str, value: Array) -> tuple[str, Array]:
        layer, _, leaf = name.rpartition("/")
        for pattern, target in rules:
            found = re.fullmatch(pattern, layer)
            if found is None:
                continue
            path = target
            for number, text in enumerate(found.groups(default=""), 1):
                path = path.replace(f"{{{number}}}", text)
                path = path.replace(f"{{{number}-1}}", str(int(text) - 1)) if text.isdigit() else path
            if leaf == "kernel":
                leaf = "depthwise_weights" if "depthwise" in path else "weights"
                value = value.reshape(1, 1, *value.shape) if value.ndim == 2 else value
            return f"{scope}/{path}/{'biases' if leaf == 'bias' else leaf}", value
        raise KeyError(name)

    return renamed


def _vgg_renamed(scope: str) -> Callable[[str, Array], tuple[str, Array]]:
    rename = _renaming(
        scope, (r"block(\d)_conv(\d)", "conv{1}/conv{1}_{2}"), ("fc1", "fc6"), ("fc2", "fc7"), ("predictions", "fc8")
    )

    def renamed(name: str, value: Array) -> tuple[str, Array]:
        return rename(name, value.reshape(7, 7, -1, value.shape[1]) if name == "fc1/kernel" else value)

    return renamed


def _layers_of_inception() -> Iterator[str]:
    """Slim's names of the layers of Inception v3, in the order in which Keras numbers them."""
    yield from ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
    ends = {
        "5b": "0/0a_1x1 1/0a_1x1 1/0b_5x5 2/0a_1x1 2/0b_3x3 2/0c_3x3 3/0b_1x1",
        "5c": "0/0a_1x1 1/0b_1x1 1/0c_5x5 2/0a_1x1 2/0b_3x3 2/0c_3x3 3/0b_1x1",
        "6a": "0/1a_1x1 1/0a_1x1 1/0b_3x3 1/1a_1x1",
        "6b": "0/0a_1x1 1/0a_1x1 1/0b_1x7 1/0c_7x1 2/0a_1x1 2/0b_7x1 2/0c_1x7 2/0d_7x1 2/0e_1x7 3/0b_1x1",
        "7a": "0/0a_1x1 0/1a_3x3 1/0a_1x1 1/0b_1x7 1/0c_7x1 1/1a_3x3",
        "7b": "0/0a_1x1 1/0a_1x1 1/0b_1x3 1/0b_3x1 2/0a_1x1 2/0b_3x3 2/0c_1x3 2/0d_3x1 3/0b_1x1",
        "7c": "0/0a_1x1 1/0a_1x1 1/0b_1x3 1/0c_3x1 2/0a_1x1 2/0b_3x3 2/0c_1x3 2/0d_3x1 3/0b_1x1",
    }
    for module in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c"):
        for end in ends[{"5d": "5b", "6c": "6b", "6d": "6b", "6e": "6b"}.get(module, module)].split():
            branch, layer = end.split("/")
            # One layer has a name like no other.
            kind = "Conv_1" if layer == "0c_5x5" else "Conv2d"
            yield f"Mixed_{module}/Branch_{branch}/{kind}_{layer}"


def _inception_renamed() -> Callable[[str, Array], tuple[str, Array]]:
    rules = [("predictions", "Logits/Conv2d_1c_1x1")]
    for number, layer in enumerate(_layers_of_inception()):
        suffix = f"_{number}" if number else ""
        rules += [(f"conv2d{suffix}", layer), (f"batch_normalization{suffix}", f"{layer}/BatchNorm")]
    return _renaming("InceptionV3", *rules)


def _tpu(model: str, repeats: Sequence[int]) -> Callable[[str, Array], tuple[str, Array]]:
    """Return a function from Keras's names of EfficientNet to those of tensorflow/tpu."""
    numbers = {
        f"{stage}{chr(97 + unit)}": sum(repeats[: stage - 1]) + unit
        for stage, count in enumerate(repeats, 1)
        for unit in range(count)
    }

    def renamed(name: str, value: Array) -> tuple[str, Array]:
        layer, leaf = name.split("/")
        found = re.fullmatch(r"block(\d\w)_(\w+)", layer)
        if found is None:
            part, kind = layer.split("_") if layer != "predictions" else ("top", "dense")
            part = {"stem": "stem", "top": "head"}[part]
            kind = {"conv": "conv2d", "bn": "tpu_batch_normalization", "dense": "dense"}[kind]
            return f"{model}/{part}/{kind}/{leaf}", value
        expands = not found[1].startswith("1")
        convolutions, norms = ["expand_conv", "project_conv"], ["expand_bn", "bn", "project_bn"]
        kind = found[2]
        if kind == "dwconv":
            path = "depthwise_conv2d"
            leaf = "depthwise_kernel"
        elif kind.startswith("se_"):
            path = {"se_reduce": "se/conv2d", "se_expand": "se/conv2d_1"}[kind]
        else:
            names, path = (convolutions, "conv2d") if kind in convolutions else (norms, "tpu_batch_normalization")
            number = names.index(kind) - (not expands)
            path += f"_{number}" if number else ""
        return f"{model}/blocks_{numbers[found[1]]}/{path}/{leaf}", value

    return renamed


_EXPANDED = r"(expanded_conv(?:_\d+)?)_"
_MOBILENET_V3 = _renaming(
    "MobilenetV3",
    ("conv", "Conv"),
    ("conv_bn", "Conv/BatchNorm"),
    (r"conv_(\d)", "Conv_{1}"),
    (r"conv_(\d)_bn", "Conv_{1}/BatchNorm"),
    (_EXPANDED + "(expand|depthwise|project)", "{1}/{2}"),
    (_EXPANDED + "(expand|depthwise|project)_bn", "{1}/{2}/BatchNorm"),
    (_EXPANDED + r"squeeze_excite_conv((?:_\d)?)", "{1}/squeeze_excite/Conv{2}"),
    ("logits", "Logits/Conv2d_1c_1x1"),
)
_OTHERS: Mapping[str, Callable[[str, Array], tuple[str, Array]]] = {
    "MobileNet": _renaming(
        "MobilenetV1",
        ("conv1", "Conv2d_0"),
        ("conv1_bn", "Conv2d_0/BatchNorm"),
        (r"conv_dw_(\d+)", "Conv2d_{1}_depthwise"),
        (r"conv_dw_(\d+)_bn", "Conv2d_{1}_depthwise/BatchNorm"),
        (r"conv_pw_(\d+)", "Conv2d_{1}_pointwise"),
        (r"conv_pw_(\d+)_bn", "Conv2d_{1}_pointwise/BatchNorm"),
        ("conv_preds", "Logits/Conv2d_1c_1x1"),
    ),
    "MobileNetV2": _renaming(
        "MobilenetV2",
        ("Conv1", "Conv"),
        ("bn_Conv1", "Conv/BatchNorm"),
        (r"(?:block|expanded_conv)((?:_\d+)?)_(expand|depthwise|project)", "expanded_conv{1}/{2}"),
        (r"(?:block|expanded_conv)((?:_\d+)?)_(expand|depthwise|project)_BN", "expanded_conv{1}/{2}/BatchNorm"),
        ("Conv_1", "Conv_1"),
        ("Conv_1_bn", "Conv_1/BatchNorm"),
        ("predictions", "Logits/Conv2d_1c_1x1"),
    ),
    "MobileNetV3Small": _MOBILENET_V3,
    "MobileNetV3Large": _MOBILENET_V3,
    "EfficientNetB0": _tpu("efficientnet-b0", (1, 2, 2, 3, 3, 4, 1)),
    "EfficientNetB1": _tpu("efficientnet-b1", (2, 3, 3, 4, 4, 5, 2)),
    "VGG16": _vgg_renamed("vgg_16"),
    "VGG19": _vgg_renamed("vgg_19"),
    "DenseNet": _renaming(
        "densenet121",
        ("conv1_conv", "conv1"),
        ("conv1_bn", "BatchNorm"),
        (r"conv(\d)_block(\d+)_0_bn", "dense_block{1-1}/conv_block{2}/x1/BatchNorm"),
        (r"conv(\d)_block(\d+)_1_bn", "dense_block{1-1}/conv_block{2}/x2/BatchNorm"),
        (r"conv(\d)_block(\d+)_(\d)_conv", "dense_block{1-1}/conv_block{2}/x{3}/Conv"),
        (r"pool(\d)_bn", "transition_block{1-1}/blk/BatchNorm"),
        (r"pool(\d)_conv", "transition_block{1-1}/blk/Conv"),
        ("bn", "final_block/BatchNorm"),
        ("predictions", "logits"),
    ),
    "InceptionV3": _inception_renamed(),
}


class _Slim:
    """Layers of slim, whose variables get random values when they are first used."""

    def __init__(self, scope: str, *, scale: bool, epsilon: float) -> None:
        self.values: dict[str, Array] = {}
        self._scope, self._scale, self._epsilon = scope, scale, epsilon
        self._rng = np.random.default_rng(19)

    def variable(self, name: str, shape: Sequence[int]) -> Array:
        return self.values.setdefault(f"{self._scope}/{name}", random_value(self._rng, name, shape))

    def conv(self, x: Any, name: str, filters: int, size: Any, stride: int = 1, padding: Any = "SAME") -> Any:
        """A convolution and its BatchNorm."""
        height, width = (size, size) if isinstance(size, int) else size
        kernel = self.variable(f"{name}/weights", (height, width, x.shape[-1], filters))
        x = tf.nn.conv2d(x, kernel, stride, padding)
        mean, variance, offset = (
            self.variable(f"{name}/BatchNorm/{each}", (filters,)) for each in ("moving_mean", "moving_variance", "beta")
        )
        scale = self.variable(f"{name}/BatchNorm/gamma", (filters,)) if self._scale else None
        return tf.nn.batch_normalization(x, mean, variance, offset, scale, self._epsilon)

    def relu(self, *args: Any) -> Any:
        """A convolution, its BatchNorm and a ReLU."""
        return tf.nn.relu(self.conv(*args))

    def chain(self, x: Any, branch: str, layers: str, filters: Sequence[int]) -> Any:
        """Convolutions like "0a_1x1 1a_3x3": those whose names start with 1 have stride 2 and no padding."""
        for layer, count in zip(layers.split(), filters, strict=True):
            size = [int(each) for each in layer.split("_")[1].split("x")]
            reduces = layer.startswith("1")
            x = self.relu(x, f"{branch}/Conv2d_{layer}", count, size, *((2, "VALID") if reduces else (1, "SAME")))
        return x


def save_slim_resnet(prefix: str, size: int) -> dict[str, RawTensor]:
    """slim's ResNet with few units and channels: the last unit of a block has the stride."""
    net = _Slim("resnet_v1_50", scale=True, epsilon=1e-5)
    images = _images(np.random.default_rng(21), size)
    x = net.relu(tf.pad(images, [(0, 0), (3, 3), (3, 3), (0, 0)]), "conv1", 64, 7, 2, "VALID")
    x = tf.nn.max_pool2d(x, 3, 2, "SAME")
    for block, (units, channels) in enumerate(zip((2, 2, 3, 1), (8, 16, 24, 32), strict=True), 1):
        for unit in range(1, units + 1):
            stride = 2 if unit == units and block < 4 else 1
            scope = f"block{block}/unit_{unit}/bottleneck_v1"
            if x.shape[-1] == channels * 4:
                shortcut = x[:, ::stride, ::stride]
            else:
                shortcut = net.conv(x, f"{scope}/shortcut", channels * 4, 1, stride)
            y = net.relu(x, f"{scope}/conv1", channels, 1)
            y = tf.pad(y, [(0, 0), (1, 1), (1, 1), (0, 0)])
            y = net.relu(y, f"{scope}/conv2", channels, 3, stride, "VALID")
            x = tf.nn.relu(shortcut + net.conv(y, f"{scope}/conv3", channels * 4, 1))
    x = tf.reduce_mean(x, (1, 2), keepdims=True)
    net.variable("mean_rgb", (3,))
    return _saved(net, prefix, images, x, "logits", "Momentum")


def save_slim_inception_v4(prefix: str, size: int) -> dict[str, RawTensor]:
    """slim's Inception v4, without gamma."""
    net = _Slim("InceptionV4", scale=False, epsilon=1e-3)
    images = _images(np.random.default_rng(23), size)
    x = net.relu(images, "Conv2d_1a_3x3", 32, 3, 2, "VALID")
    x = net.relu(x, "Conv2d_2a_3x3", 32, 3, 1, "VALID")
    x = net.relu(x, "Conv2d_2b_3x3", 64, 3)
    reduced = net.relu(x, "Mixed_3a/Branch_1/Conv2d_0a_3x3", 96, 3, 2, "VALID")
    x = tf.concat([tf.nn.max_pool2d(x, 3, 2, "VALID"), reduced], 3)
    first = net.chain(x, "Mixed_4a/Branch_0", "0a_1x1", (64,))
    first = net.relu(first, "Mixed_4a/Branch_0/Conv2d_1a_3x3", 96, 3, 1, "VALID")
    second = net.chain(x, "Mixed_4a/Branch_1", "0a_1x1 0b_1x7 0c_7x1", (64, 64, 64))
    second = net.relu(second, "Mixed_4a/Branch_1/Conv2d_1a_3x3", 96, 3, 1, "VALID")
    x = tf.concat([first, second], 3)
    x = tf.concat([net.chain(x, "Mixed_5a/Branch_0", "1a_3x3", (192,)), tf.nn.max_pool2d(x, 3, 2, "VALID")], 3)
    for module in "bcde":
        x = _branches(
            net, x, f"Mixed_5{module}", 96, [("0a_1x1 0b_3x3", (64, 96)), ("0a_1x1 0b_3x3 0c_3x3", (64, 96, 96))]
        )
    x = _reduction(net, x, "Mixed_6a", [("1a_3x3", (384,)), ("0a_1x1 0b_3x3 1a_3x3", (192, 224, 256))])
    for module in "bcdefgh":
        long = ("0a_1x1 0b_7x1 0c_1x7 0d_7x1 0e_1x7", (192, 192, 224, 224, 256))
        branches = [("0a_1x1 0b_1x7 0c_7x1", (192, 224, 256)), long]
        x = _branches(net, x, f"Mixed_6{module}", 384, branches, pooled=128)
    x = _reduction(
        net, x, "Mixed_7a", [("0a_1x1 1a_3x3", (192, 192)), ("0a_1x1 0b_1x7 0c_7x1 1a_3x3", (256, 256, 320, 320))]
    )
    for module in "bcd":
        at = f"Mixed_7{module}"
        second = net.chain(x, f"{at}/Branch_1", "0a_1x1", (384,))
        third = net.chain(x, f"{at}/Branch_2", "0a_1x1 0b_3x1 0c_1x3", (384, 448, 512))
        ends = [(second, "1", "0b_1x3"), (second, "1", "0c_3x1"), (third, "2", "0d_1x3"), (third, "2", "0e_3x1")]
        x = tf.concat(
            [
                net.chain(x, f"{at}/Branch_0", "0a_1x1", (256,)),
                *(net.chain(value, f"{at}/Branch_{branch}", layer, (256,)) for value, branch, layer in ends),
                net.chain(tf.nn.avg_pool2d(x, 3, 1, "SAME"), f"{at}/Branch_3", "0b_1x1", (256,)),
            ],
            3,
        )
    x = tf.reduce_mean(x, (1, 2))
    net.variable("AuxLogits/Aux_logits/weights", (3, CLASSES))
    return _saved(net, prefix, images, x, "Logits/Logits", "RMSProp")


def _branches(
    net: _Slim, x: Any, module: str, first: int, others: Sequence[tuple[str, Sequence[int]]], pooled: int = 96
) -> Any:
    parts = [net.chain(x, f"{module}/Branch_0", "0a_1x1", (first,))]
    parts += [net.chain(x, f"{module}/Branch_{at}", *layers) for at, layers in enumerate(others, 1)]
    parts.append(net.chain(tf.nn.avg_pool2d(x, 3, 1, "SAME"), f"{module}/Branch_3", "0b_1x1", (pooled,)))
    return tf.concat(parts, 3)


def _reduction(net: _Slim, x: Any, module: str, branches: Sequence[tuple[str, Sequence[int]]]) -> Any:
    parts = [net.chain(x, f"{module}/Branch_{at}", *layers) for at, layers in enumerate(branches)]
    return tf.concat([*parts, tf.nn.max_pool2d(x, 3, 2, "VALID")], 3)


def _saved(net: _Slim, prefix: str, images: Array, x: Any, logits: str, optimizer: str) -> dict[str, RawTensor]:
    """Apply the last layer, a matrix or a 1x1 convolution, and save the variables with slots of an optimizer."""
    kernel = net.variable(f"{logits}/weights", (*(1,) * (len(x.shape) - 2), x.shape[-1], CLASSES))
    output = tf.reshape(x, (2, -1)) @ kernel.reshape(-1, CLASSES) + net.variable(f"{logits}/biases", (CLASSES,))
    slots = {f"{name}/{optimizer}": np.zeros_like(value) for name, value in net.values.items() if "moving" not in name}
    save_v2(f"{prefix}.others", {**net.values, **slots, "global_step": np.asarray(5, np.int64)})
    return {"in": RawTensor.of(images), "out": RawTensor.of(output.numpy())}
