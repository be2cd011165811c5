"""Replacement for TensorFlow's inspect_checkpoint tool in scripts, with the same output.

    python -m torch_tfckpt.inspect_checkpoint --file_name=model.ckpt-1000 --all_tensor_names

`tfckpt ls` and `tfckpt show` print more, and report errors by their exit status.

Source: tensorflow/python/tools/inspect_checkpoint.py.
"""

import argparse
import re
import sys
from collections.abc import Iterable, Sequence
from math import prod
from typing import Final

import numpy as np
import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.cli.console import escaped, prepare_streams
from torch_tfckpt.errors import CheckpointError, UnimplementedError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.values import Value

_USAGE: Final = (
    "Usage: inspect_checkpoint --file_name=checkpoint_file_name [--tensor_name=tensor_to_print] [--all_tensors] "
    "[--all_tensor_names] [--count_exclude_pattern]"
)
_SMALL_INTEGERS: Final = {DataType.DT_INT4, DataType.DT_UINT4, DataType.DT_INT2, DataType.DT_UINT2}
_SMALL_FLOATS: Final = {
    torch.bfloat16,
    torch.float8_e5m2,
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
}


def print_tensors_in_checkpoint_file(
    file_name: AnyPath,
    tensor_name: str | None = None,
    all_tensors: bool = False,
    all_tensor_names: bool = False,
    count_exclude_pattern: str = "",
) -> None:
    """Print the contents of a checkpoint and the number of elements.

    The output is the same as TensorFlow's, except for error messages, escaped control characters in names, and
    partitioned tensors, which have one line each in the plain listing. Errors are printed, not raised.

    Args:
        file_name: Any path that CheckpointReader accepts; TensorFlow accepts only prefixes.
        tensor_name: Print only this tensor.
        all_tensors: Print the names and values of all tensors.
        all_tensor_names: Print the names of all tensors.
        count_exclude_pattern: Regular expression; tensors whose names match it anywhere are not counted.

    Cost: reads the index and the tensors that are printed.
    """
    try:
        with CheckpointReader(file_name) as reader:
            if all_tensors or all_tensor_names:
                for name in reader.get_variable_to_shape_map():
                    _print_header(reader, name)
                    if all_tensors:
                        print(_text_or_note(reader, name))
            elif not tensor_name:
                print("\n".join(map(escaped, reader.debug_string().splitlines())), end="\n\n")
            elif tensor_name not in reader:
                print(f"Tensor {escaped(tensor_name)} not found in checkpoint")
                return
            else:
                _print_header(reader, tensor_name)
                print(_text(reader.get_tensor(tensor_name), reader.dtype(tensor_name)))
            _print_total(reader, count_exclude_pattern)
    except (CheckpointError, OSError, re.error) as error:
        print(escaped(str(error)))


def _print_header(reader: CheckpointReader, name: str) -> None:
    dtype = reader.dtype(name)
    print(f"tensor: {escaped(name)} ({dtype.dtype_name}) {list(reader.shape(name))}")


def _text_or_note(reader: CheckpointReader, name: str) -> str:
    try:
        return _text(reader.get_tensor(name), reader.dtype(name))
    except UnimplementedError:
        return "<not convertible to a numpy dtype>"


def _print_total(reader: CheckpointReader, exclude: str) -> None:
    sizes = {name: prod(shape) for name, shape in reader.get_variable_to_shape_map().items()}
    if exclude:
        excluded = [name for name in sizes if re.search(exclude, name)]
        elements = sum(sizes.pop(name) for name in excluded)
        print(f"# Excluding {len(excluded)} tensors ({elements} params) that match {escaped(exclude)} when counting.")
    print(f"# Total number of params: {sum(sizes.values())}")


def _text(value: Value, dtype: DataType) -> str:
    """Return the value as numpy prints it."""
    if isinstance(value, np.ndarray):
        return str(value) if value.shape else str(value.item())
    # numpy itself lacks these types. The package ml_dtypes adds them to numpy, but does not align them, and prints at
    # most six digits.
    if value.dtype in _SMALL_FLOATS:
        return _unaligned((format(number, ".6g") for number in value.double().flatten().tolist()), value)
    if dtype in _SMALL_INTEGERS:
        return _unaligned(map(str, value.flatten().tolist()), value)
    return str(value.numpy())


def _unaligned(elements: Iterable[str], value: torch.Tensor) -> str:
    array = np.empty(value.numel(), dtype=object)
    array[:] = list(elements)
    array = array.reshape(value.shape)
    return np.array2string(array, formatter={"object": str}) if array.shape else str(array.item())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the tool; the exit status is 1 if no file is given, otherwise 0, as in TensorFlow."""
    prepare_streams()
    parser = argparse.ArgumentParser(prog="inspect_checkpoint", description="Print the contents of a checkpoint.")
    parser.add_argument("--file_name", default="", help="prefix of the checkpoint")
    parser.add_argument("--tensor_name", default="", help="print only this tensor")
    parser.add_argument("--count_exclude_pattern", default="", help="regular expression of tensors not to count")
    for name, what in (("--all_tensors", "names and values"), ("--all_tensor_names", "names")):
        parser.add_argument(
            name, nargs="?", const=True, type=_is_true, default=False, help=f"print the {what} of all tensors"
        )
    options = parser.parse_args(arguments)
    if not options.file_name:
        print(_USAGE)
        return 1
    print_tensors_in_checkpoint_file(**vars(options))
    return 0


def _is_true(text: str) -> bool:
    return text.lower() == "true"


if __name__ == "__main__":
    sys.exit(main())
