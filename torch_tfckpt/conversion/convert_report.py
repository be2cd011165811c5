"""Reports of `convert`: what became of every tensor."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

from torch_tfckpt.conversion.casting import casting_lines
from torch_tfckpt.conversion.training_state import training_lines
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.text import byte_text, counted, encodable, first_lines, listed, printable, quoted

_LISTED: Final = 8  # number of shared tensors that the text of a report lists
KEPT_LAYOUT: Final = "only that its axes are in TensorFlow's order; the values are in the target"
_NAMED: Final = 5  # number of tensors with the same damage that the text of a report lists
_Value = TypeVar("_Value")


class ConvertedTensor(NamedTuple):
    """One tensor in the target.

    Attributes:
        name: Its name in the source.
        new_name: Its name in the target.
        dtype: Its element type in the target, such as "float32".
        shape: Its shape.
        nbytes: Bytes of its elements in the target.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt")
        >>> tfckpt.convert(prefix, "model.safetensors", rename=[("w", "weight")]).converted
        [ConvertedTensor(name='w', new_name='weight', dtype='float32', shape=(2,), nbytes=8)]
    """

    name: str
    new_name: str
    dtype: str
    shape: Shape
    nbytes: int


class SidecarTensor(NamedTuple):
    """One tensor whose value or type the sidecar stores.

    Attributes:
        name: Its name in the source.
        new_name: Its name in the target.
        dtype: Its element type.
        shape: Its shape.
        reason: Why the target cannot store it.
        whole: Whether the sidecar stores the value. If not, the target stores it as plain numbers, and the sidecar
            stores only its type.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2), "words": ["a", "b"]}, "model.ckpt")
        >>> report = tfckpt.convert(prefix, "model.safetensors")
        >>> [(tensor.name, tensor.dtype, tensor.whole) for tensor in report.sidecar]
        [('words', 'string', True)]
    """

    name: str
    new_name: str
    dtype: str
    shape: Shape
    reason: str
    whole: bool


class TensorOutcome(NamedTuple):
    """What became of one stored tensor when names and layouts were converted.

    Attributes:
        name: Its name in the source.
        new_name: Its name in the target; None if it is left out. A tensor with several new names has several outcomes.
        transform: The layout, such as "dense" or "same", and how it was joined or divided.
        shape: Its shape in the source.
        new_shape: The shape of the tensor `new_name`; () if it is left out.
        reason: Why it is left out; otherwise "".

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"fc/kernel": torch.ones(3, 2), "global_step": torch.tensor(7)}, "model.ckpt")
        >>> rules = {"fc/kernel": ("fc.weight", "dense")}
        >>> for outcome in tfckpt.convert(prefix, "model.pt", to_torch=True, map=rules).outcomes:
        ...     print(outcome.name, outcome.new_name, outcome.transform or outcome.reason, outcome.new_shape)
        fc/kernel fc.weight dense (2, 3)
        global_step None a counter ()
    """

    name: str
    new_name: str | None
    transform: str
    shape: Shape
    new_shape: Shape
    reason: str = ""


@dataclass(slots=True)
class ConvertReport:
    """What a conversion did, or would do. `print(report)` shows it as `tfckpt convert` does.

    Attributes:
        source: The checkpoint or file that was read.
        target: The file or prefix that was written.
        format: Format of the target, such as "safetensors".
        dry_run: Whether nothing was written.
        files: Files of the target; its sidecar, if there is one, last.
        converted: Tensors that are in the target.
        sidecar: Tensors whose values or types the sidecar stores.
        filtered: Names that `include` and `exclude` left out.
        unmatched_excludes: Patterns of `exclude` that matched nothing.
        skipped: Name of each entry of the source that is not a tensor -> its kind.
        shared: Omitted tensors whose object is still reachable by another name -> that name.
        damaged: With `skip_damaged`: tensors that are missing from the target -> the damage.
        damaged_index: With `skip_damaged`: parts of the index that cannot be read. Tensors listed only in these parts
            are missing from the target. `damaged` includes them only if the object graph still names them.
        graph_edited: Whether the object graph was edited to match renamed or omitted tensors.
        clamped: With `clamp`: name -> number of its values that were beyond the range of `dtype`.
        zeroed: With `dtype`: name -> number of its values that are so small that `dtype` makes them zero.
        training: For training state saved with torch.save: key for a Saver -> what is stored under it.
        refused: Key of each optimizer in the training state that could not be converted -> the reason.
        outcomes: With `to_torch` and `to_tf`: what became of each stored tensor.
        filled: With `to_torch`: name of each tensor that is not stored -> the value of its elements, such as the weight
            of a BatchNorm that was built with scale=False.
        omitted: With `weights_only` and `names`: name of each tensor that is left out -> the reason.
        checked: The module that loaded the target strictly; "" without `check`.
        remarks: What may be unintended, one sentence each: layouts that are still TensorFlow's, averages that are not
            used, settings that the weights do not determine, rules that match nothing.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> prefix = tfckpt.save_file({"w": torch.ones(2), "w/Adam": torch.zeros(2)}, "model.ckpt-1")
        >>> report = tfckpt.convert(prefix, "model.safetensors", exclude=["/Adam"])
        >>> [item.new_name for item in report.converted], report.filtered, report.complete
        (['w'], ['w/Adam'], True)
    """

    source: str
    target: str
    format: str
    dry_run: bool
    files: list[str] = field(default_factory=list)
    converted: list[ConvertedTensor] = field(default_factory=list)
    sidecar: list[SidecarTensor] = field(default_factory=list)
    filtered: list[str] = field(default_factory=list)
    unmatched_excludes: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    shared: dict[str, str] = field(default_factory=dict)
    damaged: dict[str, str] = field(default_factory=dict)
    damaged_index: list[str] = field(default_factory=list)
    graph_edited: bool = False
    clamped: dict[str, int] = field(default_factory=dict)
    zeroed: dict[str, int] = field(default_factory=dict)
    training: dict[str, str] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    outcomes: list[TensorOutcome] = field(default_factory=list)
    filled: dict[str, float] = field(default_factory=dict)
    omitted: dict[str, str] = field(default_factory=dict)
    checked: str = ""
    remarks: list[str] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors in the target."""
        return sum(item.nbytes for item in self.converted)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing because of damage, and no optimizer was refused."""
        return not self.damaged and not self.damaged_index and not self.refused

    def __str__(self) -> str:
        done = "would convert" if self.dry_run else "converted"
        lines = [f"{done} {counted(len(self.converted), 'tensor')}, {byte_text(self.nbytes)}, to {self.format}:"]
        lines += [f"  {printable(path)}" for path in self.files]
        if self.dry_run:
            lines += ["tensors:"]
            lines += [f"  {_described(item)}" for item in self.converted]
        if self.checked:
            lines.append(f"{self.checked} loads it strictly")
        if self.outcomes:
            lines.append("layouts:")
            lines += first_lines(list(self._turned()), _LISTED)
        lines += self._filled()
        lines += training_lines(self.training, self.refused)
        if self.graph_edited:
            lines.append("the object graph was edited to match the tensors")
        lines += casting_lines(self.clamped, self.zeroed)
        sidecar = [item for item in self.sidecar if item.reason != KEPT_LAYOUT]  # KEPT_LAYOUT is in a remark
        if sidecar:
            lines.append(f"in the sidecar, since {self.format} cannot store them:")
            lines += [f"  {_described(item)}: {item.reason}" for item in sidecar]
        if self.skipped:
            shown = [f"  {quoted(name)}: {reason}" for name, reason in self.skipped.items()]
            lines.append("omitted, because they are not tensors:")
            lines += first_lines(shown, _LISTED) if self.outcomes else shown
        if self.filtered:
            lines.append(f"omitted by include and exclude: {counted(len(self.filtered), 'tensor')}")
            shared = [f"  {quoted(name)}, which is also {quoted(other)}" for name, other in self.shared.items()]
            lines += [f"  {line.strip()}" for line in first_lines(shared, _LISTED)]
        lines += [f"exclude {quoted(pattern)} matched nothing" for pattern in self.unmatched_excludes]
        if self.damaged:
            lines.append(f"damaged and omitted: {counted(len(self.damaged), 'tensor')}")
            lines += _grouped(self.damaged)
        if self.damaged_index:
            lines.append("damaged parts of the index; their tensors are lost:")
            lines += [f"  {problem}" for problem in self.damaged_index]
        lines += [f"note: {remark}" for remark in self.remarks]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """Return the report as values for JSON: what `tfckpt convert --json` prints and `--report` writes.

        Examples:
            >>> import torch, torch_tfckpt as tfckpt
            >>> prefix = tfckpt.save_file({"w": torch.ones(2)}, "model.ckpt")
            >>> tfckpt.convert(prefix, "model.safetensors").as_json()["converted"]
            [{'name': 'w', 'new_name': 'w', 'dtype': 'float32', 'shape': (2,), 'nbytes': 8}]
        """
        return (
            asdict(self)
            | {"source": encodable(self.source), "target": encodable(self.target)}
            | {"files": [encodable(path) for path in self.files]}
            | {"converted": [item._asdict() for item in self.converted], "nbytes": self.nbytes}
            | {"sidecar": [item._asdict() for item in self.sidecar], "complete": self.complete}
            | {"outcomes": [item._asdict() for item in self.outcomes]}
        )

    def _turned(self) -> Iterator[str]:
        """Yield what was done to the tensors."""
        counts = Counter(outcome.transform for outcome in self.outcomes if outcome.new_name is not None)
        for transform, count in counts.items():
            yield f"  {transform}: {counted(count, 'tensor')}"

    def _filled(self) -> Iterator[str]:
        """Yield lines for tensors that are filled or left out."""
        for number, names in _names_by_value(self.filled).items():
            yield f"not stored, filled with {number:g}: {counted(len(names), 'tensor')}, {listed(names, _NAMED)}"
        left_out = {outcome.name: outcome.reason for outcome in self.outcomes if outcome.new_name is None}
        by_reason = _names_by_value(left_out | self.omitted)
        if by_reason:
            yield "left out:"
        for reason, names in by_reason.items():
            yield f"  {counted(len(names), 'tensor')}, {listed(names, _NAMED)}: {reason}"


def _grouped(damaged: Mapping[str, str]) -> Iterator[str]:
    """Yield one line for each reason, such as a missing data file, with the damaged tensors that share it."""
    reasons = {name: reason.replace(f"tensor {quoted(name)}: ", "") for name, reason in damaged.items()}
    for reason, names in _names_by_value(reasons).items():
        if len(names) == 1:
            yield f"  {quoted(names[0])}: {damaged[names[0]]}"
        else:
            yield f"  {counted(len(names), 'tensor')}, {listed(names, _NAMED)}: {reason}"


def _names_by_value(values: Mapping[str, _Value]) -> dict[_Value, list[str]]:
    """Return each value with the names that have it."""
    found: dict[_Value, list[str]] = {}
    for name, value in values.items():
        found.setdefault(value, []).append(name)
    return found


def _described(item: ConvertedTensor | SidecarTensor) -> str:
    renamed = "" if item.name == item.new_name else f" (was {quoted(item.name)})"
    return f"{quoted(item.new_name)}{renamed} {item.dtype} {shape_text(item.shape)}"
