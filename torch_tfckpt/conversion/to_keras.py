"""Convert weights to a .weights.h5 file, in the order of a Keras file of the same model.

    convert("model.ckpt-1000", "model.weights.h5", like="model.keras")

Contract: every variable of the model gets the value of one tensor of the source (`keras_matching`), and every weight of
the source is used, unless `exclude` omits it. Dtypes are those of the Keras model; shapes and layouts stay as they are.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import torch

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.conversion.convert_report import ConvertReport
from torch_tfckpt.conversion.keras_matching import Weights, match_weights
from torch_tfckpt.conversion.selection import Selection
from torch_tfckpt.dtypes import torch_dtype
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.foreign_files.keras_weights import ENDING, KerasWeightsSink, info_of, is_weights_name
from torch_tfckpt.foreign_files.protocols import TensorSource, names_of
from torch_tfckpt.foreign_files.tensorflow import CheckpointSource
from torch_tfckpt.foreign_files.values import FileValue, TensorInfo
from torch_tfckpt.keras_files.template import WeightsTemplate
from torch_tfckpt.models.auxiliary.named_kinds import VariableKind
from torch_tfckpt.models.auxiliary.recognition import variable_kinds
from torch_tfckpt.models.file_reader import reader_of
from torch_tfckpt.models.keras_like import open_like
from torch_tfckpt.models.stored_copies import further_copies
from torch_tfckpt.storage.names import AnyPath
from torch_tfckpt.text import listed, printable, quoted

_LISTED: Final = 8  # names in an error
_STATES: Final = (torch.int64, torch.uint64)  # of random numbers, as Dropout has them, which Keras's files omit


class KerasOrderSource:
    """The tensors of a source under the names of the variables of a Keras model, in its order.

    Args:
        like: The file that the order is from; it has the values of metrics.
        keys: Name of a variable -> name in the source.
    """

    graph_edited = False

    def __init__(
        self, source: TensorSource, like: CheckpointReader, template: WeightsTemplate, keys: Mapping[str, str]
    ) -> None:
        self._source, self._like, self._template, self._keys = source, like, template, keys

    def names(self) -> list[str]:
        """The names of the variables."""
        return list(self._template.variables)

    def old_name(self, name: str) -> str:
        """Return the name in the source."""
        return self._keys.get(name, name)

    def info(self, name: str) -> TensorInfo:
        """Return the properties of a variable in the target."""
        return info_of(self._template.variables[name])

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        """Return values, in the dtypes of the source. Raises like `TensorSource.read`."""
        wanted = list(names)
        stored = self._source.read([self._keys[name] for name in wanted if name in self._keys])
        return {
            name: stored[self._keys[name]] if name in self._keys else self._like.get_tensor(name) for name in wanted
        }


class KerasTarget:
    """The file to write, and the Keras file that gives its structure.

    Args:
        path: The .weights.h5 file to write.
        like: The Keras file.
        others: Names of given arguments of `convert` that have no effect.

    Raises:
        InvalidArgumentError: `path` has another extension, or another argument is given.
        NotFoundError, DataLossError: `like` is missing or damaged.
    """

    def __init__(self, path: str, like: AnyPath, others: Sequence[str]) -> None:
        if not is_weights_name(path):
            raise InvalidArgumentError(
                f"{printable(path)}: `like` is for files that end in {ENDING}, which Keras's load_weights takes. "
                f"Change the name, or omit `like`"
            )
        for name in others:
            raise InvalidArgumentError(
                f"`{name}` cannot be combined with `like`, which determines names, layouts and dtypes. Omit it, or "
                f"convert in two steps, with `{name}` in the first"
            )
        self._like = open_like(like)
        try:
            assert self._like.keras is not None, "open_like refuses other files"
            self._template = self._like.keras.template()
            self.sink = KerasWeightsSink(path, self._template)
        except BaseException:
            self._like.close()
            raise

    def close(self) -> None:
        """Close the Keras file."""
        self._like.close()

    def turned(self, source: TensorSource, selection: Selection, report: ConvertReport) -> KerasOrderSource:
        """Return the tensors to write, and record in the report what is left out.

        Raises:
            InvalidArgumentError: a variable has no tensor, or a weight no variable; dtypes that cannot be converted.
        """
        reader = source.reader if isinstance(source, CheckpointSource) else None
        copies = set() if reader is None else further_copies(reader)
        chosen = selection.select(source.names(), keep_object_graph=False)
        report.filtered, report.unmatched_excludes = chosen.left_out, chosen.unmatched_excludes
        names_in = names_of(source)
        renamed = {key for key, new in chosen.new_names.items() if new not in names_in(key)}
        names = {
            key: (new,) if key in renamed else names_in(key)
            for key, new in chosen.new_names.items()
            if not source.info(key).type.is_string and key not in copies
        }
        places = {} if reader is None or reader.keras is None else reader.keras.places
        graph = None if reader is None else reader.object_graph
        shape_of = {key: source.info(key).shape for key in names}
        of_weights = frozenset(_weights_among(source, names))
        weights = Weights(
            printable(source.path), names, shape_of, frozenset(renamed), of_weights | renamed, graph, places
        )
        keys = match_weights(self._template, weights)
        _check_dtypes(source, self._template, keys)
        _check_all_used(source, of_weights - set(keys.values()))
        return KerasOrderSource(source, self._like, self._template, keys)


def _check_dtypes(source: TensorSource, template: WeightsTemplate, keys: Mapping[str, str]) -> None:
    for name, key in keys.items():
        wanted, held = torch_dtype(template.variables[name].dtype), source.info(key).type.dtype
        if held != wanted and not (held is not None and held.is_floating_point and wanted.is_floating_point):
            raise InvalidArgumentError(
                f"{printable(source.path)}: {quoted(key)} is {source.info(key).type.name}, but {quoted(name)} of the "
                f"Keras model is {template.variables[name].dtype.dtype_name}. Pass like= with a model of the same types"
            )


def _weights_among(source: TensorSource, names: Iterable[str]) -> list[str]:
    kinds = variable_kinds(reader_of(source))
    return [
        key for key in names if kinds.get(key) is VariableKind.WEIGHT and source.info(key).type.dtype not in _STATES
    ]


def _check_all_used(source: TensorSource, others: frozenset[str]) -> None:
    """Raise InvalidArgumentError if a weight of the source has no variable: the model may be another one."""
    if others:
        raise InvalidArgumentError(
            f"{printable(source.path)}: the Keras model of `like` has no variables for these weights: "
            f"{listed(sorted(others), _LISTED)}. Pass the .keras file of the model whose weights these are, or omit "
            f"them with `exclude`"
        )
