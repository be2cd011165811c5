"""Single operations, run eagerly by TensorFlow. Runs in the TensorFlow process only."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf  # type: ignore[import-untyped, import-not-found, unused-ignore]
from loss_weights import weights
from tensorflow.core.framework import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    attr_value_pb2,
    types_pb2,
)
from tensorflow.python.framework import (  # type: ignore[import-untyped, import-not-found, unused-ignore]
    op_def_registry,
)
from tensorflow_process import RawTensor
from tensorflow_side import from_tensorflow, to_tensorflow

Computed = tuple[list[RawTensor], list[RawTensor | None]] | str


def run_rows(rows: Sequence[tuple[str, Sequence[Any], Mapping[str, Any], bool]]) -> list[Computed]:
    """Compute every row: (operation, inputs, attributes, whether to compute gradients).

    An input is a RawTensor or a list of them; for an input that is a variable, its value. Returns for each row its
    outputs and the gradients of the sum of all floating-point outputs times `weights`, one per tensor of the inputs
    (None: no gradient), or the text of the error.
    """
    return [_computed(*row) for row in rows]


def _computed(name: str, inputs: Sequence[Any], attributes: Mapping[str, Any], gradients: bool) -> Computed:
    arguments = [
        [to_tensorflow(each) for each in value] if isinstance(value, list) else to_tensorflow(value) for value in inputs
    ]
    declared = op_def_registry.get(name)
    names = [argument.name for argument in declared.input_arg]
    function = getattr(tf.raw_ops, name)
    keywords = _keywords(function, declared)
    for at, argument in enumerate(declared.input_arg):
        if argument.type == types_pb2.DT_RESOURCE:
            arguments[at] = tf.Variable(arguments[at])
    flat = [each for value in arguments for each in (value if isinstance(value, list) else [value])]
    try:
        with tf.GradientTape(persistent=True) as tape:
            for each in flat:
                if gradients and each.dtype.is_floating:
                    tape.watch(each)
            handles = [each.handle if isinstance(each, tf.Variable) else each for each in arguments]
            given = {**dict(zip(names, handles, strict=True)), **attributes}
            found = function(**{keywords.get(each, each): value for each, value in given.items()})
            outputs = _flat(found)
            if gradients:
                loss = tf.add_n(
                    [
                        tf.reduce_sum(tf.cast(each, tf.float64) * weights(each.shape))
                        for each in outputs
                        if each.dtype.is_floating
                    ]
                )
        slopes = [tape.gradient(loss, each) for each in flat] if gradients else []
        raw = [None if each is None else from_tensorflow(tf.convert_to_tensor(each)) for each in slopes]
        return [from_tensorflow(each) for each in outputs], raw
    except (tf.errors.OpError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def _keywords(function: Any, declared: Any) -> dict[str, str]:
    """Return declared name -> keyword of the Python function, if that is another one: "split_dim" -> "axis"."""
    arguments = declared.input_arg
    inferred = {attr for each in arguments for attr in (each.type_attr, each.number_attr, each.type_list_attr)}
    names = [each.name for each in (*arguments, *declared.attr) if each.name not in inferred]
    keywords = [each for each in inspect.signature(function).parameters if each != "name"]
    renamed = [each for each in names if each not in keywords]
    return dict(zip(renamed, [each for each in keywords if each not in names], strict=False))


def _flat(found: Any) -> list[Any]:
    if isinstance(found, (list, tuple)):
        return [each for value in found for each in _flat(value)]
    return [found]


def declarations(names: Sequence[str]) -> dict[str, tuple[list[str], list[str], dict[str, Any], list[str]]]:
    """Return the declarations of operations: inputs, outputs, attributes, and those that the inputs determine.

    The values of attributes are their defaults as Python objects, dtypes as names; "" for an attribute without one.
    """
    found = {}
    for name in names:
        declared = op_def_registry.get(name)
        if declared is not None:
            inputs, outputs = ([each.name for each in args] for args in (declared.input_arg, declared.output_arg))
            attributes = {
                attr.name: _python(attr.type, attr.default_value) if attr.HasField("default_value") else ""
                for attr in declared.attr
            }
            known = [
                attr for each in declared.input_arg for attr in (each.type_attr, each.number_attr, each.type_list_attr)
            ]
            found[name] = inputs, outputs, attributes, [attr for attr in known if attr]
    return found


def _python(kind: str, value: Any) -> Any:
    if kind.startswith("list("):
        return [_python(kind[5:-1], _single(kind[5:-1], each)) for each in getattr(value.list, _FIELDS[kind[5:-1]])]
    if kind == "string":
        return value.s.decode()
    if kind == "type":
        return tf.as_dtype(value.type).name
    if kind == "shape":
        return None if value.shape.unknown_rank else [dim.size for dim in value.shape.dim]
    return getattr(value, _FIELDS[kind])


_FIELDS = {
    "string": "s",
    "type": "type",
    "int": "i",
    "float": "f",
    "bool": "b",
    "shape": "shape",
    "func": "func",
    "tensor": "tensor",
}


def _single(kind: str, value: Any) -> Any:
    single = attr_value_pb2.AttrValue()
    if kind in ("shape", "func", "tensor"):
        getattr(single, kind).CopyFrom(value)
    else:
        setattr(single, _FIELDS[kind], value)
    return single


def run_programs(
    programs: Sequence[tuple[Sequence[tuple[str, Sequence[Any], Mapping[str, Any], Sequence[str]]], Sequence[str]]],
) -> list[Computed]:
    """Compute every program in a graph of its own: (steps, names of the results).

    A step is (operation, inputs, attributes, names of its outputs). An input is a RawTensor, the name of an output of
    an earlier step, or a list of them. Returns what `run_rows` returns; the gradients are those of all constants.
    """
    tf.compat.v1.disable_control_flow_v2()  # gradients of TensorArrayV3 are only defined for version 1
    try:
        return [_run_program(*program) for program in programs]
    finally:
        tf.compat.v1.enable_control_flow_v2()


def _run_program(steps: Sequence[Any], results: Sequence[str]) -> Computed:
    known: dict[str, Any] = {}
    constants: list[Any] = []

    def value_of(given: Any) -> Any:
        if isinstance(given, list):
            return [value_of(each) for each in given]
        if isinstance(given, str):
            return known[given]
        constants.append(tf.constant(np.frombuffer(given.data, given.dtype).reshape(given.shape)))
        return constants[-1]

    try:
        with tf.Graph().as_default(), tf.compat.v1.Session() as session:
            for name, inputs, attributes, outputs in steps:
                declared, function = op_def_registry.get(name), getattr(tf.raw_ops, name)
                keywords = _keywords(function, declared)
                given: dict[str, Any] = {}
                for argument, value in zip(declared.input_arg, inputs, strict=True):
                    given[argument.name] = value_of(value)
                given.update(attributes)
                found = _flat(function(**{keywords.get(each, each): value for each, value in given.items()}))
                known.update(zip(outputs, found, strict=True))
            fetched = [known[each] for each in results]
            values = session.run(fetched)
            floats = [
                tf.reduce_sum(tf.cast(tensor, tf.float64) * tf.constant(weights(value.shape)))
                for tensor, value in zip(fetched, values, strict=True)
                if tensor.dtype.is_floating
            ]
            slopes: list[Any] = [None] * len(constants)
            if floats:
                slopes = tf.gradients(tf.add_n(floats), constants)
            raw = [None if each is None else _raw(session.run(tf.convert_to_tensor(each))) for each in slopes]
            return [_raw(value) for value in values], raw
    except (tf.errors.OpError, ValueError, TypeError) as error:
        return f"{type(error).__name__}: {error}"


def _raw(value: Any) -> RawTensor:
    return RawTensor.of(np.asarray(value))
