"""Training state that was saved with torch.save, under the names that a Saver uses for its objects.

    {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3, "rng": {"torch": state}}

    model/fc.weight                      a module; the parts that wrappers add ("module.") are dropped
    optimizer, optimizer/state/...       an optimizer, by the names of its parameters (see `parameter_order`)
    epoch                                a number: a tensor of int64, float64 or bool
    rng, rng/torch                       other values: JSON (see `saveables.state_tree`) and their tensors

    Saver({"model": model, "optimizer": optimizer, "epoch": torch.tensor(0), "rng": {}}).restore(prefix)

Contract:

    recognised     a dict that contains the state_dict of an optimizer, at any depth. Other files are not changed
    names          the keys of the dict become the keys of the var_list. Dicts and lists that contain the state of an
                   object are flattened, as by a Saver: {"G": {"model": ..., "opt": ...}} gives "G/model/..." and
                   "G/opt"
    Lightning      "state_dict" becomes "model"; "optimizer_states" and "lr_schedulers" become "optimizer" and
                   "scheduler", or "optimizers/0", ... if there are several
    optimizers     positions are replaced by names: those in "param_names", if all groups have this entry; otherwise
                   those of the model's parameters, in order, if exactly one assignment fits. If neither is possible,
                   the optimizer is omitted and reported
    dict of tensors   may be a module or a plain container; it is stored so that both can be restored
    skipped        None, and values that a Saver cannot store: reported
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch

from torch_tfckpt.conversion.parameter_order import MAX_STEPS, AmbiguousPositionsError, ModelTensor, match_positions
from torch_tfckpt.conversion.pickled_state import (
    PythonValues,
    has_str_keys,
    is_module,
    is_object,
    is_optimizer,
    is_scheduler,
    item_of,
    items_of,
    may_be_module,
)
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.foreign_files.pickled_leaves import describe, key_text, name_below
from torch_tfckpt.foreign_files.pickled_values import PickledDict, PickledTensor
from torch_tfckpt.foreign_files.protocols import DerivedSource, TensorSource
from torch_tfckpt.foreign_files.pt import PtSource
from torch_tfckpt.foreign_files.values import ElementType, FileValue, TensorInfo
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.format.tensor_slice import MAX_INT64, Shape, shape_text
from torch_tfckpt.saveables.optimizer_form import MODULE, by_name, properties_of
from torch_tfckpt.saveables.state_tree import flatten
from torch_tfckpt.saveables.stored_keys import SHARED
from torch_tfckpt.saveables.wrappers import without_wrappers
from torch_tfckpt.text import counted, listed, printable, quoted
from torch_tfckpt.values import strings_from

_LISTED: Final = 5
# Optimizers times names in models: every optimizer is compared with every name, and a small file may refer to the same
# optimizer or model many times.
_MAX_PAIRS: Final = 2_000_000
_STEP: Final = "step"  # state that does not have the shape of the parameter
_FIX: Final = (
    "Load the file with torch.load into the model and the optimizer, and save these with a Saver; or exclude the "
    "optimizer"
)


def as_training(source: TensorSource) -> "TrainingSource | None":
    """Return the training state in a .pt file (see the contract above); None for any other source."""
    if not isinstance(source, PtSource) or not isinstance(source.contents, PickledDict):
        return None
    if not has_str_keys(source.contents) or not _contains(source.contents, is_optimizer, {}):
        return None
    return TrainingSource(source)


def training_lines(training: Mapping[str, str], refused: Mapping[str, str]) -> list[str]:
    """Return report lines: each converted key with its role, and each key not converted with the reason."""
    lines = ["training state, for Saver({...}).restore:"] if training or refused else []
    lines += [f"  {quoted(key)}: {role}" for key, role in training.items()]
    return lines + [f"  {quoted(key)} was NOT converted: {reason}" for key, reason in refused.items()]


def _contains(value: Any, wanted: Callable[[Any], bool], known: dict[int, bool]) -> bool:
    """Return whether `wanted` is true for `value` or for a value in it. `known` caches results by id.

    Each container is examined once, even if a small file refers to it many times.
    """
    if id(value) not in known:
        inside = (_contains(item, wanted, known) for _, item in items_of(value))
        known[id(value)] = wanted(value) or any(inside)
    return known[id(value)]


class TrainingSource(DerivedSource):
    """The training state in a .pt file, as a `TensorSource` that follows the contract of this module.

    Attributes:
        roles: Key of the var_list -> what is stored under it.
        refused: Key of each optimizer that is not converted -> the reason.

    Raises:
        InvalidArgumentError: two values would have the same name.
    """

    format = "pt"
    object_names: None = None

    def __init__(self, source: PtSource) -> None:
        super().__init__(source)
        self.skipped: dict[str, str] = {}
        self.roles: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self._has_objects: dict[int, bool] = {}  # id of a pickled value, kept alive by the source -> the result
        self._stored: dict[str, str] = {}  # name -> name in the file
        self._made: dict[str, torch.Tensor | bytes] = {}  # name -> value that is not in the file as such
        self._parts: dict[str, list[str]] = {}  # name of JSON -> names of the tensors that it refers to
        self._models: dict[str, dict[str, PickledTensor]] = {}
        self._bare: dict[str, dict[str, str]] = {}  # key of a model -> names in the file without wrappers
        self._optimizers: list[tuple[str, str, PickledDict]] = []
        self._parameters: dict[str, tuple[str, list[str]]] = {}  # key of an optimizer -> model, parameter names
        for key, name, value in _entries(source.contents):
            self._add(key, name, value, top=True)
        pairs = len(self._optimizers) * sum(map(len, self._bare.values()))
        for key, name, value in self._optimizers:
            try:
                if pairs > _MAX_PAIRS:
                    raise InvalidArgumentError(f"the file has {counted(len(self._optimizers), 'optimizer')}: too many")
                self._add_optimizer(key, name, value)
            except (InvalidArgumentError, UnimplementedError, TypeError) as error:
                self.refused[key] = f"{error}. {_FIX}"

    def names(self) -> list[str]:
        return [*self._stored, *self._made]

    def info(self, name: str) -> TensorInfo:
        if name in self._stored:
            return self._source.info(self._stored[name])
        made = self._made[name]
        if isinstance(made, bytes):
            return TensorInfo(ElementType.of_tensorflow(DataType.DT_STRING), (), len(made))
        return TensorInfo(ElementType.of_torch(made.dtype), (), made.dtype.itemsize)

    def read(self, names: Iterable[str]) -> dict[str, FileValue]:
        wanted = list(names)
        stored = self._source.read([self._stored[name] for name in wanted if name in self._stored])
        values: dict[str, FileValue] = {}
        for name in wanted:
            made = self._made.get(name)
            if made is None:
                values[name] = stored[self._stored[name]]
            else:
                values[name] = strings_from(name, (), [made]) if isinstance(made, bytes) else made.clone()
        return values

    def reported(self, takes: Callable[[str], bool]) -> tuple[dict[str, str], dict[str, str]]:
        """Return `roles` and `refused`, limited to the selected keys."""
        roles = {key: role for key, role in self.roles.items() if takes(key)}
        return roles, {key: reason for key, reason in self.refused.items() if takes(key)}

    def check_selected(self, new_names: Mapping[str, str], left_out: Iterable[str], dtype: torch.dtype | None) -> None:
        """Raise InvalidArgumentError if a restore would not find, or not accept, what a state refers to.

        Args:
            new_names: Name -> new name of everything that is converted.
            left_out: Names that `include` and `exclude` leave out.
            dtype: Type that floating-point tensors get.
        """
        omitted = set(left_out)
        for key in self._parts.keys() & new_names.keys():
            lost = [name for name in self._parts[key] if name in omitted or new_names.get(name, name) != name]
            if lost:
                raise InvalidArgumentError(
                    f"{printable(self.path)}: {listed(lost, _LISTED)} cannot be omitted or renamed, because the state "
                    f"{quoted(key)} refers to {'it' if len(lost) == 1 else 'them'}. Omit both or "
                    f"neither, and rename neither"
                )
            floating = [name for name in self._parts[key] if self.info(name).cast(dtype) != self.info(name)]
            if floating and key in self.roles and key not in self._models:
                raise InvalidArgumentError(
                    f"{printable(self.path)}: dtype={dtype} would convert the tensors of the state {quoted(key)}, too, "
                    f"such as step counts. Omit dtype, or exclude {quoted(key)}"
                )

        for key in self._parameters.keys() & new_names.keys():
            model, parameters = self._parameters[key]
            for name in parameters:
                new = new_names.get(f"{model}/{name}", name)
                if new != name and not new.endswith(f"/{name}"):
                    raise InvalidArgumentError(
                        f"{printable(self.path)}: the state {quoted(key)} has the names of the parameters of "
                        f"{quoted(model)}, such as {quoted(name)}, so these cannot be renamed. Exclude {quoted(key)}"
                    )

    def _add(self, key: str, name: str, value: Any, *, top: bool = False) -> None:
        if value is None:
            self.skipped[name] = describe(value)
        elif isinstance(value, PickledTensor):
            self._put(key, name)
            self.roles[key] = f"a tensor of shape {shape_text(value.shape)}"
        elif is_optimizer(value):
            self._optimizers.append((key, name, value))
        elif may_be_module(value):
            self._add_module(key, name, value)
        elif not is_scheduler(value) and _contains(value, is_object, self._has_objects):
            for part, item in items_of(value):
                below = name_below(name, key_text(part))
                if type(part) in (str, int):
                    self._add(f"{key}/{part}", below, item)
                else:
                    self.skipped[below] = f"under a key that is a {type(part).__name__}"
        elif top and type(value) in (bool, int, float) and (type(value) is float or abs(value) <= MAX_INT64):
            kinds = {bool: torch.bool, int: torch.int64, float: torch.float64}
            tensor = torch.tensor(value, dtype=kinds[type(value)], device="cpu")
            self._make(key, tensor)
            self.roles[key] = f"a number, as torch.tensor({value!r}, dtype={tensor.dtype})"
        else:
            self._add_plain(key, name, value)

    def _add_plain(self, key: str, name: str, value: Any) -> None:
        values = PythonValues()
        try:
            self._add_state(key, values.value(value, name), values)
        except (UnimplementedError, InvalidArgumentError, TypeError) as error:
            self.skipped[name] = str(error)
        else:
            self.roles[key] = "the state of a scheduler" if is_scheduler(value) else "plain state"

    def _add_state(self, key: str, value: object, values: PythonValues) -> None:
        text, tensors = flatten(value, key)
        self._make(key, text.encode("ascii"))
        for part, tensor in tensors.items():
            self._put(part, values.name_of(tensor))
        self._parts[key] = list(tensors)

    def _add_module(self, key: str, name: str, value: PickledDict) -> None:
        names = [each for each, _ in value.pairs]
        bare = {original: short for short, original in without_wrappers(names).items()}
        tensors: dict[str, PickledTensor] = {}
        first: dict[str, str] = {}  # description of a tensor -> its first name
        shared: dict[str, str] = {}
        for original, item in value.pairs:
            short = bare.get(original, original)
            if not isinstance(item, PickledTensor):
                self._add_plain(f"{key}/{short}", name_below(name, original), item)
                self.roles.pop(f"{key}/{short}", None)
                continue
            known = first.setdefault(repr(item), short)
            if known != short:
                shared[f"{key}/{short}"] = f"{key}/{known}"
                continue
            tensors[short] = item
            self._put(f"{key}/{short}", name_below(name, original))
        if shared:
            self._make(f"{key}/{SHARED}", json.dumps(shared).encode("ascii"))
            self._parts[f"{key}/{SHARED}"] = list(dict.fromkeys(shared.values()))
        self._models[key], self._bare[key] = tensors, {each: bare.get(each, each) for each in names}
        self.roles[key] = f"a module, {counted(len(tensors), 'tensor')}"
        if not is_module(value) and not bare and not shared and not any("." in each for each in names):
            # It may also be a plain dict, and a Saver needs this JSON to find a plain dict.
            entries = {each: torch.empty(0, device="cpu") for each in names if each in tensors}
            text, _ = flatten(entries, key, stored_as={id(item): f"{key}/{each}" for each, item in entries.items()})
            self._make(key, text.encode("ascii"))
            self._parts[key] = [f"{key}/{each}" for each in entries]
            self.roles[key] = f"a module or a dict of {counted(len(tensors), 'tensor')}"

    def _add_optimizer(self, key: str, name: str, value: PickledDict) -> None:
        values = PythonValues()
        packed = values.value(value, name)
        groups = packed["param_groups"]
        flat = [position for group in groups for position in group["params"]]
        named = all(type(each) is str for each in flat) and bool(flat)
        if named:
            place = {each: position for position, each in enumerate(flat)}
            packed["state"] = {place.get(each, each): state for each, state in packed["state"].items()}
        elif flat != list(range(len(flat))) or any(type(each) is not int for each in flat):
            raise InvalidArgumentError("its positions are not consecutive numbers")
        if any(isinstance(each, int) and not 0 <= each < len(flat) for each in packed["state"]):
            raise InvalidArgumentError("it has state for a position that is not in any of its groups")
        shapes = _shapes_of_state(value, flat if named else list(range(len(flat))))
        given = [group["params"] if named else group.get("param_names") for group in groups]
        if all(_are_names(each, len(group["params"])) for each, group in zip(given, groups, strict=True)):
            names, model = self._named(given, shapes)
            how = "by the names in it"
        else:
            names, model = self._matched(groups, shapes)
            how = f"by the order of {quoted(model or '')}"
        of_all = [each for group in names for each in group]
        if len(set(of_all)) != len(of_all):
            raise InvalidArgumentError("two of its parameters have the same name")
        properties: dict[str, object] = {}
        if model is not None:
            tensors = self._models[model]
            properties = properties_of({each: (tensors[each].shape, tensors[each].dtype) for each in of_all})
            properties[MODULE] = model
            self._parameters[key] = model, of_all
        self._add_state(key, {**properties, **by_name(packed, names)}, values)
        self.roles[key] = f"an optimizer, {counted(len(of_all), 'parameter')}, {how}"

    def _named(self, given: list[list[str]], shapes: Sequence[Shape | None]) -> tuple[list[list[str]], str | None]:
        """Return names without the parts that wrappers add, and the model that has all of them."""
        for key, bare in self._bare.items():
            tensors = self._models[key]
            names = [[bare.get(each, each) for each in group] for group in given]
            of_all = [each for group in names for each in group]
            if all(each in tensors for each in of_all):
                for each, shape in zip(of_all, shapes, strict=True):
                    if shape is not None and shape != tensors[each].shape:
                        raise InvalidArgumentError(
                            f"the state of {quoted(each)} has shape {shape_text(shape)}, but the parameter in "
                            f"{quoted(key)} has shape {shape_text(tensors[each].shape)}"
                        )
                return names, key
        return given, None

    def _matched(self, groups: list[Any], shapes: Sequence[Shape | None]) -> tuple[list[list[str]], str]:
        """Return the names for the positions, and their model.

        Raises InvalidArgumentError unless exactly one assignment fits.
        """
        if not self._models:
            raise InvalidArgumentError("the file has no state_dict of a model, so its parameters have no names")
        waiting = iter(shapes)
        by_group = [[next(waiting) for _ in group["params"]] for group in groups]
        max_steps = MAX_STEPS // (len(self._optimizers) * len(self._models))
        found: dict[str, list[list[str]]] = {}
        failed: dict[str, str] = {}
        for key, tensors in self._models.items():
            entries = {name: ModelTensor(each.shape, each.dtype) for name, each in tensors.items()}
            try:
                found[key] = match_positions(by_group, entries, max_steps)
            except InvalidArgumentError as error:
                failed[key] = f"{quoted(key)}: {error}"
                if isinstance(error, AmbiguousPositionsError):
                    raise InvalidArgumentError(failed[key]) from error
        if not found:
            raise InvalidArgumentError("; ".join(failed.values()))
        if any(names != next(iter(found.values())) for names in found.values()):
            raise InvalidArgumentError(f"it fits the parameters of several models: {listed(list(found), _LISTED)}")
        return next(iter(found.values())), next(iter(found))

    def _put(self, key: str, name: str) -> None:
        self._check_free(key)
        self._stored[key] = name

    def _make(self, key: str, value: torch.Tensor | bytes) -> None:
        self._check_free(key)
        self._made[key] = value

    def _check_free(self, key: str) -> None:
        if key in self._stored or key in self._made:
            raise InvalidArgumentError(f"{printable(self.path)}: two values would be called {quoted(key)}")


def _entries(contents: PickledDict) -> Iterator[tuple[str, str, Any]]:
    """Yield key, name in the file and value of each entry; Lightning's entries get the usual keys."""
    taken = {key for key, _ in contents.pairs}
    is_lightning = isinstance(item_of(contents, "optimizer_states"), list) and "state_dict" in taken
    lists = {"optimizer_states": "optimizer", "lr_schedulers": "scheduler"}
    for key, value in contents.pairs:
        one = lists.get(key)
        if not is_lightning or (key != "state_dict" and (one is None or type(value) is not list or not value)):
            yield key, key, value
        elif key == "state_dict":
            yield key if "model" in taken else "model", key, value
        elif one is None or {one, f"{one}s"} & taken:
            yield key, key, value
        else:
            for number, item in enumerate(value):
                yield one if len(value) == 1 else f"{one}s/{number}", name_below(key, str(number)), item


def _shapes_of_state(value: PickledDict, positions: list[Any]) -> list[Shape | None]:
    """Return the shape of each position's state tensors; None if it has none or their shapes differ.

    Args:
        positions: The keys of the state, in the order of the groups.
    """
    of_key = {}
    for key, state in item_of(value, "state").pairs:
        shapes = {
            item.shape
            for name, item in items_of(state)
            if isinstance(item, PickledTensor) and item.shape and name != _STEP
        }
        of_key[key] = shapes.pop() if len(shapes) == 1 else None
    return [of_key.get(key) for key in positions]


def _are_names(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(each) is str for each in value)
