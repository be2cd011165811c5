"""LoadReport: the tensors that a load found, changed and ignored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import torch

from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_names import short_key
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.text import closest, closest_text, counted, did_you_mean, first_lines, listed, quoted

_LISTED: Final = 20  # maximum number of lines of each kind in the printed report


class Mismatch(NamedTuple):
    """Stored tensor whose shape or dtype does not fit the module.

    Attributes:
        name: Name in the state_dict.
        key: Key in the checkpoint.
        stored_shape: Shape in the checkpoint.
        stored_dtype: Element type in the checkpoint.
        layout: The layout that was tried.
        shape: Shape in the module; None for a lazy tensor, which has no shape yet, and for values that are not
            tensors.
        dtype: Element type in the module; None for values that are not tensors.
        reason: Description of the mismatch.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"weight": torch.ones(3, 4), "bias": torch.zeros(3)}, "model.ckpt")
        >>> [mismatch] = tfckpt.load_model(torch.nn.Linear(5, 3), path, strict=False).mismatched
        >>> mismatch.name, mismatch.stored_shape, mismatch.shape
        ('weight', (3, 4), (3, 5))
    """

    name: str
    key: str
    stored_shape: Shape
    stored_dtype: DataType
    layout: str
    shape: Shape | None
    dtype: torch.dtype | None
    reason: str

    def __str__(self) -> str:
        return f"{self.reason}, stored as {quoted(self.key)}"


class Conversion(NamedTuple):
    """Loaded tensor whose axes were moved or whose dtype was changed.

    Attributes:
        name: Name in the state_dict.
        key: Key in the checkpoint.
        layout: The layout by which the axes were moved; "same" if only the dtype was changed.
        stored_dtype: Element type in the checkpoint.
        dtype: Element type in the module.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"kernel": torch.ones(4, 3), "bias": torch.zeros(3)}, "model.ckpt")
        >>> print(*tfckpt.load_model(torch.nn.Linear(4, 3), path).converted)
        "weight" from "kernel", layout dense
    """

    name: str
    key: str
    layout: str
    stored_dtype: DataType
    dtype: torch.dtype

    def __str__(self) -> str:
        layout = "" if self.layout == "same" else f", layout {self.layout}"
        dtype = "" if ELEMENTS[self.stored_dtype].torch == self.dtype else f", {self.stored_dtype.name} to {self.dtype}"
        return f"{quoted(self.name)} from {quoted(self.key)}{layout}{dtype}"


class SemanticFinding(NamedTuple):
    """Setting or order that weights do not reveal, and that likely differs between module and TensorFlow.

    docs/conversion/semantics.md has a section for each name.

    Attributes:
        name: Name for load_model(accept=...), such as "batch_norm_epsilon".
        modules: Names of the modules concerned, in the order of the model; "" is the model itself.
        message: What may differ, in which modules, and what to do about it.
        accepted: Whether the caller accepted it. If so, it is neither in the remarks nor in the log.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> values = {"gamma": torch.ones(2), "moving_mean": torch.zeros(2), "moving_variance": torch.ones(2)}
        >>> path = tfckpt.save_file({f"bn/{name}": value for name, value in values.items()}, "model.ckpt")
        >>> model = torch.nn.ModuleDict({"bn": torch.nn.BatchNorm1d(2)})
        >>> [finding] = tfckpt.load_model(model, path, strict=False, accept=("batch_norm_epsilon",)).semantics
        >>> finding.name, finding.modules, finding.accepted
        ('batch_norm_epsilon', ('bn',), True)
    """

    name: str
    modules: tuple[str, ...]
    message: str
    accepted: bool = False

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass(frozen=True)
class LoadReport:
    """Report of load_model and Saver.restore. Unpacks as (missing, unexpected), as in load_state_dict.

    Attributes:
        missing: Names in the state_dict, or in the var_list of the saver, for which nothing is stored.
        unexpected: Stored keys for which the module has no tensor. If the module is stored below a prefix, only keys
            below it.
        mismatched: Stored tensors whose shape or dtype does not fit the module.
        converted: Tensors whose axes were moved or whose dtype was changed.
        sources: Name -> stored key, for everything that was loaded.
        averaged: Names that were filled with a moving average.
        filled: Name -> value of all elements, for tensors that TensorFlow does not store for a layer, such as the
            weight of a BatchNorm that was built with scale=False.
        ignored: Stored keys that are not weights of this module: counters, optimizers, averages, tensors that the
            mapper omits or that are outside the prefix; and the additional keys of tied tensors.
        prefix: Prefix below which the module is stored, as the checkpoint spells it: "model/".
        slots: Name of a parameter -> name in the optimizer's state -> stored key.
        missing_slots: Names of loaded parameters for which no optimizer state is stored.
        variables: Stored key -> full name of the variable, for an object-based checkpoint.
        hyperparameters: Hyperparameters that were loaded into the optimizer: lr, betas, momentum.
        unused_rules: Names and patterns of the mapper that match no stored tensor.
        semantics: Differences that weights do not reveal but that are likely, such as the epsilon of a BatchNorm. Only
            load_model looks for them.
        remarks: Other findings, such as arguments with which load_model would find more tensors; and `semantics`,
            except those that the caller accepted.
        hints: Missing name or unexpected key -> a remark, printed after it.
        looked_for: Missing name -> all names that were looked for, without a prefix: "fc.weight", "fc.kernel", ...

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> path = tfckpt.save_file({"weight": torch.ones(1, 2), "scale": torch.ones(1)}, "model.ckpt-1")
        >>> report = tfckpt.load_model(torch.nn.Linear(2, 1), path, strict=False)
        >>> report.missing, report.unexpected, report.sources
        (['bias'], ['scale'], {'weight': 'weight'})
        >>> print(report)
        loaded 1 tensor; 0 stored tensors ignored
        Missing key(s): "bias"
        Unexpected key(s): "scale"
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[Mismatch] = field(default_factory=list)
    converted: list[Conversion] = field(default_factory=list)
    sources: dict[str, str] = field(default_factory=dict)
    averaged: list[str] = field(default_factory=list)
    filled: dict[str, float] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    prefix: str = ""
    slots: dict[str, dict[str, str]] = field(default_factory=dict)
    missing_slots: list[str] = field(default_factory=list)
    variables: dict[str, str] = field(default_factory=dict)
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    unused_rules: list[str] = field(default_factory=list)
    semantics: list[SemanticFinding] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    hints: dict[str, str] = field(default_factory=dict, repr=False)
    looked_for: dict[str, list[str]] = field(default_factory=dict, repr=False)

    def __iter__(self) -> Iterator[list[str]]:
        return iter((self.missing, self.unexpected))

    def __str__(self) -> str:
        below = f" below {quoted(self.prefix)}" if self.prefix else ""
        averaged = f", {len(self.averaged)} of them moving averages" if self.averaged else ""
        ignored = counted(len(self.ignored), "stored tensor")
        head = f"loaded {counted(len(self.sources), 'tensor')}{below}{averaged}; {ignored} ignored"
        changed = first_lines([f"converted: {conversion}" for conversion in self.converted], _LISTED)
        taken = ", ".join(f"{name}={value}" for name, value in self.hyperparameters.items())
        slots = [f"optimizer state of {counted(len(self.slots), 'parameter')}" + (f"; {taken}" if taken else "")]
        slots = slots if self.slots or taken else []
        filled = [
            f"{quoted(name)} is not stored for its layer: filled with {value:g}" for name, value in self.filled.items()
        ]
        filled = first_lines(filled, _LISTED)
        return "\n".join([head, *slots, *self.problems(), *self.advice(), *filled, *changed])

    def problems(self) -> list[str]:
        """Return the problems as lines of text, worded as in load_state_dict; empty if everything fits.

        Examples:
            >>> import torch, torch_tfckpt as tfckpt
            >>> path = tfckpt.save_file({"weight": torch.ones(1, 2)}, "model.ckpt")
            >>> tfckpt.load_model(torch.nn.Linear(2, 1), path, strict=False).problems()
            ['Missing key(s): "bias"']
        """
        lines = []
        if self.missing:
            lines.append(f"Missing key(s): {self._listed(self.missing, self.unexpected)}")
        if self.unexpected:
            lines.append(f"Unexpected key(s): {self._listed(self.unexpected, ())}")
        if self.missing_slots:
            lines.append(f"Missing optimizer state of: {self._listed(self.missing_slots, ())}")
        return lines + first_lines([str(mismatch) for mismatch in self.mismatched], _LISTED)

    def advice(self) -> list[str]:
        """Return possible causes and fixes: the rules that match nothing, and the remarks.

        Examples:
            >>> import torch, torch_tfckpt as tfckpt
            >>> path = tfckpt.save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "model.ckpt")
            >>> tfckpt.load_model(torch.nn.Linear(2, 1), path, mapper={"weight": "weight", "b": None}).advice()
            ['Rules that match nothing: "b"']
        """
        unused = f"Rules that match nothing: {self._listed(self.unused_rules, ())}"
        return [*([unused] if self.unused_rules else []), *self.remarks]

    def _listed(self, names: Sequence[str], candidates: Sequence[str]) -> str:
        def with_hint(name: str) -> str:
            variable = self.variables.get(name)
            hints = [
                "" if variable is None else f"variable {quoted(variable)}",
                (self.hints.get(name) or did_you_mean(name, candidates) or self._similar(name, candidates)).rstrip("."),
            ]
            shown = "; ".join(filter(None, hints))
            return f"{quoted(name)} ({shown})" if shown else quoted(name)

        return listed(names, _LISTED, with_hint)

    def _similar(self, name: str, candidates: Sequence[str]) -> str:
        """Return 'Closest: ...' for keys that differ from a looked-for name only in the name of the module."""
        modules: dict[str, str] = {}
        last_parts = {other.rpartition(".")[2] for other in self.looked_for.get(name, ())}
        for key in candidates:
            for stored in (short_key(key), self.variables.get(key, "")):
                module, _, last_part = stored.replace("/", ".").rpartition(".")
                if last_part in last_parts:
                    modules.setdefault(module, stored)
        similar = closest(name.rpartition(".")[0], modules)
        return closest_text([modules[module] for module in similar])


def size_mismatch(name: str, stored: Shape, layout: str, wanted: Shape | None) -> str:
    """Return load_state_dict's error message for a shape that does not fit."""
    as_layout = "" if layout == "same" else f" in layout {layout}"
    here = "not known yet" if wanted is None else shape_text(wanted)
    return (
        f"size mismatch for {name}: copying a param with shape {shape_text(stored)}{as_layout} from checkpoint, the "
        f"shape in current model is {here}"
    )
