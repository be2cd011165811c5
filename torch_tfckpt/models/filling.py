"""Put values into a module: in place, by replacing its tensors, or by load_state_dict if it has hooks."""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import Final

import torch
from torch import nn

from torch_tfckpt.distributed.shards import is_dtensor
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.targets import Target
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.spread_state import spread
from torch_tfckpt.saveables.state_dicts import Backup, load_what_fits, loads_state_dict, outermost
from torch_tfckpt.text import listed, quoted

_LISTED: Final = 1000  # names of changed tensors in an error


def fill(
    model: nn.Module,
    loads: Sequence[tuple[Target, torch.Tensor]],
    rest: Iterable[tuple[Target, torch.Tensor]] = (),
    in_place: Callable[[], None] | None = None,
    *,
    assign: bool,
    strict: bool,
) -> list[str]:
    """Put all values into the module: first those for load_state_dict, which may fail, then the others.

    Args:
        rest: Values that are read while they are iterated over; none of them is for load_state_dict. If reading
            fails, the tensors changed so far are listed in a note on the error.
        in_place: Called after all load_state_dict, to read further values straight into tensors; if this fails, modules
            that were loaded by load_state_dict are returned to their state.
        assign: Replace tensors instead of filling them.
        strict: Raise an error if load_state_dict reports that a shape does not fit. False: load the rest.

    Returns:
        The problems that load_state_dict reported, if `strict` is False.

    Raises:
        InvalidArgumentError: a shape does not fit.

    Exceptions raised by hooks are passed on. After any error, except while values are read, the module is unchanged.
    """
    value_of = {identity_of(target.tensor): value for target, value in loads if target.is_loaded}
    backups: list[Backup] = []
    problems: list[str] = []
    in_parts: set[int] = set()
    prefix, part = "", model
    try:
        for prefix, part in outermost(model, loads_state_dict):  # noqa: B007 (used by the handler)
            in_parts.update(map(id, part.modules()))
            state, metadata = _state_of(part, value_of)
            backups.append(Backup(part))
            _, _, problem = load_what_fits(part, state, metadata, assign=assign)
            if problem and strict:
                raise InvalidArgumentError(f"{problem}\nNothing was loaded")
            problems += [problem] if problem else []
    except BaseException as error:
        for backup in reversed(backups):
            backup.restore()
        error.add_note(
            f"Raised while load_state_dict was loading {quoted(prefix.removesuffix('.'))}, a {type(part).__name__}, "
            f"and calling its hooks. All modules have been restored to their previous state"
        )
        raise
    if in_place is not None:
        try:
            in_place()
        except BaseException:
            for backup in reversed(backups):
                backup.restore()
            raise
    changed: list[str] = []
    try:
        for target, value in chain(loads, rest):
            if not target.is_loaded or any(id(place.module) not in in_parts for place in target.places):
                (target.replace if assign else target.fill)(value)
            changed.append(target.name)
    except BaseException as error:
        names = (
            f"these tensors of the module were already changed: {listed(changed, _LISTED)}"
            if changed
            else "nothing was changed"
        )
        error.add_note(
            f"Raised while the values were copied into the module, after all of them had been verified: {names}"
        )
        raise
    return problems


def _state_of(
    part: nn.Module, value_of: dict[Identity, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Return the new values of a module, keyed by state_dict name, and the metadata of its state_dict."""
    present = part.state_dict(keep_vars=True)
    state: dict[str, torch.Tensor] = {}
    for name, own in present.items():
        value = value_of.get(identity_of(own))
        if value is not None and is_dtensor(own):
            state[name] = spread(own, name, value)
        elif value is not None:
            state[name] = value if own.device.type == "meta" else value.to(own.device)
    return state, getattr(present, "_metadata", {})
