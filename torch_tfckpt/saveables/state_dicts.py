"""Modules that are restored by load_state_dict, because their hooks or overridden methods must see the values.

Contract:

    who      the outermost modules that override load_state_dict or _load_from_state_dict, or have hooks for
             load_state_dict, with all their submodules. Also modules whose state_dict contains values that are not
             their tensors, such as copies. BatchNorm, lazy modules and the wrappers of activation checkpointing are
             filled directly: what torch does for them is done here
    gets     what is stored below the module's name, even tensors that the module does not have now or has with a
             different shape
    versions torch passes the `_version` of each class in the metadata of a state_dict. Savers store the versions of
             such modules in "<key>/.versions", unless the version is 1 or the class is torch's own. If no version is
             stored, the current version is assumed; if names or shapes then do not fit, the values are passed without a
             version, as torch does for a state_dict without metadata
    failure  if a hook raises, or names are missing, all tensors, attributes and extra state of the module are restored
             from copies that were made before. Changes that a hook makes elsewhere are not undone
"""

import copy
import inspect
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from torch_tfckpt.checkpoint_reader import CheckpointReader
from torch_tfckpt.distributed.shards import any_dtensors, is_dtensor
from torch_tfckpt.dtypes import ELEMENTS
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.tensor_slice import Shape
from torch_tfckpt.saveables.load_report import Conversion, LoadReport
from torch_tfckpt.saveables.save_spec import SaveableObject, SaveSpec
from torch_tfckpt.saveables.spread_state import spread
from torch_tfckpt.saveables.state_tree import unflatten
from torch_tfckpt.saveables.stateful import stored_state
from torch_tfckpt.text import escaped, listed, quoted
from torch_tfckpt.values import Value

VERSIONS: Final = ".versions"
_LISTED: Final = 8  # maximum number of names in a message
_NORM: Final = nn.modules.batchnorm._NormBase
_PLAIN_METHODS: Final = frozenset(
    (nn.Module._load_from_state_dict, _NORM._load_from_state_dict, nn.InstanceNorm1d._load_from_state_dict)
)
_LOAD_STATE_DICT: Final = nn.Module.load_state_dict
_PLAIN_HOOKS: Final = frozenset(
    (
        "torch.nn.modules.lazy.LazyModuleMixin._lazy_load_hook",
        "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper._pre_load_state_dict_hook",
        # FSDP2's; its counterpart for state_dict(), which is called for every restore, does the same: it makes the
        # parameters those of this rank. Newer and older names of the class.
        "torch.distributed.fsdp._fully_shard._fsdp_param_group.FSDPParamGroup._register_state_dict_hooks.<locals>"
        ".to_sharded_hook",
        "torch.distributed._composable.fsdp._fsdp_param_group.FSDPParamGroup._register_state_dict_hooks.<locals>"
        ".to_sharded_hook",
        # Looks whether load_state_dict has replaced a parameter.
        "torch.distributed.fsdp._fully_shard._fsdp_param.FSDPParam.__init__.<locals>.<lambda>",
        "torch.distributed._composable.fsdp._fsdp_param.FSDPParam.__init__.<locals>.<lambda>",
    )
)

_log = logging.getLogger(__name__)


def loads_state_dict(module: nn.Module) -> bool:
    """Return whether a hook or a method of this module itself, not of submodules, must see what is loaded."""
    kind, own = type(module), module.__dict__
    if kind._load_from_state_dict not in _PLAIN_METHODS or kind.load_state_dict is not _LOAD_STATE_DICT:
        return not isinstance(module, torch.jit.ScriptModule)
    if "_load_from_state_dict" in own or "load_state_dict" in own:
        return True
    hooks = [*own["_load_state_dict_pre_hooks"].values(), *own["_load_state_dict_post_hooks"].values()]
    return not all(map(_is_plain, hooks))


def _is_plain(hook: Any) -> bool:
    function = getattr(hook, "hook", hook)
    function = getattr(function, "__func__", function)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    return name in _PLAIN_HOOKS


def changes_state_dict(module: nn.Module) -> bool:
    """Return whether a hook or a method of this module itself may change its entries in a state_dict."""
    kind = type(module)
    return bool(
        module._state_dict_hooks
        or kind._save_to_state_dict is not nn.Module._save_to_state_dict
        or kind.state_dict is not nn.Module.state_dict
        or "state_dict" in vars(module)
    )


def outermost(
    module: nn.Module, wanted: Callable[[nn.Module], bool], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Yield (prefix, module) for the outermost wanted modules; a prefix is "" or "fc."."""
    seen: set[nn.Module] = set()
    waiting = [("", module)]
    while waiting:
        here, each = waiting.pop()
        if each in seen:
            continue
        seen.add(each)
        if wanted(each):
            yield here, each
        elif each._modules:
            children = [(f"{here}{name}.", child) for name, child in each._modules.items() if child is not None]
            waiting += reversed(children)  # in the order of load_state_dict


def is_version_kept(module: nn.Module) -> bool:
    """Return whether a Saver stores this module's version if load_state_dict restores the module."""
    return not is_class_of_torch(module) and module._version not in (None, 1)


def class_of(module: nn.Module) -> type:
    """Return a module's class; for fully_shard's class of a module, the class that it was before."""
    return next(kind for kind in type(module).__mro__ if not kind.__module__.startswith("torch.distributed."))


def is_class_of_torch(module: nn.Module) -> bool:
    """Return whether a module's class is torch's own."""
    return class_of(module).__module__.startswith("torch.")


class Backup:
    """Copy of a module's current tensors, attributes and extra state, to restore them later.

    Cost: a copy of all tensors.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = [
            (each, dict(vars(each)), [dict(of) for of in (each._parameters, each._buffers, each._modules)])
            for each in module.modules()
        ]
        tensors: dict[int, torch.Tensor] = {}
        for _, attributes, registered in self._modules:
            for of in (attributes, *registered):
                tensors.update((id(value), value) for value in of.values() if isinstance(value, torch.Tensor))
        self._tensors = [
            (tensor, type(tensor), None if is_lazy(tensor) else tensor.detach().clone()) for tensor in tensors.values()
        ]
        self._extra = [
            (each, copy.deepcopy(each.get_extra_state()))
            for each in module.modules()
            if type(each).get_extra_state is not nn.Module.get_extra_state
        ]

    def restore(self) -> None:
        """Restore everything."""
        for module, attributes, registered in self._modules:
            vars(module).clear()
            vars(module).update(attributes)
            own: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module._modules)
            for of, before in zip(own, registered, strict=True):
                of.clear()
                of.update(before)
        for tensor, kind, values in self._tensors:
            with torch.inference_mode() if tensor.is_inference() else torch.no_grad():
                if values is None:
                    if not is_lazy(tensor):  # it was lazy
                        tensor.data = tensor.data.new_empty(0)
                        tensor.__class__ = kind
                elif (tensor.shape, tensor.dtype, tensor.device) == (values.shape, values.dtype, values.device):
                    tensor.copy_(values)
                else:
                    tensor.data = values
        for module, extra in self._extra:
            module.set_extra_state(extra)


class StateDictSaveable(SaveableObject):
    """Restores a module by its load_state_dict. `undo` reverts the restore.

    Args:
        name: Name of the module, for messages.
        module: The module.
        tensors: Name in the state_dict of the module -> key.
        states: Name in the state_dict -> key of an encoded value that is not a tensor, such as extra state.
        reader: The checkpoint.
        versions: Prefix of a module in the state_dict, without the last dot -> its stored version.
        wanted: Name of each entry that the state_dict has now -> its key, which may or may not be stored.
        optional: Entries that a checkpoint may lack.
        strict: Raise an error if an entry remains missing.
        report: Receives what is missing, unexpected and converted.

    Raises:
        NotFoundError, DataLossError, InvalidArgumentError: an encoded value is damaged.
    """

    def __init__(
        self,
        name: str,
        module: nn.Module,
        *,
        tensors: Mapping[str, str],
        states: Mapping[str, str],
        reader: CheckpointReader,
        versions: Mapping[str, int],
        wanted: Mapping[str, str],
        optional: frozenset[str],
        strict: bool,
        report: LoadReport,
    ) -> None:
        self.module, self._tensors, self._states = module, dict(tensors), dict(states)
        self._versions, self._wanted, self._optional = versions, wanted, optional
        self._strict, self._report, self._place = strict, report, reader.path
        self._state_tensors = {key: list(stored_state(key, reader)[0]) for key in states.values()}
        keys = dict.fromkeys([*tensors.values(), *states.values()])
        keys.update((each, None) for of in self._state_tensors.values() for each in of)
        self._dtypes = {key: reader.dtype(key) for key in keys}
        self._stored_shapes = {(key, reader.shape(key)) for key in keys}
        self._backup: Backup | None = None
        self.missing: list[str] = []  # entries that were not restored
        here = module.state_dict(keep_vars=True) if any_dtensors() else {}
        spread_as = {key: here[name] for name, key in tensors.items() if is_dtensor(here.get(name))}
        specs = [SaveSpec(spread_as.get(key), "", key, dtype, "") for key, dtype in self._dtypes.items()]
        super().__init__(None, specs, name)

    @property
    def keys(self) -> Iterator[str]:
        """The keys that a restore reads."""
        return (spec.name for spec in self.specs)

    def restore(self, restored_tensors: Sequence[Value], restored_shapes: Sequence[Shape] | None) -> None:
        """Call load_state_dict. The saver's `reshape` does not apply: the module decides which shapes fit.

        Raises:
            NotFoundError: entries remain missing. InvalidArgumentError: load_state_dict reports errors. Any error of a
                hook. In all cases the module is as it was before.
        """
        state = self._state_dict(dict(zip(self._dtypes, restored_tensors, strict=True)))
        present = self.module.state_dict(keep_vars=True)
        self._backup = Backup(self.module)
        try:
            missing, unexpected = self._load(state, getattr(present, "_metadata", {}))
        except BaseException as error:
            self.undo()
            error.add_note(
                f"Raised while load_state_dict was loading {type(self.module).__name__} {quoted(self.name)} of "
                f"{self._place} and calling its hooks. The module has been restored to its previous state"
            )
            raise
        self.missing = missing
        self._report.missing.extend(self._wanted[name] for name in missing)
        self._report.unexpected.extend(self._key_of(name) for name in unexpected)
        self._report_conversions()

    def undo(self) -> None:
        """Return the module to its state before `restore`."""
        if self._backup is not None:
            self._backup.restore()
        self._backup = None

    def finish(self) -> None:
        """Free the copies."""
        self._backup = None

    def _key_of(self, name: str) -> str:
        return self._tensors.get(name) or self._states.get(name) or f"{self.name}: {name}"

    def _state_dict(self, values: Mapping[str, Value]) -> "OrderedDict[str, Any]":
        state: OrderedDict[str, Any] = OrderedDict()
        here = self.module.state_dict(keep_vars=True)
        devices = {each.device for each in here.values() if isinstance(each, torch.Tensor)}
        common = devices.pop() if len(devices) == 1 else None
        seen: set[str] = set()
        for name, key in self._tensors.items():
            value = values[key]
            if not isinstance(value, torch.Tensor):
                continue
            own = here.get(name)
            if is_dtensor(own) and (key, tuple(own.shape)) in self._stored_shapes:
                state[name] = spread(own, name, value.clone() if key in seen else value)
                seen.add(key)
                continue
            device = own.device if isinstance(own, torch.Tensor) else common
            moved = value if device is None or device.type == "meta" else value.to(device)
            # A module may keep what it gets, so no two entries share memory.
            state[name] = moved.clone() if key in seen and moved is value else moved
            seen.add(key)
        for name, key in self._states.items():
            text = values[key]
            tensors = {each: value for each in self._state_tensors[key] if torch.is_tensor(value := values[each])}
            assert isinstance(text, np.ndarray), "its dtype was checked"
            state[name] = unflatten(text.item(), tensors)
        return state

    def _load(self, state: "OrderedDict[str, Any]", metadata: Mapping[str, Any]) -> tuple[list[str], list[str]]:
        """Load; retry without unknown versions if necessary. Return missing and unexpected names."""
        guessed = self._guessed_versions()
        missing, unexpected, problem = self._attempt(state, self._with_versions(state, metadata, frozenset()))
        if problem is not None and self._strict and guessed:
            self.undo()
            self._backup = Backup(self.module)
            missing, unexpected, other = self._attempt(state, self._with_versions(state, metadata, guessed))
            problem = None if other is None else problem
        elif problem is None and guessed:
            _log.info(
                "%s: the versions of these parts of %s are not stored, so the current versions are assumed: %s",
                self._place,
                quoted(self.name),
                listed(sorted(guessed), _LISTED),
            )
        if problem is not None and self._strict:
            raise problem
        if isinstance(problem, InvalidArgumentError):
            self._report.remarks.append(str(problem))
        return missing, unexpected

    def _attempt(
        self, state: "OrderedDict[str, Any]", metadata: Mapping[str, Any]
    ) -> tuple[list[str], list[str], CheckpointError | None]:
        """Call load_state_dict. Return missing and unexpected names, and the error for what does not fit."""
        missing, unexpected, problem = load_what_fits(self.module, state, metadata)
        if problem:
            return [], [], InvalidArgumentError(f"{self._place}: {quoted(self.name)}: {problem}")
        lacking = [name for name in missing if name in self._wanted and name not in self._optional]
        return lacking, unexpected, self._missing_error(lacking) if lacking else None

    def _guessed_versions(self) -> frozenset[str]:
        """Return the paths of modules whose stored version matters but is unknown."""
        return frozenset(
            path
            for path, each in self.module.named_modules(remove_duplicate=False)
            if is_version_kept(each) and path not in self._versions
        )

    def _with_versions(
        self, state: Mapping[str, Any], metadata: Mapping[str, Any], without: frozenset[str]
    ) -> "OrderedDict[str, dict[str, Any]]":
        """Return metadata with the stored versions, else the current ones; no versions for `without`."""
        found: OrderedDict[str, dict[str, Any]] = OrderedDict()
        for path, each in self.module.named_modules(remove_duplicate=False):
            entry = dict(metadata.get(path, {}), version=self._versions.get(path, each._version))
            counter = f"{path}.num_batches_tracked" if path else "num_batches_tracked"
            if path in without or (isinstance(each, _NORM) and counter not in state):
                del entry["version"]
            found[path] = entry
        return found

    def _missing_error(self, missing: Sequence[str]) -> NotFoundError:
        keys = [self._wanted[name] for name in missing]
        more = f" Also missing: {listed(keys[1:], _LISTED)}." if keys[1:] else ""
        return NotFoundError(f"Key {escaped(keys[0])} not found in checkpoint: {self._place}.{more}")

    def _report_conversions(self) -> None:
        now = self.module.state_dict(keep_vars=True)
        for name, key in self._tensors.items():
            own, element = now.get(name), ELEMENTS.get(self._dtypes[key])
            self._report.sources[self._wanted.get(name, key)] = key
            if isinstance(own, torch.Tensor) and element is not None and element.torch not in (own.dtype, None):
                found = Conversion(self._wanted.get(name, key), key, "same", self._dtypes[key], own.dtype)
                self._report.converted.append(found)
                _log.warning("%s: load_state_dict converted %s", self._place, found)
        self._report.sources.update((self._wanted.get(name, key), key) for name, key in self._states.items())


def load_what_fits(
    module: nn.Module, state: Mapping[str, Any], metadata: Mapping[str, Any], *, assign: bool = False
) -> tuple[list[str], list[str], str]:
    """Call load_state_dict(strict=False). Return missing and unexpected names, and torch's error or "".

    Errors of hooks are raised.
    """
    copied = OrderedDict(state)
    copied._metadata = metadata  # type: ignore[attr-defined]
    wanted = {"strict": False, "assign": True} if assign else {"strict": False}
    parameters = inspect.signature(module.load_state_dict).parameters
    takes_all = any(each.kind == each.VAR_KEYWORD for each in parameters.values())
    keywords = {name: value for name, value in wanted.items() if takes_all or name in parameters}
    try:
        result: Any = module.load_state_dict(copied, **keywords)
    except RuntimeError as error:
        if type(error) is not RuntimeError or not str(error).startswith("Error(s) in loading state_dict"):
            raise
        return [], [], str(error)
    missing, unexpected = result if isinstance(result, tuple) and len(result) == 2 else ((), ())
    return list(dict.fromkeys(missing)), list(dict.fromkeys(unexpected)), ""
