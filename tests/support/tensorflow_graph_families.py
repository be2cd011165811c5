"""Whole models as TensorFlow writes them, for the tests of graphs that run. Runs in the TensorFlow process only.

Keras models are exported as SavedModels. Graphs of TensorFlow 1 are written as a `.meta` file with a checkpoint, and as
a SavedModel. All have seeded random weights: also those that Keras would leave at zero or one, so that a swapped bias
or moving average shows.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor

v1 = tf.compat.v1
layers = tf.keras.layers
applications = tf.keras.applications


class Written(NamedTuple):
    """A model on disk, and what TensorFlow computes.

    Attributes:
        path: The SavedModel, or the `.meta` file.
        inputs: Name -> value: inputs of the signature of a SavedModel, else tensors.
        outputs: Name -> value, in the same way.
        constants: Tensors of a `.meta` file that are fed for inference, such as is_training.
    """

    path: str
    inputs: dict[str, RawTensor]
    outputs: dict[str, RawTensor]
    constants: dict[str, Any]


def saved_model(name: str, directory: str, batch: int = 2) -> Written:
    """Export a Keras model; its outputs for random inputs."""
    tf.keras.backend.clear_session()
    tf.keras.utils.set_random_seed(7)
    model = KERAS[name]()
    generator = np.random.default_rng(1)
    for weight in model.weights:
        if len(weight.shape) == 1 and "seed" not in weight.path:
            weight.assign(np.asarray(weight) + generator.uniform(0, 0.2, weight.shape))
    inputs = {each.name: _random(each, batch, generator) for each in model.inputs}
    found = model(list(inputs.values()) if len(inputs) > 1 else next(iter(inputs.values())), training=False)
    model.export(directory, verbose=False)
    signature = tf.saved_model.load(directory).signatures["serving_default"]
    (output,) = signature.structured_outputs
    return Written(
        directory,
        {key: RawTensor.of(value) for key, value in inputs.items()},
        {output: RawTensor.of(np.asarray(found))},
        {},
    )


def _random(like: Any, batch: int, generator: np.random.Generator) -> Any:
    shape = [batch, *like.shape[1:]]
    if like.dtype == "int32":
        value = generator.integers(1, 20, shape).astype(np.int32)
        value[:, 5:] *= generator.integers(0, 2, value[:, 5:].shape).astype(np.int32)  # 0 is masked
        return value
    return generator.standard_normal(shape).astype(np.float32)


def _sequential(shape: tuple[int | None, ...], *parts: Any, dtype: str = "float32") -> Any:
    return tf.keras.Sequential([tf.keras.Input(shape, dtype=dtype, name="x"), *parts])


def _mlp() -> Any:
    return _sequential((20,), layers.Dense(32, "relu"), layers.Dropout(0.5), layers.Dense(16, "gelu"), layers.Dense(4))


def _lenet() -> Any:
    return _sequential(
        (28, 28, 1),
        layers.Conv2D(6, 5, padding="same", activation="tanh"), layers.AveragePooling2D(2),
        layers.Conv2D(16, 5, activation="tanh"), layers.AveragePooling2D(2),
        layers.Flatten(), layers.Dense(120, "tanh"), layers.Dense(84, "tanh"), layers.Dense(10, "softmax"),
    )  # fmt: skip


def _application(name: str, size: int, **options: Any) -> Callable[[], Any]:
    def build() -> Any:
        return getattr(applications, name)(
            weights=None, input_shape=(size, size, 3), classes=7, classifier_activation=None, **options
        )

    return build


def _u_net() -> Any:
    x = tf.keras.Input((32, 32, 3), name="x")

    def block(value: Any, width: int) -> Any:
        for _ in range(2):
            value = layers.Conv2D(width, 3, padding="same", use_bias=False)(value)
            value = layers.ReLU()(layers.BatchNormalization()(value))
        return value

    first = block(x, 8)
    second = block(layers.MaxPooling2D()(first), 16)
    third = block(layers.MaxPooling2D()(second), 32)
    up = layers.Conv2DTranspose(16, 2, strides=2, padding="same")(third)
    up = block(layers.Concatenate()([up, second]), 16)
    up = layers.UpSampling2D(interpolation="bilinear")(up)
    up = block(layers.Concatenate()([up, first]), 8)
    return tf.keras.Model(x, layers.Conv2D(2, 1)(up))


def _transformer() -> Any:
    tokens = tf.keras.Input((12,), dtype="int32", name="tokens")
    value = layers.Embedding(20, 16)(tokens)
    value = value + layers.Embedding(12, 16)(tf.range(12))
    for _ in range(2):
        value = layers.LayerNormalization()(value + layers.MultiHeadAttention(4, 4)(value, value))
        inner = layers.Dense(16)(layers.Dense(32, "gelu")(value))
        value = layers.LayerNormalization(epsilon=1e-6)(value + layers.Dropout(0.1)(inner))
    return tf.keras.Model(tokens, layers.Dense(5)(layers.GlobalAveragePooling1D()(value)))


def _masked() -> Any:
    return _sequential(
        (12,),
        layers.Embedding(20, 8, mask_zero=True),
        layers.Bidirectional(layers.LSTM(8, return_sequences=True)),
        layers.Bidirectional(layers.GRU(6)),
        layers.Dense(3),
        dtype="int32",
    )


KERAS: Mapping[str, Callable[[], Any]] = {
    "mlp": _mlp,
    "lenet": _lenet,
    "resnet50": _application("ResNet50", 64),
    "mobilenet_v2": _application("MobileNetV2", 64),
    "mobilenet_v3": _application("MobileNetV3Small", 64),
    "efficientnet_b0": _application("EfficientNetB0", 64),
    "inception_v3": _application("InceptionV3", 96),
    "densenet121": _application("DenseNet121", 64),
    "convnext": _application("ConvNeXtTiny", 64),
    "u_net": _u_net,
    "lstm": lambda: _sequential(
        (10, 6), layers.LSTM(16, return_sequences=True), layers.LSTM(8, go_backwards=True), layers.Dense(3)
    ),
    "gru": lambda: _sequential(
        (10, 6), layers.GRU(16, return_sequences=True), layers.GRU(8, reset_after=False), layers.Dense(3)
    ),
    "bilstm_mask": _masked,
    "transformer": _transformer,
    "conv_lstm": lambda: _sequential(
        (5, 12, 12, 2), layers.ConvLSTM2D(4, 3, padding="same", return_sequences=True), layers.ConvLSTM2D(3, 3)
    ),
    "conv1d": lambda: _sequential(
        (32, 4),
        layers.Conv1D(8, 5, padding="causal", dilation_rate=2, activation="relu"), layers.MaxPooling1D(2),
        layers.SeparableConv1D(12, 3, strides=2, padding="same"), layers.Conv1DTranspose(6, 3, strides=2),
        layers.GlobalMaxPooling1D(), layers.Dense(3),
    ),
    "conv3d": lambda: _sequential(
        (8, 9, 10, 2),
        layers.Conv3D(4, 3, padding="same", activation="relu"), layers.MaxPooling3D(2, padding="same"),
        layers.BatchNormalization(), layers.Conv3DTranspose(3, 3, strides=2), layers.AveragePooling3D(2),
        layers.Flatten(), layers.Dense(3),
    ),
}  # fmt: skip


# Graphs of TensorFlow 1.


class Graph(NamedTuple):
    """What a function of `GRAPHS` has built in the default graph.

    Attributes:
        inputs: Placeholder -> a value.
        constants: Placeholder -> its value for inference.
        outputs: Tensors to compute.
        loss: The loss, if it can be trained.
    """

    inputs: Mapping[Any, Any]
    constants: Mapping[Any, Any]
    outputs: Mapping[str, Any]
    loss: Any = None


def meta_graph(name: str, directory: str, *, as_saved_model: bool = False) -> Written:
    """Write a graph of TensorFlow 1 with its variables; its outputs for random inputs."""
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
            v1.set_random_seed(3)
            built = GRAPHS[name]()
            saver = v1.train.Saver()
            session.run(v1.global_variables_initializer())
            outputs = {key: tf.identity(value, f"output_{key}") for key, value in built.outputs.items()}
            found = session.run(outputs, {**built.inputs, **built.constants})
            if not as_saved_model:
                saver.save(session, f"{directory}/model")
                return Written(
                    f"{directory}/model.meta",
                    {tensor.name: RawTensor.of(value) for tensor, value in built.inputs.items()},
                    {outputs[key].name: RawTensor.of(value) for key, value in found.items()},
                    {tensor.name: value for tensor, value in built.constants.items()},
                )
            path = f"{directory}/saved_model"
            inputs = {tensor.op.name: tensor for tensor in built.inputs}
            v1.saved_model.simple_save(session, path, inputs, outputs)
            return Written(
                path,
                {tensor.op.name: RawTensor.of(value) for tensor, value in built.inputs.items()},
                {key: RawTensor.of(value) for key, value in found.items()},
                {tensor.name: value for tensor, value in built.constants.items()},
            )
    finally:
        v1.enable_control_flow_v2()


def _variable(name: str, *shape: int, resource: bool = True) -> Any:
    width = math.prod(shape[:-1]) if len(shape) > 1 else 25
    return v1.get_variable(
        name, shape, tf.float32, v1.random_normal_initializer(stddev=width**-0.5), use_resource=resource
    )


def _dense(x: Any, width: int, name: str, resource: bool = True) -> Any:
    with v1.variable_scope(name):
        kernel = _variable("kernel", x.shape[-1], width, resource=resource)
        bias = _variable("bias", width, resource=resource)
        return tf.nn.bias_add(tf.tensordot(x, kernel, 1), bias)


def _batch_norm(x: Any, training: Any, name: str) -> Any:
    """Batch normalisation as slim writes it: a condition on is_training, and updates in a collection."""
    width = x.shape[-1]
    with v1.variable_scope(name):
        gamma, beta = 1.0 + _variable("gamma", width), _variable("beta", width)
        mean = v1.get_variable("moving_mean", [width], trainable=False, initializer=v1.random_normal_initializer())
        variance = v1.get_variable(
            "moving_variance", [width], trainable=False, initializer=v1.random_uniform_initializer(0.5, 2.0)
        )

        def train() -> Any:
            y, batch_mean, batch_variance = v1.nn.fused_batch_norm(x, gamma, beta, epsilon=1e-3, is_training=True)
            updates = [v1.assign_sub(mean, (mean - batch_mean) * 0.1)]
            updates.append(v1.assign_sub(variance, (variance - batch_variance) * 0.1))
            with tf.control_dependencies(updates):
                return tf.identity(y)

        def evaluate() -> Any:
            return v1.nn.fused_batch_norm(x, gamma, beta, mean, variance, epsilon=1e-3, is_training=False)[0]

        return v1.cond(training, train, evaluate)


def _slim() -> Graph:
    generator = np.random.default_rng(2)
    x = v1.placeholder(tf.float32, [None, 16, 16, 3], "x")
    labels = v1.placeholder(tf.int64, [None], "labels")
    training = v1.placeholder(tf.bool, [], "is_training")
    value = x
    for number, width in enumerate((8, 16)):
        with v1.variable_scope(f"block{number}"):
            value = v1.nn.conv2d(value, _variable("weights", 3, 3, value.shape[-1], width), strides=2, padding="SAME")
            value = tf.nn.relu6(_batch_norm(value, training, "BatchNorm"))
    value = tf.reduce_mean(value, [1, 2])
    value = v1.cond(training, lambda: v1.nn.dropout(value, keep_prob=0.5), lambda: value)
    logits = _dense(value, 5, "logits")
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    inputs = {x: generator.standard_normal((3, 16, 16, 3)).astype(np.float32)}
    inputs[labels] = np.array([0, 4, 2])
    return Graph(inputs, {training: False}, {"logits": logits, "loss": loss}, loss)


class _Cell:
    """An LSTM cell for dynamic_rnn, whose own cells need Keras 2."""

    def __init__(self, units: int) -> None:
        self.units = self.output_size = units
        self.state_size = (units, units)

    def zero_state(self, batch_size: Any, dtype: Any) -> Any:
        return tuple(tf.zeros(tf.stack([batch_size, self.units]), dtype) for _ in range(2))

    def get_initial_state(self, inputs: Any = None, batch_size: Any = None, dtype: Any = None) -> Any:
        return self.zero_state(tf.shape(inputs)[0] if batch_size is None else batch_size, dtype)

    def __call__(self, inputs: Any, state: Any, scope: Any = None) -> Any:
        c, h = state
        gates = _dense(tf.concat([inputs, h], 1), 4 * self.units, "lstm_cell", resource=False)
        i, j, f, o = tf.split(gates, 4, 1)
        c = tf.sigmoid(f + 1.0) * c + tf.sigmoid(i) * tf.tanh(j)
        h = tf.sigmoid(o) * tf.tanh(c)
        return h, (c, h)

    def call(self, inputs: Any, state: Any) -> Any:
        return self(inputs, state)


def _seq2seq() -> Graph:
    """An encoder by dynamic_rnn with lengths, and a decoder that feeds its best guess back."""
    generator = np.random.default_rng(3)
    tokens = v1.placeholder(tf.int32, [None, None], "tokens")
    lengths = v1.placeholder(tf.int32, [None], "lengths")
    steps = v1.placeholder(tf.int32, [], "steps")
    embedding = _variable("embedding", 11, 6, resource=False)
    with v1.variable_scope("encoder"):
        outputs, state = v1.nn.dynamic_rnn(
            _Cell(8), tf.nn.embedding_lookup(embedding, tokens), lengths, dtype=tf.float32
        )
    guesses = tf.TensorArray(tf.float32, steps)

    def step(time: Any, word: Any, state: Any, guesses: Any) -> Any:
        with v1.variable_scope("decoder", reuse=v1.AUTO_REUSE):
            output, state = _Cell(8)(tf.nn.embedding_lookup(embedding, word), state)
            scores = tf.nn.softmax(tf.einsum("bd,btd->bt", output, outputs))
            context = tf.reduce_sum(outputs * scores[:, :, None], 1)
            logits = _dense(tf.concat([output, context], 1), 11, "logits")
        return time + 1, tf.argmax(logits, 1, tf.int32), state, guesses.write(time, logits)

    start = (tf.constant(0), tf.zeros_like(lengths), state, guesses)
    *_, guesses = v1.while_loop(lambda time, *_: time < steps, step, start)
    logits = tf.transpose(guesses.stack(), [1, 0, 2])
    words = generator.integers(0, 11, (3, 7)).astype(np.int32)
    inputs = {tokens: words, lengths: np.array([7, 2, 5], np.int32), steps: np.array(6, np.int32)}
    return Graph(inputs, {}, {"logits": logits, "outputs": outputs}, tf.reduce_mean(tf.square(logits)))


def _bert() -> Graph:
    """BERT's graph as Google published it: matmuls and transposes, one-hot token types, a mask, a pooled token."""
    generator = np.random.default_rng(4)
    tokens, mask, types = (v1.placeholder(tf.int32, [None, 10], name) for name in ("input_ids", "input_mask", "types"))
    width, heads = 16, 4
    with v1.variable_scope("bert"):
        value = tf.gather(_variable("word_embeddings", 30, width), tf.reshape(tokens, [-1]))
        value = tf.reshape(value, [-1, 10, width])
        types_table = _variable("token_type_embeddings", 2, width)
        value += tf.reshape(tf.matmul(tf.one_hot(tf.reshape(types, [-1]), 2), types_table), tf.shape(value))
        positions = tf.slice(_variable("position_embeddings", 32, width), [0, 0], [10, -1])
        value = _layer_norm(value + tf.reshape(positions, [1, 10, width]), "LayerNorm")
        adder = (1.0 - tf.cast(tf.expand_dims(mask, 1)[:, None], tf.float32)) * -10000.0
        for number in range(2):
            with v1.variable_scope(f"layer_{number}"):
                value = _bert_layer(value, adder, width, heads)
        pooled = tf.tanh(_dense(tf.squeeze(value[:, 0:1, :], axis=1), width, "pooler"))
    logits = tf.matmul(pooled, _variable("output_weights", 3, width), transpose_b=True)
    values = (generator.integers(0, 30, (2, 10)), np.arange(10) < [[10], [6]], generator.integers(0, 2, (2, 10)))
    inputs = {tensor: np.asarray(each, np.int32) for tensor, each in zip((tokens, mask, types), values, strict=True)}
    return Graph(inputs, {}, {"sequence": value, "logits": logits}, tf.reduce_mean(tf.nn.log_softmax(logits)[:, 0]))


def _bert_layer(x: Any, adder: Any, width: int, heads: int) -> Any:
    def split(value: Any) -> Any:
        return tf.transpose(tf.reshape(value, [-1, 10, heads, width // heads]), [0, 2, 1, 3])

    query, key, value = (split(_dense(x, width, name)) for name in ("query", "key", "value"))
    scores = tf.multiply(tf.matmul(query, key, transpose_b=True), 1.0 / math.sqrt(width / heads)) + adder
    context = tf.transpose(tf.matmul(tf.nn.softmax(scores), value), [0, 2, 1, 3])
    context = tf.reshape(context, [tf.shape(x)[0], 10, width])
    x = _layer_norm(x + _dense(context, width, "output"), "attention_norm")
    inner = _dense(x, 4 * width, "intermediate")
    inner *= 0.5 * (1.0 + tf.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * tf.pow(inner, 3))))
    return _layer_norm(x + _dense(inner, width, "outer"), "output_norm")


def _layer_norm(x: Any, name: str) -> Any:
    """As tf.contrib.layers.layer_norm: moments, then batch_normalization."""
    with v1.variable_scope(name):
        mean, variance = v1.nn.moments(x, [-1], keep_dims=True)
        width = x.shape[-1]
        return tf.nn.batch_normalization(
            x, mean, variance, _variable("beta", width), 1.0 + _variable("gamma", width), 1e-12
        )


def _perceptron() -> Graph:
    """With keep_prob as a placeholder, reference variables, and a loss with weight decay."""
    generator = np.random.default_rng(5)
    x, y = v1.placeholder(tf.float32, [None, 6], "x"), v1.placeholder(tf.float32, [None, 3], "y")
    keep = v1.placeholder_with_default(1.0, [], "keep_prob")
    value = tf.nn.elu(_dense(x, 12, "hidden", resource=False))
    logits = _dense(v1.nn.dropout(value, keep_prob=keep), 3, "output", resource=False)
    loss = tf.reduce_mean(tf.nn.softmax_cross_entropy_with_logits(labels=y, logits=logits))
    loss += 1e-2 * v1.add_n([tf.nn.l2_loss(each) for each in v1.trainable_variables()])
    inputs = {x: generator.standard_normal((5, 6)).astype(np.float32)}
    inputs[y] = np.eye(3, dtype=np.float32)[[0, 1, 2, 1, 0]]
    return Graph(inputs, {keep: 1.0}, {"probabilities": tf.nn.softmax(logits), "loss": loss}, loss)


def _digits() -> Graph:
    """LeNet of the tutorials: conv, max pool, local response normalisation, flattened by reshape with -1."""
    generator = np.random.default_rng(6)
    x, labels = v1.placeholder(tf.float32, [None, 196], "x"), v1.placeholder(tf.int32, [None], "labels")
    value = tf.reshape(x, [-1, 14, 14, 1])
    for number, width in enumerate((6, 8)):
        with v1.variable_scope(f"conv{number}"):
            weights = _variable("weights", 5, 5, value.shape[-1], width)
            value = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(value, weights, 1, "SAME"), _variable("biases", width)))
            value = tf.nn.lrn(tf.nn.max_pool2d(value, 3, 2, "SAME"), 4, bias=1.0, alpha=1e-3, beta=0.75)
    value = tf.reshape(value, [-1, 4 * 4 * 8])
    logits = _dense(tf.nn.relu(_dense(value, 20, "full")), 10, "logits")
    loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels=labels, logits=logits))
    inputs = {x: generator.standard_normal((4, 196)).astype(np.float32), labels: np.array([1, 0, 9, 3], np.int32)}
    return Graph(inputs, {}, {"logits": logits, "guess": tf.argmax(logits, 1), "loss": loss}, loss)


GRAPHS: Mapping[str, Callable[[], Graph]] = {
    "slim": _slim,
    "seq2seq": _seq2seq,
    "bert": _bert,
    "perceptron": _perceptron,
    "digits": _digits,
}


# Training.


def train(name: str, prefix: str, optimizer: str, steps: int) -> list[float]:
    """Restore a graph's variables, and train them on its own loss; the losses before each step and after the last."""
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
            built = GRAPHS[name]()
            saver = v1.train.Saver()
            made = {
                "sgd": lambda: v1.train.GradientDescentOptimizer(0.1),
                "momentum": lambda: v1.train.MomentumOptimizer(0.05, 0.9),
                "adam": lambda: v1.train.AdamOptimizer(1e-3, epsilon=1e-10),
            }[optimizer]()
            step = made.minimize(built.loss)
            session.run(v1.global_variables_initializer())
            saver.restore(session, prefix)
            feeds = {**built.inputs, **built.constants}
            losses = []
            for _ in range(steps):
                losses.append(float(session.run(built.loss, feeds)))
                session.run(step, feeds)
            return [*losses, float(session.run(built.loss, feeds))]
    finally:
        v1.enable_control_flow_v2()


def loss_after(name: str, prefix: str) -> tuple[float, dict[str, RawTensor]]:
    """Restore a checkpoint into the graph: its loss, and the values of all variables."""
    v1.disable_control_flow_v2()
    try:
        with tf.Graph().as_default() as graph, v1.Session(graph=graph) as session:
            built = GRAPHS[name]()
            v1.train.Saver().restore(session, prefix)
            loss = session.run(built.loss, {**built.inputs, **built.constants})
            variables = {each.op.name: session.run(each) for each in v1.global_variables()}
            return float(loss), {key: RawTensor.of(value) for key, value in variables.items()}
    finally:
        v1.enable_control_flow_v2()
