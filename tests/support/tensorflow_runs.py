"""Graphs that TensorFlow builds and runs, for the tests of `run` and `module`. Runs in the TensorFlow process only."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from tensorflow_process import RawTensor

v1 = tf.compat.v1

# One graph: the serialized MetaGraphDef, and for each set of feeds the values of the fetches, or the error.
Ran = tuple[bytes, list[str], list[tuple[dict[str, Any], list[RawTensor] | str]]]


def zoo(*, v2: bool) -> dict[str, Ran]:
    """Run every graph of `CONTROL_FLOW`, with the control flow of TensorFlow 1 or of TensorFlow 2."""
    (v1.enable_control_flow_v2 if v2 else v1.disable_control_flow_v2)()
    try:
        return {name: _ran(build) for name, build in CONTROL_FLOW.items()}
    finally:
        v1.enable_control_flow_v2()


def slopes(names: Sequence[str], *, v2: bool) -> dict[str, Ran]:
    """Run graphs of `CONTROL_FLOW`; instead of the fetches, return the gradient of their sum with respect to x."""
    (v1.enable_control_flow_v2 if v2 else v1.disable_control_flow_v2)()
    try:
        return {name: _ran(CONTROL_FLOW[name], gradients=True) for name in names}
    finally:
        v1.enable_control_flow_v2()


def _ran(build: Callable[[], tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]], gradients: bool = False) -> Ran:
    with tf.Graph().as_default() as graph:
        v1.set_random_seed(1)
        fetches, feeds = build()
        fetched = {name: tf.identity(value, name=name) for name, value in fetches.items()}
        meta = v1.train.export_meta_graph(graph=graph)
        wanted = list(fetched.values())
        if gradients:
            numbers = [value for value in wanted if value.dtype.is_floating]
            wanted = tf.gradients(
                tf.add_n([tf.reduce_sum(value) for value in numbers]), graph.get_tensor_by_name("x:0")
            )
        results: list[tuple[dict[str, Any], list[RawTensor] | str]] = []
        for feed in feeds:
            with v1.Session(graph=graph) as session:
                session.run(v1.global_variables_initializer())
                named = {f"{name}:0": value for name, value in feed.items()}
                try:
                    found = session.run(wanted, named)
                except tf.errors.OpError as error:
                    results.append((named, f"{type(error).__name__}: {error.message}"))
                    continue
                results.append((named, [RawTensor.of(value) for value in found]))
    return meta.SerializeToString(deterministic=True), [tensor.name for tensor in fetched.values()], results


def _x(name: str = "x", dtype: Any = tf.float32, shape: Any = ()) -> Any:
    return v1.placeholder(dtype, shape, name)


SCALARS = [{"x": np.float32(3), "p": True}, {"x": np.float32(-2), "p": False}]


def _cond() -> Any:
    x, p = _x(), _x("p", tf.bool)
    y = v1.cond(p, lambda: x * 2.0, lambda: tf.exp(x) + 1.0)
    return {"y": y, "z": y + x}, SCALARS


def _cond_of_constants() -> Any:
    x, p = _x(), _x("p", tf.bool)
    y, n = v1.cond(p, lambda: (1.0, 3), lambda: (2.0, 5))
    return {"y": y * x, "n": tf.zeros([n])}, SCALARS


def _cond_passes_on() -> Any:
    x, p = _x(), _x("p", tf.bool)
    a, b = v1.cond(p, lambda: (x, x + 1.0), lambda: (-x, x))
    return {"a": a, "b": b}, SCALARS


def _cond_in_cond() -> Any:
    x, p = _x(), _x("p", tf.bool)
    inner = lambda: v1.cond(x > 1.0, lambda: x * 10.0, lambda: x * 100.0)  # noqa: E731
    y = v1.cond(p, inner, lambda: v1.cond(x < -1.0, lambda: x - 1.0, inner))
    return {"y": y}, [{"x": np.float32(x), "p": p} for x in (-2, 0, 2) for p in (True, False)]


def _same_predicate_twice() -> Any:
    x, p = _x(), _x("p", tf.bool)
    y = v1.cond(p, lambda: x + 1.0, lambda: x - 1.0)
    for _ in range(5):
        z = v1.cond(p, lambda y=y: y * 2.0, lambda y=y: y * 3.0)
        y = z + 1.0
    return {"y": y}, SCALARS


def _dead_branch_fails() -> Any:
    x, p = _x(shape=None), _x("p", tf.bool)
    y = v1.cond(p, lambda: tf.reshape(x, [2, 2]), lambda: tf.reshape(x, [1, 3]))
    return {"y": y}, [{"x": np.ones(4, np.float32), "p": True}, {"x": np.ones(3, np.float32), "p": False}]


def _case() -> Any:
    x, n = _x(), _x("n", tf.int32)
    y = v1.case([(tf.equal(n, 0), lambda: x), (n > 2, lambda: x * x)], default=lambda: -x)
    return {"y": y}, [{"x": np.float32(3), "n": np.int32(n)} for n in (0, 1, 3)]


def _switch_case() -> Any:
    x, n = _x(), _x("n", tf.int32)
    y = tf.switch_case(n, [lambda: x, lambda: x * x, lambda: -x])
    return {"y": y}, [{"x": np.float32(3), "n": np.int32(n)} for n in (0, 1, 2, 7, -1)]


def _while() -> Any:
    x, n = _x(), _x("n", tf.int32)
    i, y = v1.while_loop(lambda i, y: i < n, lambda i, y: (i + 1, y * x + 1.0), (0, x))
    return {"i": i, "y": y}, [{"x": np.float32(2), "n": np.int32(n)} for n in (0, 1, 5)]


def _while_of_known_length() -> Any:
    x = _x(shape=[None, 3])
    w = tf.constant(np.arange(9, dtype=np.float32).reshape(3, 3) / 10)
    y = v1.while_loop(lambda i, y: i < 4, lambda i, y: (i + 1, tf.tanh(tf.matmul(y, w))), (tf.constant(0), x))[1]
    return {"y": y}, [{"x": np.ones((2, 3), np.float32)}]


def _while_in_while() -> Any:
    x, n = _x(), _x("n", tf.int32)

    def body(i: Any, y: Any) -> Any:
        total = v1.while_loop(lambda j, t: j < i, lambda j, t: (j + 1, t + x * tf.cast(j, tf.float32)), (0, y))[1]
        return i + 1, total

    return {"y": v1.while_loop(lambda i, y: i < n, body, (0, 0.0))[1]}, [
        {"x": np.float32(2), "n": np.int32(n)} for n in (0, 1, 4)
    ]


def _cond_in_while() -> Any:
    x, n = _x(), _x("n", tf.int32)

    def body(i: Any, y: Any) -> Any:
        return i + 1, v1.cond(tf.equal(i % 2, 0), lambda: y + x, lambda: v1.cond(y > 3.0, lambda: y * x, lambda: y))

    return {"y": v1.while_loop(lambda i, y: i < n, body, (0, 0.0))[1]}, [
        {"x": np.float32(2), "n": np.int32(n)} for n in (0, 1, 6)
    ]


def _while_in_cond() -> Any:
    x, n, p = _x(), _x("n", tf.int32), _x("p", tf.bool)

    def loop() -> Any:
        return v1.while_loop(lambda i, y: i < n, lambda i, y: (i + 1, y + x), (0, 0.0))[1]

    return {"y": v1.cond(p, loop, lambda: x)}, [
        {"x": np.float32(2), "n": np.int32(3), "p": True},
        {"x": np.float32(2), "n": np.int32(3), "p": False},
    ]


def _counter_becomes_tensor() -> Any:
    x = _x("x", tf.int32)
    i, n = v1.while_loop(lambda i, n: i < 10, lambda i, n: (i + x, n + i), (0, 1))
    return {"i": i, "n": n}, [{"x": np.int32(3)}, {"x": np.int32(4)}]


def _condition_on_tensor() -> Any:
    x = _x(shape=[None])
    y = v1.while_loop(lambda y: tf.reduce_sum(y) < 50.0, lambda y: (y * 2.0,), (x,))
    return {"y": y[0] if isinstance(y, (list, tuple)) else y}, [
        {"x": np.array([1, 2], np.float32)},
        {"x": np.array([100], np.float32)},
    ]


def _shapes_in_loops() -> Any:
    x = _x(shape=[None, None])
    size = tf.shape(x)[0]

    def body(i: Any, y: Any) -> Any:
        return i + 1, y + tf.reduce_sum(x[i]) * tf.cast(tf.shape(x)[1], tf.float32)

    return {"y": v1.while_loop(lambda i, y: i < size, body, (0, 0.0))[1]}, [
        {"x": np.arange(6, dtype=np.float32).reshape(2, 3)},
        {"x": np.zeros((0, 3), np.float32)},
    ]


def _growing_shape() -> Any:
    x = _x(shape=[1, None])
    y = v1.while_loop(
        lambda y: tf.shape(y)[0] < 4,
        lambda y: tf.concat([y, x], 0),
        (x,),
        shape_invariants=(tf.TensorShape([None, None]),),
    )
    return {"y": y[0] if isinstance(y, (list, tuple)) else y}, [{"x": np.array([[1, 2]], np.float32)}]


def _tensor_array() -> Any:
    x, n = _x(), _x("n", tf.int32)

    def body(i: Any, array: Any) -> Any:
        return i + 1, array.write(i, x * tf.cast(i, tf.float32))

    array = v1.while_loop(lambda i, a: i < n, body, (0, tf.TensorArray(tf.float32, n)))[1]
    return {"y": array.stack()}, [{"x": np.float32(2), "n": np.int32(n)} for n in (1, 4)]


def _growing_tensor_array() -> Any:
    x, n = _x(shape=[2]), _x("n", tf.int32)

    def body(i: Any, array: Any) -> Any:
        return i + 1, array.write(i, x + tf.cast(i, tf.float32))

    array = tf.TensorArray(tf.float32, 0, dynamic_size=True, clear_after_read=False, element_shape=[2])
    array = v1.while_loop(lambda i, a: i < n, body, (0, array))[1]
    return {"y": array.stack(), "size": array.size(), "first": array.read(0)}, [
        {"x": np.array([1, 2], np.float32), "n": np.int32(n)} for n in (1, 5)
    ]


def _unstack_and_gather() -> Any:
    x = _x(shape=[4, 2])
    array = tf.TensorArray(tf.float32, 4, clear_after_read=False).unstack(x)
    y = v1.while_loop(lambda i, y: i < 4, lambda i, y: (i + 1, y + array.read(i) * tf.cast(i, tf.float32)),
                      (0, tf.zeros([2])))[1]  # fmt: skip
    return {"y": y, "some": array.gather([2, 0]), "all": array.concat()}, [
        {"x": np.arange(8, dtype=np.float32).reshape(4, 2)}
    ]


def _map_scan_fold() -> Any:
    x = _x(shape=[None, 2])
    return {
        "map": tf.map_fn(lambda row: row * 2.0 + 1.0, x),
        "scan": tf.scan(lambda a, row: a * 0.5 + row, x),
        "fold": tf.foldl(lambda a, row: a + row * row, x),
    }, [{"x": np.arange(6, dtype=np.float32).reshape(3, 2)}]


def _while_with_maximum() -> Any:
    x, n = _x(), _x("n", tf.int32)
    y = v1.while_loop(lambda i, y: i < n, lambda i, y: (i + 1, y + x), (0, 0.0), maximum_iterations=3)[1]
    return {"y": y}, [{"x": np.float32(2), "n": np.int32(n)} for n in (0, 2, 9)]


def _several_results() -> Any:
    x, p = _x(shape=[3]), _x("p", tf.bool)

    def true() -> Any:
        shared = tf.exp(x)
        return shared, shared * 2.0, tf.reduce_sum(shared)

    a, b, c = v1.cond(p, true, lambda: (x, x, x[0]))
    return {"a": a, "b": b, "c": c}, [{"x": np.array([1, 2, 3], np.float32), "p": p} for p in (True, False)]


def _functions() -> Any:
    x, n = _x(), _x("n", tf.int32)

    def add_and_multiply(a: Any, b: Any) -> Any:
        return a + b, a * b

    inner = tf.function(add_and_multiply)

    def repeat(a: Any, n: Any) -> Any:
        total, product = inner(a, 2.0)
        for i in tf.range(n):
            total, product = inner(total, product)
            if total > 20.0:
                total = total - tf.cast(i, tf.float32)
        return total, product

    total, product = tf.function(repeat)(x, n)
    return {"total": total, "product": product}, [{"x": np.float32(1.5), "n": np.int32(n)} for n in (0, 1, 3)]


def _assigned_in_branches() -> Any:
    x, p = _x(), _x("p", tf.bool)
    variable = v1.get_variable("v", initializer=1.0, use_resource=True)

    def true() -> Any:
        with tf.control_dependencies([variable.assign_add(x)]):
            return tf.identity(variable.read_value())

    y = v1.cond(p, true, lambda: variable.read_value() * 2.0)
    with tf.control_dependencies([y]):
        after = variable.read_value()
    return {"y": y, "after": after}, SCALARS


def _assigned_in_loop() -> Any:
    x, n = _x(), _x("n", tf.int32)
    variable = v1.get_variable("v", initializer=1.0, use_resource=True)

    def body(i: Any) -> Any:
        with tf.control_dependencies([variable.assign(variable.read_value() * x)]):
            return i + 1

    i = v1.while_loop(lambda i: i < n, body, (0,))
    with tf.control_dependencies([i[0] if isinstance(i, (list, tuple)) else i]):
        return {"v": variable.read_value()}, [{"x": np.float32(2), "n": np.int32(n)} for n in (0, 3)]


def _old_value_is_kept() -> Any:
    x = _x()
    variable = v1.get_variable("v", initializer=1.0, use_resource=True)
    before = variable.read_value()
    with tf.control_dependencies([before]):
        assign = variable.assign_add(x)
    with tf.control_dependencies([assign]):
        return {"before": before, "after": variable.read_value(), "sum": before + assign}, [{"x": np.float32(4)}]


def _sequence() -> Any:
    x, n = _x(shape=[2, 5, 3]), _x("n", tf.int32, [2])
    w = tf.constant(np.linspace(-1, 1, 28, dtype=np.float32).reshape(7, 4))

    def body(t: Any, state: Any, outputs: Any) -> Any:
        new = tf.tanh(tf.matmul(tf.concat([x[:, t], state], 1), w))
        keep = tf.tile(tf.expand_dims(t < n, 1), [1, 4])
        new = tf.where(keep, new, state)
        return t + 1, new, outputs.write(t, new)

    state = tf.zeros([tf.shape(x)[0], 4])
    _, last, outputs = v1.while_loop(lambda t, s, o: t < tf.reduce_max(n), body, (0, state, tf.TensorArray(
        tf.float32, tf.reduce_max(n))))  # fmt: skip
    return {"last": last, "all": tf.transpose(outputs.stack(), [1, 0, 2])}, [
        {"x": np.linspace(0, 1, 30, dtype=np.float32).reshape(2, 5, 3), "n": np.array([4, 2], np.int32)}
    ]


CONTROL_FLOW: dict[str, Callable[[], Any]] = {
    name[1:]: build
    for name, build in list(globals().items())
    if callable(build) and name.startswith("_") and not name.startswith("__") and name not in ("_x", "_ran")
}


def product_and_sum(prefix: str) -> None:
    """Save the graph v4 = v1 * v2 + (a variable whose value is 20) in the files with this prefix."""
    with tf.Graph().as_default(), v1.Session() as session:
        product = _x("v1") * _x("v2")
        added = v1.get_variable("added", initializer=20.0)
        tf.add(product, added, name="v4")
        session.run(added.initializer)
        v1.train.Saver().save(session, prefix)


def classifier(prefix: str, resource: bool) -> dict[str, Any]:
    """Save a network with its loss; return what TensorFlow computes from it.

    The placeholder "training" decides about batch statistics, and "keep" about dropout.
    """
    rng = np.random.default_rng(3)
    images = rng.normal(size=(4, 9, 7, 3)).astype(np.float32)
    labels = np.array([0, 2, 1, 2], np.int32)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        v1.set_random_seed(7)
        x, y = _x("x", shape=[None, 9, 7, 3]), _x("labels", tf.int32, [None])
        training, keep = v1.placeholder_with_default(False, (), "training"), _x("keep")
        with v1.variable_scope("net", use_resource=resource):
            w = v1.get_variable("conv/kernel", [3, 3, 3, 6])
            hidden = tf.nn.conv2d(x, w, 2, "SAME") + v1.get_variable("conv/bias", [6])
            gamma = v1.get_variable("bn/gamma", [6], initializer=v1.ones_initializer())
            beta = v1.get_variable("bn/beta", [6])
            mean = v1.get_variable("bn/mean", [6], trainable=False, initializer=v1.zeros_initializer())
            variance = v1.get_variable("bn/variance", [6], trainable=False, initializer=v1.ones_initializer())

            def of_batch() -> Any:
                of_mean, of_variance = tf.nn.moments(hidden, [0, 1, 2])
                return of_mean, of_variance

            used = v1.cond(training, of_batch, lambda: (tf.identity(mean), tf.identity(variance)))
            hidden = tf.nn.relu(tf.nn.batch_normalization(hidden, *used, beta, gamma, 1e-3))
            hidden = v1.nn.dropout(hidden, keep_prob=keep)
            flat = tf.reshape(hidden, [tf.shape(x)[0], 5 * 4 * 6])
            logits = tf.matmul(flat, v1.get_variable("dense/kernel", [120, 3]))
            logits = tf.identity(logits + v1.get_variable("dense/bias", [3]), "logits")
        loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits), name="loss")
        variables = v1.trainable_variables()
        slopes = tf.gradients(loss, variables)
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, prefix)
        feeds = {"x:0": images, "labels:0": labels, "keep:0": np.float32(1)}
        found = {}
        for mode in (False, True):
            values = session.run([loss, logits, *slopes], {**feeds, "training:0": mode})
            found[mode] = [RawTensor.of(value) for value in values]
    return {"feeds": feeds, "found": found, "names": [variable.op.name for variable in variables], "graph": repr(graph)}


def value_after_restore(prefix: str, fetch: str, feeds: Mapping[str, Any]) -> RawTensor:
    """Import the graph of a checkpoint, restore it, and compute a tensor."""
    with tf.Graph().as_default(), v1.Session() as session:
        v1.train.import_meta_graph(f"{prefix}.meta").restore(session, prefix)
        return RawTensor.of(session.run(fetch, feeds))


def training_graph(prefix: str, resource: bool) -> dict[str, Any]:
    """Save a graph with dropout and batch statistics, "trained", and the same for inference, "expected".

    Other outputs are not recognised: "sampled" and "normalised" have random numbers and statistics of the batch of
    their own. Returns the feeds and TensorFlow's value of "expected".
    """
    rng = np.random.default_rng(5)
    images = rng.normal(size=(4, 6, 6, 3)).astype(np.float32)
    with tf.Graph().as_default() as graph, v1.Session() as session:
        x, keep = _x("x", shape=[None, 6, 6, 3]), _x("keep")
        with v1.variable_scope("net", use_resource=resource):
            w = v1.get_variable("kernel", [3, 3, 3, 4])
            names = ("gamma", "beta", "mean", "variance", "mean_of_rows", "variance_of_rows")
            gamma, beta, mean, variance, row_mean, row_variance = (
                v1.get_variable(
                    name, [4], initializer=v1.random_uniform_initializer(0.5, 1.5), trainable="_" not in name
                )
                for name in names
            )

        def moving(variable: Any, statistic: Any) -> Any:
            return v1.assign_sub(variable, (variable - statistic) * 0.1)

        def network(training: bool) -> Any:
            y = tf.nn.conv2d(x, w, 1, "SAME")
            y, of_mean, of_variance = v1.nn.fused_batch_norm(
                y, gamma, beta, None if training else mean, None if training else variance, is_training=training
            )[:3]
            if training:
                moving(mean, of_mean)
                moving(variance, of_variance)
                y = v1.nn.dropout(y, rate=1 - keep)
                floored = tf.floor(v1.random_uniform(tf.shape(y)) + keep)
                y = tf.math.divide(y, keep) * floored
                y = tf.nn.dropout(y, rate=0.25)
                averages = tf.nn.moments(y, [0, 1, 2], keepdims=True)
                averages = [tf.squeeze(each, [0, 1, 2]) for each in averages]
                moving(row_mean, averages[0])
                moving(row_variance, averages[1])
            else:
                averages = [row_mean, row_variance]
            y = tf.nn.batch_normalization(y, *averages, beta, gamma, 1e-3)
            return tf.reduce_mean(tf.nn.relu(y), [1, 2])

        trained = tf.identity(network(True), "trained")
        expected = tf.identity(network(False), "expected")
        tf.identity(trained + v1.random_normal([4]), "sampled")
        tf.nn.batch_normalization(x, *tf.nn.moments(x, [0, 1, 2]), None, None, 1e-3, name="normalised")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, prefix)
        value = RawTensor.of(session.run(expected, {x: images}))
    return {"x": images, "expected": value, "graph": repr(graph)}


def training_functions(prefix: str) -> dict[str, Any]:
    """Save a graph with dropout in loops, branches and called functions of TensorFlow 2, and "expected" without it.

    Other outputs have in a loop or branch what is not recognised. Returns the feeds and TensorFlow's value of
    "expected".
    """
    x_value = np.random.default_rng(7).normal(size=(3, 4)).astype(np.float32)
    v1.enable_control_flow_v2()
    with tf.Graph().as_default(), v1.Session() as session:
        x, is_high = _x("x", shape=[None, 4]), _x("is_high", tf.bool)
        w = v1.get_variable("w", [4, 4], use_resource=True)

        def repeated(body: Callable[[Any], Any], y: Any) -> Any:
            return tf.while_loop(lambda i, _: i < 3, lambda i, y: (i + 1, body(y)), [0, y])[1]

        def network(dropout: Callable[[Any], Any]) -> Any:
            y = repeated(lambda y: dropout(tf.tanh(y @ w)), x)
            y = tf.cond(is_high, lambda: repeated(lambda z: dropout(z + 1), y), lambda: dropout(dropout(y) * 2))
            called = tf.function(lambda z: tf.cond(is_high, lambda: dropout(z), lambda: -z))
            index = tf.cast(is_high, tf.int32)
            return tf.switch_case(index, [lambda: called(y), lambda: dropout(called(y)) + x])

        def normalised() -> Any:
            scale = tf.ones([1])
            return v1.nn.fused_batch_norm(x[:, :, None, None], scale, scale, is_training=True)[0][:, :, 0, 0]

        drawn = {
            "noise": lambda y: y + v1.random_normal([4]),
            "cut": lambda y: y + v1.truncated_normal([4]),
            "seeded": lambda y: y + tf.random.stateless_normal([4], [1, tf.cast(y[0, 0], tf.int32)]),
            "sampled": lambda y: y + tf.cast(v1.random.categorical(y, 1), tf.float32),
        }
        tf.identity(network(lambda y: tf.nn.dropout(y, rate=0.4)), "trained")
        expected = tf.identity(network(lambda y: y), "expected")
        for name, body in drawn.items():
            tf.identity(repeated(body, x), f"{name}_in_loop")
            tf.identity(body(x), name)  # type: ignore[no-untyped-call]
        tf.identity(tf.cond(is_high, normalised, lambda: x), "normalised_in_branch")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, prefix)
        values = [RawTensor.of(session.run(expected, {x: x_value, is_high: flag})) for flag in (False, True)]
    return {"x": x_value, "expected": values}


def accuracy_graph(prefix: str) -> None:
    """Save a graph with a streaming metric, whose counts are local variables."""
    with tf.Graph().as_default(), v1.Session() as session:
        x = _x("x", shape=[None])
        w = v1.get_variable("w", initializer=2.0)
        value, update = v1.metrics.mean(x * w)
        tf.identity(value, "value")
        tf.identity(update, "update")
        tf.group(v1.local_variables_initializer(), name="begin")
        session.run(v1.global_variables_initializer())
        v1.train.Saver().save(session, prefix)


def saved_signature(directory: str) -> dict[str, Any]:
    """Save a module with the signature "predict" of two inputs and two outputs; return what it computes."""
    rng = np.random.default_rng(6)
    scaled = tf.Module()
    scaled.kernel = tf.Variable(rng.normal(size=(3, 2)).astype(np.float32), name="kernel")
    scaled.steps = tf.Variable(np.float32(2), name="steps", trainable=False)

    def predict(x: Any, times: Any) -> Any:
        y = tf.matmul(x, scaled.kernel)
        for _ in tf.range(times):
            y = tf.tanh(y) * scaled.steps
        return {"y": y, "size": tf.shape(y)}

    shapes = [tf.TensorSpec([None, 3], tf.float32, "x"), tf.TensorSpec([], tf.int32, "times")]
    function = tf.function(predict, input_signature=shapes)
    tf.saved_model.save(scaled, directory, signatures={"predict": function})
    x = rng.normal(size=(4, 3)).astype(np.float32)
    found = function(tf.constant(x), tf.constant(3))
    return {"x": x, **{name: RawTensor.of(value.numpy()) for name, value in found.items()}}
