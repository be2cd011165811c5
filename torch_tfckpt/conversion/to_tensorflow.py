"""Plan the conversion of a state_dict into TensorFlow's variables, with the inverse of the rules.

What `save_model` does with the tensors of a module is done here with the tensors of a file. Without a module, the
layouts in the rules and the names of a layer's tensors determine the conversion: a weight with a bias is a kernel, and
a weight next to a running_mean is a gamma.

Contract:

    complete        every tensor of the file has an outcome
    never a guess   a tensor that no inverted rule covers is an error, or only reported if `strict` is off; so is a
                    weight that may be a kernel or an embedding
    bytes           variables that turn_to_torch converted get the same bytes, if their dtype was kept
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_tfckpt.conversion.convert_report import TensorOutcome
from torch_tfckpt.conversion.deferred import DeferredTensor
from torch_tfckpt.conversion.deferred_source import DeferredSource, deferred_tensor, needed_by
from torch_tfckpt.conversion.parameter_order import STATISTICS
from torch_tfckpt.conversion.training_state import as_training
from torch_tfckpt.conversion.turning import COUNTER, Turned, TurnRequest
from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.foreign_files.protocols import TensorSource
from torch_tfckpt.foreign_files.sidecar_source import tensorflow_layouts
from torch_tfckpt.format.tensor_slice import Shape, shape_text
from torch_tfckpt.models.factories import factory_text
from torch_tfckpt.models.leaf_names import layer_with
from torch_tfckpt.models.rules.base_module import mapper_for
from torch_tfckpt.models.rules.inverted_rules import InvertedRules
from torch_tfckpt.models.rules.key_rules import targets_of_rule
from torch_tfckpt.models.rules.rule_set import RuleSet, rule_match, rules_of
from torch_tfckpt.models.targets import Target, targets_of
from torch_tfckpt.models.written_variables import written_variables
from torch_tfckpt.saveables.stored_keys import SHARED
from torch_tfckpt.text import counted, did_you_mean, listed, printable, quoted

_LISTED: Final = 8  # names in a message


def turn_to_tensorflow(source: TensorSource, request: TurnRequest, excluded: Sequence[str]) -> Turned:
    """Return the variables of a checkpoint.

    Args:
        excluded: Names of tensors of the file to leave out.

    Raises:
        InvalidArgumentError: a layout is unknown; a rule does not determine a name; a factory fails; the file has
            torch's names, but TensorFlow's layouts.
        FailedPreconditionError: the file does not fit the module, or tensors are matched by no rule.
        UnimplementedError: a rule cannot be inverted.
    """
    kept = sorted(tensorflow_layouts(source))
    if kept:
        raise InvalidArgumentError(
            f"{printable(source.path)}: the axes of {counted(len(kept), 'tensor')} are already in TensorFlow's order: "
            f"only the names of {listed(kept, _LISTED)} were changed. Convert without to_tf, with `to` and `rename`"
        )
    mapper: RuleSet | None
    mapper, model = request.prepared(source.path)
    omitted = {name: "left out by include and exclude" for name in excluded}
    names = _names_in(source, omitted, () if model is None else model.state_dict(keep_vars=True))
    file = {bare: deferred_tensor(source, name) for bare, name in names.items()}
    if model is None:
        assert mapper is not None, "checked with the arguments"
        targets = targets_of(_module_with(file, names, omitted))
    else:
        targets = targets_of(model)
    targets = _with_values(source, targets, file, factory_text(request.check))
    counters = [name for target in targets if target.is_counter for name in target.names]
    omitted.update((names[name], "a counter that TensorFlow does not have") for name in counters if name in names)
    targets = [target for target in targets if not target.is_counter]
    if mapper is not None:
        mapper = _limited(mapper_for(mapper, targets), {name for target in targets for name in target.names})
        if model is None:
            _check_kernels(source.path, targets, InvertedRules(mapper, targets))
    variables = written_variables(targets, "tf" if mapper is None else "torch", mapper)
    variables.pop(SHARED, None)
    values = {key: value for key, value in variables.items() if isinstance(value, torch.Tensor)}
    unmatched = _unmatched(values, names, mapper)
    for key in unmatched:
        del values[key]
    omitted.update((names[name], "no rule matches it") for name in unmatched)
    held = {name for target in targets for name in target.names} | {*counters}
    lost = [*unmatched, *(bare for bare in names if bare not in held)]
    omitted.update((names[bare], "the module does not have it") for bare in lost if bare not in unmatched)
    if lost and (request.strict or not values):
        raise FailedPreconditionError(
            f"{printable(source.path)}: {counted(len(lost), 'tensor')} of the file would be lost, because no "
            f"inverted rule gives a variable for them: {listed(lost, _LISTED)}. Write rules for them; leave them out "
            f"with `exclude`; or pass strict=False, which lists them in the report"
        )
    outcomes = list(_outcomes(source, names, values, omitted))
    return Turned(DeferredSource(source, values), outcomes)


def _names_in(source: TensorSource, omitted: dict[str, str], wanted: Collection[str]) -> dict[str, str]:
    """Map names in the state_dict to names in the file; what does not belong to the model is left out.

    A file of training state has the state_dict under a key: "model.fc.weight".

    Args:
        wanted: Names in the module's state_dict; empty if they are not known.
    """
    names = [name for name in source.names() if name not in omitted and source.info(name).type.dtype is not None]
    omitted.update((name, "not a tensor of numbers") for name in source.names() if name not in {*names, *omitted})
    parts = _parts_of_models(source, names)
    if wanted:
        parts = dict.fromkeys(["", *parts, *(f"{name.partition('.')[0]}." for name in names)])
        parts = [max(parts, key=lambda part: sum(f"{part}{name}" in names for name in wanted))]
    if len(parts) != 1:
        raise InvalidArgumentError(
            f"{printable(source.path)}: the file contains the training state of {counted(len(parts), 'model')}. Save "
            f"the state_dict of one model alone, with torch.save"
        )
    [part] = parts
    omitted.update((name, "not of the model") for name in names if not name.startswith(part))
    return {name.removeprefix(part): name for name in names if name.startswith(part)}


def _parts_of_models(source: TensorSource, names: Sequence[str]) -> Collection[str]:
    """Return the name prefix of each model in a file of training state; [""] for other files."""
    training = as_training(source)
    if training is None:
        return [""]
    keys = [key for key, role in training.roles.items() if role.startswith("a module")]
    parts = [f"{key.replace('/', '.')}." for key in keys] + ["state_dict."]  # Lightning uses "state_dict"
    return [part for part in parts if any(name.startswith(part) for name in names)]


def _module_with(file: Mapping[str, torch.Tensor], names: Mapping[str, str], omitted: dict[str, str]) -> nn.Module:
    """Return a module with the tensors of a file, in layers of the kinds that their names imply."""
    shapes: dict[str, dict[str, Shape]] = {}
    for name, tensor in file.items():
        parent, _, attribute = name.rpartition(".")
        shapes.setdefault(parent, {})[attribute] = tuple(tensor.shape)
    root = nn.Module()
    made = {"": _layer(shapes.get("", {}))} if "" in shapes else {"": root}
    for name, tensor in file.items():
        here, path = made[""], ""
        *parents, attribute = name.split(".")
        for part in parents:
            path = f"{path}.{part}" if path else part
            if path not in made:
                made[path] = _layer(shapes.get(path, {}))
                here._modules[part] = made[path]
            here = made[path]
        if attribute == COUNTER and any(each in shapes[path] for each in STATISTICS):
            omitted[names[name]] = "a counter that TensorFlow does not have"
            continue
        here._buffers[attribute] = torch.empty(tuple(tensor.shape), dtype=tensor.dtype, device="meta")
    return made[""]


def _layer(shapes: Mapping[str, Shape]) -> nn.Module:
    """Return a layer without tensors, of the kind that these names and shapes imply."""
    if any(name in shapes for name in STATISTICS):
        return layer_with(["gamma", "beta", "moving_mean", "moving_variance"])
    weight = shapes.get("weight")
    if weight is None:
        return nn.Module()
    return layer_with(["gamma", "beta"] if len(weight) < 2 else ["kernel", "bias"])


def _with_values(
    source: TensorSource, targets: Sequence[Target], file: Mapping[str, torch.Tensor], factory: str
) -> list[Target]:
    """Return the targets with the tensors of the file instead of the module's."""
    found: list[Target] = []
    missing: list[str] = []
    misfits: list[str] = []
    for target in targets:
        value = next((file[name] for name in target.names if name in file), None)
        if value is None:
            missing += [] if target.is_counter else target.names[:1]
            continue
        if not is_lazy(target.tensor) and value.shape != target.tensor.shape:
            shapes = f"{shape_text(tuple(value.shape))}, not {shape_text(tuple(target.tensor.shape))}"
            misfits.append(f"{quoted(target.name)} is {shapes}")
            continue
        found.append(replace(target, places=[replace(place, tensor=value) for place in target.places]))
    if missing or misfits:
        lines = [f"missing: {listed(missing, _LISTED)}{_hint(missing, file)}"] if missing else []
        lines += misfits[:_LISTED]
        raise FailedPreconditionError(
            f"{printable(source.path)}: the file does not fit {factory}:\n  " + "\n  ".join(lines) + "\n"
            "Nothing was written. Pass the factory of the module whose state_dict the file contains"
        )
    return found


def _hint(missing: Sequence[str], file: Mapping[str, torch.Tensor]) -> str:
    hint = did_you_mean(missing[0], file)
    return f". {hint}" if hint else ""


def _limited(mapper: RuleSet, names: set[str]) -> RuleSet:
    """Return the rules without those for single tensors that the file lacks, such as a different head."""
    rules = [rule for rule in rules_of(mapper) if all(name in names for name in targets_of_rule(rule))]
    return RuleSet("the rules", rules)


def _check_kernels(path: str, targets: Sequence[Target], rules: InvertedRules) -> None:
    """Raise InvalidArgumentError if a rule for modules leaves the layout or kind of a weight open."""
    names = {target.name for target in targets}
    for target in targets:
        place = target.places[0]
        found = rules.below_module(f"{place.parent}kernel")
        if place.attribute != "weight" or target.tensor.dim() < 2 or found is None:
            continue
        if rules.of(target, target.name) is not None:  # a rule for the tensor itself
            continue
        shown = f"{printable(path)}: {quoted(target.name)} {shape_text(tuple(target.tensor.shape))}"
        if found[1] is None:
            raise InvalidArgumentError(
                f"{shown}: the rule for its module has no layout, and the name does not imply one. Add a layout, "
                f'such as layout = "dense", or pass check=pkg.mod:factory'
            )
        if f"{place.parent}bias" not in names and target.tensor.dim() == 2:
            raise InvalidArgumentError(
                f"{shown}: without a bias next to it, this may be a kernel or an embedding. Write a rule for it, "
                f"before the one for its module, or pass check=pkg.mod:factory"
            )


def _unmatched(values: Mapping[str, torch.Tensor], names: Mapping[str, str], mapper: RuleSet | None) -> list[str]:
    """Return the variables that have kept torch's name because no rule names them."""
    if mapper is None:
        return []
    same = [key for key, value in values.items() if key in names and needed_by(value) == [names[key]]]
    return [key for key in same if rule_match(mapper, (key,), None) is None]


def _outcomes(
    source: TensorSource, names: Mapping[str, str], values: Mapping[str, torch.Tensor], omitted: Mapping[str, str]
) -> Iterator[TensorOutcome]:
    used: dict[str, list[tuple[str, DeferredTensor]]] = {}
    for key, value in values.items():
        if isinstance(value, DeferredTensor):
            for name in value.names:
                used.setdefault(name, []).append((key, value))
    for name in source.names():
        shape = source.info(name).shape
        for key, value in used.get(name, ()):
            yield TensorOutcome(name, key, ", ".join(value.steps) or "same", shape, tuple(value.shape))
        if name not in used:
            yield TensorOutcome(
                name, None, "", shape, (), omitted.get(name, "another name of a tensor that is written")
            )
