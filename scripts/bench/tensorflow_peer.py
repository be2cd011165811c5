"""TensorFlow's side of the benchmarks: a process without torch, started by peers.TensorFlow.

Reads one JSON list [function, argument, ...] per line from stdin, and answers each with a JSON value: the seconds that
the operation itself took, without the pipe and the check of the result.
"""

import json
import sys
import time
from typing import Any, Literal

import graph_models
import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
import workload
from timing import timed


class Peer:
    """Keeps the workload between calls; every public method can be called from the other process."""

    def __init__(self) -> None:
        self._arrays: workload.Arrays = {}
        self._tensors: list[Any] = []
        self._graph: tuple[str, Any, Any] = ("", None, None)

    def prepare(self, kind: Literal["large", "tiny", "graph"], arguments: list[Any]) -> float:
        """Create the tensors that later calls save, or expect to find; or the model that later calls run."""
        if kind == "graph":
            self._export(*arguments)
            return 0.0
        self._arrays = workload.make(kind, arguments)
        self._tensors = [tf.constant(array) for array in self._arrays.values()]
        return 0.0

    def save(self, prefix: str) -> float:
        """Time SaveV2."""
        names, specs = list(self._arrays), [""] * len(self._arrays)

        def work() -> None:
            tf.raw_ops.SaveV2(prefix=prefix, tensor_names=names, shape_and_slices=specs, tensors=self._tensors)

        return timed(work)[0]

    def restore(self, prefix: str) -> float:
        """Time RestoreV2 of all tensors with names and dtypes known beforehand."""
        seconds, values = restored(prefix, list(self._arrays))
        self._check(values)
        return seconds

    def write_objects(self, prefix: str) -> float:
        """Time tf.train.Checkpoint.write of a list of variables."""
        checkpoint = tf.train.Checkpoint(layers=self._variables())
        return timed(lambda: checkpoint.write(prefix))[0]

    def read_objects(self, prefix: str) -> float:
        """Time tf.train.Checkpoint.read into a list of variables, with the assertion that everything was restored."""
        variables = self._variables()
        for variable in variables:
            variable.assign(tf.zeros_like(variable))
        checkpoint = tf.train.Checkpoint(layers=variables)
        seconds, _ = timed(lambda: checkpoint.read(prefix).assert_consumed())
        self._check(dict(zip(self._arrays, (variable.numpy() for variable in variables), strict=True)))
        return seconds

    def _variables(self) -> list[Any]:
        return [tf.Variable(tensor) for tensor in self._tensors]

    def list_variables(self, prefix: str) -> float:
        """Time tf.train.list_variables."""
        seconds, listed = timed(lambda: tf.train.list_variables(prefix))
        if listed != [(name, list(array.shape)) for name, array in self._arrays.items()]:
            raise ValueError("list_variables: names or shapes differ")
        return seconds

    def _export(self, name: str, folder: str) -> None:
        """Export a model, with an input and its output, and load it; from now on TensorFlow has one thread."""
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
        model = graph_models.make(name)
        model.export(f"{folder}/model", verbose=False)
        signature = tf.saved_model.load(f"{folder}/model").signatures["serving_default"]
        given = np.random.default_rng(0).standard_normal(graph_models.INPUTS[name]).astype(np.float32)
        feeds = {next(iter(signature.structured_input_signature[1])): tf.constant(given)}
        np.save(f"{folder}/input.npy", given)
        np.save(f"{folder}/output.npy", next(iter(signature(**feeds).values())).numpy())
        self._graph = (name, signature, feeds)

    def run_graph(self) -> float:
        """CPU seconds of one call of the signature."""
        name, signature, feeds = self._graph
        begin = time.process_time()
        for _ in range(graph_models.CALLS[name]):
            for value in signature(**feeds).values():
                value.numpy()
        return (time.process_time() - begin) / graph_models.CALLS[name]

    def _check(self, values: dict[str, Any]) -> None:
        if values.keys() != self._arrays.keys():
            raise ValueError("names differ")
        for name, array in self._arrays.items():
            if not np.array_equal(values[name], array):
                raise ValueError(f"{name} differs")


def fresh_restore(prefix: str, names: list[str]) -> list[Any]:
    """Time RestoreV2 as the first work of a process; return the seconds and the checksum of the values."""
    seconds, values = restored(prefix, names)
    return [seconds, workload.checksum(values)]


def restored(prefix: str, names: list[str]) -> tuple[float, dict[str, Any]]:
    """Return the seconds of RestoreV2, and its values."""
    count = len(names)

    def work() -> Any:
        return tf.raw_ops.RestoreV2(
            prefix=prefix, tensor_names=names, shape_and_slices=[""] * count, dtypes=[tf.float32] * count
        )

    seconds, values = timed(work)
    return seconds, {name: value.numpy() for name, value in zip(names, values, strict=True)}


def main() -> None:
    peer = Peer()
    for line in sys.stdin:
        function, *arguments = json.loads(line)
        print(json.dumps(getattr(peer, function)(*arguments)), flush=True)


if __name__ == "__main__":
    main()
