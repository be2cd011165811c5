"""save_model: save a torch module as a checkpoint, the inverse of load_model.

save_model(model, "model/net")                   # fc1.weight, as Saver(model) saves and restores
save_model(model, "model/net", naming="tf")      # fc1/kernel, [in, out]
save_model(model, "model/net", extra={"global_step": 7})
save_model(model, "model/net", naming="tf", optimizer=optimizer)     # fc1/kernel/Adam
save_model(model, "model/net", naming="keras")  # objects, for tf.train.Checkpoint(model=keras_model).restore
save_model(model, "net.weights.h5", like="net.keras")           # for keras_model.load_weights
"""

from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError, error_context
from torch_tfckpt.foreign_files.keras_weights import ENDING, is_weights_name
from torch_tfckpt.format.file_kind import refuse_other_ending
from torch_tfckpt.models.auxiliary.written_slots import written_slots
from torch_tfckpt.models.extra_values import extra_values
from torch_tfckpt.models.keras_saving import save_for_keras
from torch_tfckpt.models.rules.key_mapper import KeyMapper, Rules, as_key_mapper
from torch_tfckpt.models.targets import Target, targets_of
from torch_tfckpt.models.written_variables import written_names, written_variables
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec, specs_of
from torch_tfckpt.saveables.var_list import VarList
from torch_tfckpt.saver.saver import Saver
from torch_tfckpt.storage.names import AnyPath, fspath
from torch_tfckpt.tensor_dict import save_file
from torch_tfckpt.values import outside_modes

_NAMINGS: Final = ("torch", "tf", "keras")


@outside_modes
def save_model(
    model: nn.Module,
    prefix: AnyPath,
    *,
    naming: str = "torch",
    mapper: KeyMapper | Rules | None = None,
    extra: Mapping[str, object] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    like: AnyPath | None = None,
) -> str:
    """Save the parameters and persistent buffers of a module as a checkpoint, or as weights for Keras.

    Args:
        model: Module to save.
        prefix: `prefix.index` and `prefix.data-00000-of-00001` are written. Missing directories are created. A prefix
            with the extension of another format (.safetensors, .pt, .h5 ...) is refused, except .weights.h5 with
            `like`: then this file is written, with h5py, for keras_model.load_weights().
        naming: "torch": the names of the state_dict, unchanged. "tf": "fc1/kernel" for "fc1.weight", in TensorFlow's
            layouts, for the modules that load_model knows; others keep torch's names and layouts. "keras":
            an object-based checkpoint that tf.train.Checkpoint(model=keras_model).restore() restores into a Keras
            model with the same layers: by the names of attributes or, in functional and Sequential models, by their
            order (docs/keras.md), which is that of `like`, or of registration in the module.
        mapper: Names and layouts that override those of `naming`: the same rules as for load_model, as far as they
            determine the name under which a tensor is stored. With `like`: rules for loading the module from that file.
        extra: Name -> further value to store in the checkpoint. Python numbers are stored as scalars: an int as
            int64, as in {"global_step": 7}; a float as float32; a bool as bool.
            Strings and lists of strings are stored as strings; tensors and numpy values in their own dtype.
        optimizer: Optimizer over parameters of the module. Its state is stored as tf.compat.v1.train's optimizers store
            theirs: "fc1/kernel/Adam", "beta1_power", and "global_step" unless `extra` has it. This requires
            naming="tf" or a mapper. Hyperparameters are not stored.
        like: The .keras file of the Keras model that will load the weights, or another Keras 3 file of it. It gives
            the names and the order of the layers; each tensor goes to the variable that load_model would load it
            from. The module and the Keras model must agree in all variables and their shapes. A variable that the
            mapper omits (None) keeps its value in `like`.

    Returns:
        The prefix, or the file.

    Raises:
        InvalidArgumentError: `prefix` has the extension of another format; an unknown naming; two tensors with one
            name; a layout that does not fit, or that is given neither by a rule nor by the name; a preset without a
            rule for any tensor of the module; a lazy parameter; a name of `extra` that the model uses, or a value that
            cannot be stored; a module that does not agree with the Keras model of `like`; h5py is needed, but not
            installed.
        TypeError: `model` is not a Module, or `optimizer` not an Optimizer.
        UnimplementedError: a rule of the mapper that does not determine a name; a dtype that TensorFlow lacks; an
            optimizer that TensorFlow 1 lacks; with naming="keras", an optimizer, or a layer that Keras cannot have.
        IncompleteSaveError: a file operation failed; nothing was published, and an earlier checkpoint is intact.

    A tensor with several names is stored once, under the first; the others are listed in a string tensor ".shared". It
    is stored again for each name that the mapper gives, and for each different layout that TensorFlow's names imply.
    With naming="torch" and no mapper, the file is the one that Saver(model) writes, including extra state; otherwise
    extra state is omitted. load_model restores the same bits. Of the values of `extra`, it ignores strings and counters
    such as global_step; it reports the others as unexpected, unless its mapper has a rule {name: None} or strict is
    "shapes".

    Cost: one write of the bytes. The checkpoint is durable when this returns.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2))
        >>> tfckpt.save_model(model, "net.ckpt", naming="tf", extra={"global_step": 7})
        'net.ckpt'
        >>> tfckpt.list_variables("net.ckpt")
        [('0/bias', [2]), ('0/kernel', [3, 2]), ('global_step', [])]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"save_model: the model is a {type(model).__name__}. Pass a torch.nn.Module")
    if naming not in _NAMINGS:
        raise InvalidArgumentError(f"save_model: unknown naming {naming!r}. Namings: {', '.join(_NAMINGS)}")
    if optimizer is not None and not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"save_model: the optimizer is a {type(optimizer).__name__}. Pass a torch.optim.Optimizer")
    if optimizer is not None and naming == "torch" and mapper is None:
        raise InvalidArgumentError(
            'save_model: optimizer= stores TensorFlow\'s names for the state. Pass naming="tf" or a mapper; to store '
            'the state in torch\'s form, use Saver({"model": model, "optimizer": optimizer})'
        )
    to_weights = is_weights_name(fspath(prefix)) and like is not None
    if not to_weights:
        refuse_other_ending(fspath(prefix), "save_model")
    if to_weights or naming == "keras":
        return save_for_keras(model, prefix, naming, mapper, extra, optimizer, like)
    if like is not None:
        raise InvalidArgumentError(
            f'save_model: like= is for naming="keras", and for files that end in {ENDING}. Pass one of them, or omit '
            f"like="
        )
    if naming == "torch" and mapper is None:
        with error_context(f"save_model to {fspath(prefix)}"):
            var_list = model if extra is None else _with_extra(model, extra)
        saver = Saver(var_list, max_to_keep=None)
        written = saver.save(prefix, write_meta_graph=False, write_state=False)
        assert written is not None, "a saver of nothing"
        return written
    with error_context(f"save_model to {fspath(prefix)}"):
        targets = targets_of(model)
        rules = None if mapper is None else as_key_mapper(mapper)
        values = written_variables(targets, naming, rules)
        if optimizer is not None:
            slots = written_slots(targets, optimizer, naming, rules)
            values |= {key: value for key, value in slots.items() if key not in (extra or {})}
        if extra is not None:
            values |= extra_values(extra, [*values, *_names_of(targets)])
    return save_file(values, prefix)


def _with_extra(model: nn.Module, extra: Mapping[str, object]) -> dict[str, object]:
    """Return the var_list of a Saver for the module and the further values."""
    stored = [spec.name for spec in specs_of(VarList(model).to_save())]
    values = extra_values(extra, [*stored, *_names_of(targets_of(model))])
    saveables = {name: SaveableObject(None, [SaveSpec(value, "", name)], name) for name, value in values.items()}
    return {"": model, **saveables}


def _names_of(targets: list[Target]) -> Iterator[str]:
    """Yield the names by which load_model would find the tensors of a module: torch's and TensorFlow's."""
    for target in targets:
        yield from target.names
        yield from written_names(target)
