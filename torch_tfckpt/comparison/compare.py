"""compare_model: a torch module and an imported graph on the same inputs.

    report = compare_model(model, imported, inputs=["x:0"], outputs=["logits:0"])
    report.ok, report.outputs["logits:0"], report.first_difference

Contract:

    never a wrong proof   layouts that cannot be known are asked for; a graph that computes random numbers is refused
    unchanged             the module's weights, modes and hooks are as before
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import nn

from torch_tfckpt.comparison.arrangements import channels_first, error_of, is_uniform
from torch_tfckpt.comparison.graph_tensors import ComputedTensors
from torch_tfckpt.comparison.module_calls import RecordedRun, evaluating
from torch_tfckpt.comparison.parting import first_difference, is_in_graph
from torch_tfckpt.comparison.report import ModelComparison
from torch_tfckpt.comparison.samples import Sample, check_names, random_samples
from torch_tfckpt.comparison.sides import Axes, GraphSide, ModuleSide, permuted
from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.format.tensor_slice import shape_text
from torch_tfckpt.graph_run.feeds import fed_value
from torch_tfckpt.imported_graph.imported import ImportedMetaGraph
from torch_tfckpt.imported_graph.running import signature_of
from torch_tfckpt.meta_graph.scopes import prepend_name_scope
from torch_tfckpt.text import listed, quoted, shortened
from torch_tfckpt.values import outside_modes

_MAX_IMAGES: Final = 4  # inputs whose layout is found by trying both
Names = str | Sequence[str] | Mapping[str, Any]


@outside_modes
def compare_model(
    module: nn.Module,
    imported: ImportedMetaGraph,
    *,
    inputs: Names,
    outputs: Names,
    samples: int | Sequence[Mapping[str, Any]] = 4,
    axes: Mapping[str, Sequence[int]] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    constants: Mapping[str, Any] | None = None,
    signature: str | None = None,
    inference: bool = False,
    tolerance: float = 1e-5,
    seed: int = 0,
) -> ModelComparison:
    """Run a module and a graph on the same inputs, and find where they differ.

    Args:
        module: The converted module. It runs in evaluation mode; its modes are restored.
        imported: The graph, with its variables restored.
        inputs: Tensors of the graph, in the order of the module's arguments; or name -> position or name of the
            argument.
        outputs: Tensors of the graph, in the order of what the module returns; or name -> index, key or attribute of
            what it returns, None for all of it.
        samples: How many random samples; or samples as dictionaries, name of an input -> array in the graph's layout.
        axes: Name of an input or output -> how the graph's axes are permuted to the module's, such as (0, 3, 1, 2) from
            TensorFlow's layout of images to torch's. By default, the module is tried with both layouts.
        shapes: Name of an input -> its shape in the graph. Needed where the graph does not have it; an unknown first
            size becomes 2.
        ranges: Name of an input -> the smallest number, and the number that all are below. Needed for integers.
        constants: Name of a tensor -> a value that is fed in all samples, such as {"keep_prob:0": 1.0}.
        signature: A signature of the graph; all names are then those of its inputs and outputs.
        inference: Turn off dropout and statistics of the batch in the graph, as `ImportedMetaGraph.module` does.
        tolerance: The largest error of equal outputs, relative to the largest value of the output.
        seed: Of the random samples.

    Raises:
        InvalidArgumentError (a ValueError): there is no such tensor; a shape, a range or axes are needed; the module
            does not take or return what is named; the graph or the module computes random numbers.
        FailedPreconditionError, UnimplementedError: as `ImportedMetaGraph.run`.

    Cost: each sample once through both, the first one twice or more. If outputs differ: memory for all intermediate
    results of one sample, and a run of the module for each tensor that is tried in place of a layer's output.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> graph = tfckpt.GraphDef()
        >>> node = graph.node.add(name="x", op="Placeholder")
        >>> node.attr["dtype"].type = tfckpt.DataType.DT_FLOAT
        >>> node = graph.node.add(name="y", op="Tanh", input=["x"])
        >>> imported = tfckpt.import_graph_def(graph)
        >>> where = {"inputs": ["x:0"], "outputs": ["y:0"], "shapes": {"x:0": (2, 3)}}
        >>> report = tfckpt.compare_model(torch.nn.Tanh(), imported, **where)
        >>> print(report)
        "y:0": equal, largest error 0 of the largest value
        equal within 1e-05: 1 output, 4 samples
    """
    into, out = _arguments(inputs), _results(outputs)
    known = {name: tuple(each) for name, each in (axes or {}).items()}
    check_names("axes", known, [*into, *out])
    for name, order in known.items():
        if sorted(order) != list(range(len(order))):
            raise InvalidArgumentError(f"axes: {quoted(name)} needs each axis once, as in (0, 3, 1, 2), got {order!r}")
    check_names("shapes", shapes or {}, list(into))
    check_names("ranges", ranges or {}, list(into))
    tensors = (
        {name: name for name in (*into, *out)} if signature is None else _signature(imported, signature, into, out)
    )
    graph = GraphSide(imported, tensors, list(into), list(out), dict(constants or {}), inference)
    if isinstance(samples, int):
        by_tensor = {tensors[name]: shape for name, shape in (shapes or {}).items()}
        limits = {tensors[name]: each for name, each in (ranges or {}).items()}
        found = random_samples(imported, [tensors[name] for name in into], samples, seed, by_tensor, limits)
        given: list[Sample] = [{name: sample[tensors[name]] for name in into} for sample in found]
    else:
        given = [_sample(sample, into) for sample in samples]
        if not given:
            raise InvalidArgumentError("samples is empty")
    with evaluating(module):
        return _Comparison(ModuleSide(module, into, out), graph, given, known, tolerance).report()


@dataclass(frozen=True)
class _Trial:
    """The module with one choice of layouts."""

    axes: Mapping[str, Axes]
    run: RecordedRun
    errors: Mapping[str, float]
    fits: bool  # the shapes of all outputs


class _Comparison:
    def __init__(
        self,
        module: ModuleSide,
        graph: GraphSide,
        samples: Sequence[Sample],
        axes: Mapping[str, Axes],
        tolerance: float,
    ) -> None:
        self._module, self._graph, self._samples = module, graph, samples
        self._axes, self._tolerance = axes, tolerance

    def report(self) -> ModelComparison:
        references = [self._graph.run(sample) for sample in self._samples]
        again = self._graph.run(self._samples[0])
        for name, value in again.items():
            if error_of(value, references[0][name]) > self._tolerance:
                raise InvalidArgumentError(
                    f"the graph computes {quoted(name)} with random numbers, such as those of dropout: runs differ. "
                    f'Turn them off: constants={{"keep_prob:0": 1.0}}, or name a tensor that does not depend on them'
                )
        chosen = self._chosen_layout(self._samples[0], references[0])
        trials = [chosen]
        for sample, reference in zip(self._samples[1:], references[1:], strict=True):
            trials.append(self._trial(sample, reference, chosen.axes))
        repeated = self._trial(self._samples[0], references[0], chosen.axes)
        for name, error in repeated.errors.items():
            if abs(error - chosen.errors[name]) > self._tolerance:
                raise InvalidArgumentError(f"the module computes the output for {quoted(name)} with random numbers")
        errors = {name: max(trial.errors[name] for trial in trials) for name in self._graph.outputs}
        remarks = self._remarks(references, trials)
        result = ModelComparison(errors, None, "", len(trials), self._tolerance, tuple(remarks))
        if result.ok:
            return result
        worst = max(range(len(trials)), key=lambda number: max(trials[number].errors.values()))
        graph = self._graph.computed(self._samples[worst], self._tolerance)
        layer, text = self._parting(self._samples[worst], references[worst], chosen.axes, graph)
        return replace(result, first_difference=layer, explanation=text)

    def _parting(
        self,
        sample: Sample,
        reference: Mapping[str, torch.Tensor],
        axes: Mapping[str, Axes],
        graph: ComputedTensors,
    ) -> tuple[str | None, str]:
        def is_equal(returned: Any) -> bool:
            return max(self._errors(returned, reference)[0].values()) <= self._tolerance

        return first_difference(
            self._module.run(sample, axes),
            graph,
            lambda replacement: self._module.run(sample, axes, replacement=replacement),
            is_equal,
        )

    def _chosen_layout(self, sample: Sample, reference: Mapping[str, torch.Tensor]) -> _Trial:
        """Run the module with each possible layout of its inputs, and return the run with the right one."""
        unknown = [
            name
            for name, value in sample.items()
            if name not in self._axes and value.dim() >= 3 and value.is_floating_point()
        ]
        if len(unknown) > _MAX_IMAGES:
            raise InvalidArgumentError(f"give axes for {listed(unknown, _MAX_IMAGES)}: too many layouts are possible")
        trials = []
        for turned in itertools.product((False, True), repeat=len(unknown)):
            chosen = {
                name: channels_first(sample[name].dim()) for name, turn in zip(unknown, turned, strict=True) if turn
            }
            trial = self._trial(sample, reference, {**self._axes, **chosen})
            if max(trial.errors.values()) <= self._tolerance:
                return trial
            trials.append(trial)
        possible = [each for each in trials if each.fits] or [each for each in trials if each.run.error is None]
        if not possible:
            longest = max(len(each.run.calls) for each in trials)
            possible = [each for each in trials if len(each.run.calls) == longest]
        if len(possible) == 1 and (possible[0].run.error is None or possible[0].run.calls):
            return possible[0]
        nearest = self._nearest(sample, reference, possible)
        if nearest is not None:
            return nearest
        if all(each.run.error is not None for each in trials):
            error = trials[0].run.error
            raise InvalidArgumentError(
                f"the module fails before its first layer returns: {type(error).__name__}: {error}. Check inputs, "
                f"shapes and axes"
            ) from error
        if not any(each.fits for each in trials):
            return possible[0]  # the shape of an output differs in any layout
        raise InvalidArgumentError(
            f"the layout of {listed(unknown, _MAX_IMAGES)} in the module is not known: it runs with TensorFlow's and "
            f"with torch's, and neither gives the graph's outputs. Give axes, such as "
            f'{{"{unknown[0]}": {channels_first(sample[unknown[0]].dim())}}}, or (0, 1, 2, ...) for TensorFlow\'s'
        )

    def _nearest(
        self, sample: Sample, reference: Mapping[str, torch.Tensor], trials: Sequence[_Trial]
    ) -> _Trial | None:
        """Return the layout in which a layer with weights computes a tensor of the graph; None if it cannot be told.

        If there is no such layer, but the same layer is the first wrong one in every layout in which one is found, the
        layout does not matter.
        """
        graph = self._graph.computed(sample, self._tolerance)
        found = [
            each
            for each in trials
            if any(call.has_weights and is_in_graph(call, graph) for call in self._module.run(sample, each.axes).calls)
        ]
        if len(found) == 1:
            return found[0]
        named: dict[str, _Trial] = {}
        for each in trials:
            name = self._parting(sample, reference, each.axes, graph)[0]
            if name is not None:
                named.setdefault(name, each)
        return next(iter(named.values())) if len(named) == 1 else None

    def _trial(self, sample: Sample, reference: Mapping[str, torch.Tensor], axes: Mapping[str, Axes]) -> _Trial:
        run = self._module.run(sample, axes, keep=False)
        if run.error is not None:
            return _Trial(axes, run, dict.fromkeys(self._graph.outputs, float("inf")), False)
        return _Trial(axes, run, *self._errors(run.outputs, reference))

    def _errors(self, returned: Any, reference: Mapping[str, torch.Tensor]) -> tuple[dict[str, float], bool]:
        errors, fits = {}, True
        for name, value in self._module.tensors(returned).items():
            expected = reference[name]
            if name in self._axes:
                choices = [permuted(expected, name, self._axes[name])]
            else:
                turned = [expected.permute(channels_first(expected.dim()))] if expected.dim() >= 3 else []
                choices = [expected, *turned]
            fits = fits and any(value.shape == each.shape for each in choices)
            errors[name] = min(error_of(value, each) for each in choices)
        return errors, fits

    def _remarks(self, references: Sequence[Mapping[str, torch.Tensor]], trials: Sequence[_Trial]) -> Iterable[str]:
        for name in self._graph.outputs:
            values = [reference[name] for reference in references]
            is_same = all(torch.equal(value, values[0]) for value in values[1:])
            if (values[0].numel() > 1 and all(map(is_uniform, values))) or (len(values) > 1 and is_same):
                yield f"{quoted(name)} is the same for all inputs: this proves little. Give other samples or ranges"
        failed = next((trial.run.error for trial in trials if trial.run.error is not None), None)
        if failed is not None:
            yield f"the module failed: {type(failed).__name__}: {failed}"
            return
        for name, value in self._module.tensors(trials[0].run.outputs).items():
            expected = references[0][name]
            if sorted(value.shape) != sorted(expected.shape):
                yield (
                    f"{quoted(name)} has the shape {shape_text(tuple(expected.shape))} in the graph, and "
                    f"{shape_text(tuple(value.shape))} in the module"
                )


def _arguments(inputs: Names) -> dict[str, int | str]:
    if isinstance(inputs, str):
        inputs = [inputs]
    if not isinstance(inputs, Mapping):
        return {name: position for position, name in enumerate(inputs)}
    for name, argument in inputs.items():
        if isinstance(argument, bool) or not isinstance(argument, int | str):
            raise InvalidArgumentError(
                f"inputs: {quoted(name)} needs the position or the name of an argument, got {shortened(argument)}"
            )
    return dict(inputs)


def _results(outputs: Names) -> dict[str, Any]:
    if isinstance(outputs, str):
        outputs = [outputs]
    if isinstance(outputs, Mapping):
        found = dict(outputs)
    else:
        found = {name: position if len(outputs) > 1 else None for position, name in enumerate(outputs)}
    if not found:
        raise InvalidArgumentError("outputs is empty: name the tensors to compare")
    return found


def _signature(
    imported: ImportedMetaGraph, signature: str, inputs: Iterable[str], outputs: Iterable[str]
) -> dict[str, str]:
    """Return the tensor of each input and output of a signature."""
    found = signature_of(imported.signatures, signature)
    tensors = {}
    for names, known in ((inputs, found.inputs), (outputs, found.outputs)):
        for name in names:
            if name not in known:
                raise InvalidArgumentError(
                    f"signature {quoted(signature)} has no {quoted(name)}. It has {listed(sorted(known), 10)}"
                )
            tensors[name] = prepend_name_scope(known[name].name, imported.import_scope)
    return tensors


def _sample(sample: Mapping[str, Any], inputs: Mapping[str, Any]) -> Sample:
    if not isinstance(sample, Mapping) or set(sample) != set(inputs):
        raise InvalidArgumentError(f"each sample needs values for {listed(list(inputs), 10)}, and for nothing else")
    found = {}
    for name, value in sample.items():
        with error_context(f"sample {quoted(name)}"):
            tensor = fed_value(value, None, None)
            if not isinstance(tensor, torch.Tensor):
                raise InvalidArgumentError("modules do not take strings. Name a tensor that is computed from them")
        found[name] = tensor
    return found
