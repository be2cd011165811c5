"""Put values into a module: in place, by replacing its tensors, or by load_state_dict if it has hooks."""

from collections.abc import Sequence

import torch
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.models.targets import Target
from torch_tfckpt.saveables.identity import Identity, identity_of
from torch_tfckpt.saveables.state_dicts import Backup, load_what_fits, loads_state_dict, outermost
from torch_tfckpt.text import quoted


def fill(model: nn.Module, loads: Sequence[tuple[Target, torch.Tensor]], *, assign: bool, strict: bool) -> list[str]:
    """Put all values into the module: first those for load_state_dict, which may fail, then the others.

    Args:
        assign: Replace tensors instead of filling them.
        strict: Raise an error if load_state_dict reports that a shape does not fit. False: load the rest.

    Returns:
        The problems that load_state_dict reported, if `strict` is False.

    Raises:
        InvalidArgumentError: a shape does not fit.

    Exceptions raised by hooks are passed on. After any error the module is unchanged.
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
    for target, value in loads:
        if target.is_loaded and all(id(place.module) in in_parts for place in target.places):
            continue
        if assign:
            target.replace(value)
        else:
            target.fill(value)
    return problems


def _state_of(
    part: nn.Module, value_of: dict[Identity, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Return the new values of a module, keyed by state_dict name, and the metadata of its state_dict."""
    present = part.state_dict(keep_vars=True)
    state: dict[str, torch.Tensor] = {}
    for name, own in present.items():
        value = value_of.get(identity_of(own))
        if value is not None:
            state[name] = value if own.device.type == "meta" else value.to(own.device)
    return state, getattr(present, "_metadata", {})
