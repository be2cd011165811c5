"""Build a module from "pkg.mod:factory", as on the command line, or from a function.

    net:Classifier             the class or function `Classifier` of net.py in the current directory
    mypackage.models:build     a function of an installed package
    net:Models.small           an attribute of an attribute

Contract: a factory given by name is called without arguments, on the meta device, so that no memory is allocated for
weights. If it needs values to build the module, such as the numbers of a linspace, it is called again on the CPU, and a
warning is logged. The name may also be that of a module. Any failure, including errors in the imported code, raises
InvalidArgumentError with the name as given and the reason.
"""

import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import torch
from torch import nn

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import did_you_mean, escaped, listed, printable, quoted, shortened

_DOTTED: Final = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
_SPEC: Final = re.compile(rf"({_DOTTED}):({_DOTTED})")
# "Tensor.item() cannot be called on meta tensors", "Cannot copy out of meta tensor; no data!", "... from the 'Meta'
# backend": errors that are caused by the device, not by the factory.
_CAUSED_BY_META: Final = re.compile(r"\bmeta\b", re.IGNORECASE)
_EXAMPLE: Final = '"net:Classifier" for the class Classifier in net.py'

_LISTED: Final = 8  # names in a message

_log = logging.getLogger(__name__)
Factory = str | nn.Module | Callable[[], nn.Module]
"""A module, a function that returns one, or "pkg.mod:factory"."""


def build_module(spec: str, device: str = "meta") -> nn.Module:
    """Return the module that a factory builds, without values for its weights unless a device is given.

    Args:
        spec: "pkg.mod:factory". The current directory is searched first, as `python -m` does.
        device: "meta" or "cpu": the default device while the factory runs.

    Raises:
        InvalidArgumentError: `spec` is not of this form; the import or the factory failed; the result is not an
            nn.Module.
    """
    found = _SPEC.fullmatch(spec)
    if found is None:
        raise InvalidArgumentError(f"{quoted(spec)} does not name a module factory. Write {_EXAMPLE}")
    module_name, attributes = found.groups()
    with _current_directory_first():
        factory = _attribute(spec, _imported(spec, module_name), attributes)
        if isinstance(factory, nn.Module):
            return factory
        if not callable(factory):
            raise InvalidArgumentError(
                f"{spec}: {shortened(factory)} is not a factory. Name a module class, or a function that returns a "
                f"module"
            )
        model = _called(spec, factory, device)
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{spec}() returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def module_of(argument: str, factory: Factory) -> nn.Module:
    """Return a module, given the module, a function that builds it, or a string for `build_module`.

    Args:
        argument: Name of the argument, for messages.

    Raises:
        InvalidArgumentError: as `build_module`; or the function does not return a module. The function runs on the
            current device, and its own exceptions propagate unchanged.
    """
    if isinstance(factory, nn.Module):
        return factory
    if isinstance(factory, str):
        return build_module(factory)
    if not callable(factory):
        raise InvalidArgumentError(f'{argument}={factory!r}: pass a module, a function or a string "pkg.mod:factory"')
    model: object = factory()
    if not isinstance(model, nn.Module):
        raise InvalidArgumentError(f"{argument}: the function returned a {type(model).__name__}, not a torch.nn.Module")
    return model


def factory_text(factory: Factory | None) -> str:
    """Return the name of a factory, for messages."""
    if factory is None:
        return "the module"
    if isinstance(factory, str):
        return printable(factory)
    return quoted(type(factory).__name__ if isinstance(factory, nn.Module) else getattr(factory, "__qualname__", "?"))


def _called(spec: str, factory: Callable[[], object], device: str) -> object:
    wanted = device
    try:
        try:
            with torch.device(device):
                return factory()
        except (RuntimeError, TypeError, ValueError) as error:  # NotImplementedError is a RuntimeError
            if device != "meta" or _CAUSED_BY_META.search(str(error)) is None:
                raise
            _log.warning(
                "%s() cannot be called on the meta device, so it is called on the CPU, where weights take memory: %s",
                spec,
                _described(error),
            )
            device = "cpu"
        with torch.device(device):
            return factory()
    except (Exception, SystemExit) as error:
        where = "on the meta device" if device == "meta" else "on the CPU"
        if device != wanted:
            where += ", as it failed on the meta device"
        raise InvalidArgumentError(
            f"{spec}() raised {_described(error)}. It is called without arguments, {where}: write a function without "
            f"required arguments that only builds the module"
        ) from error


@contextmanager
def _current_directory_first() -> Iterator[None]:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:  # the imported code may have changed the list
            sys.path.remove(here)


def _imported(spec: str, name: str) -> object:
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        absent = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
        if absent:
            raise InvalidArgumentError(
                f"{spec}: there is no module {quoted(name)} in the current directory or among the installed packages. "
                f"Write {_EXAMPLE}"
            ) from error
        raise InvalidArgumentError(f"{spec}: importing {quoted(name)} raised {_described(error)}") from error


def _attribute(spec: str, owner: object, attributes: str) -> object:
    for name in attributes.split("."):
        try:
            owner = getattr(owner, name)
        except AttributeError:
            public = [each for each in dir(owner) if not each.startswith("_")]
            where = getattr(owner, "__name__", shortened(owner))
            hint = did_you_mean(name, public)
            defined = _defined_in(owner, public)
            if not hint and defined:
                hint = f"It has {listed(defined, _LISTED)}"
            raise InvalidArgumentError(f"{spec}: {quoted(where)} has no {quoted(name)}. {hint}".rstrip()) from None
    return owner


def _defined_in(owner: object, names: Sequence[str]) -> list[str]:
    """Return those names of a module or class that are modules, or that may build one; imported functions last."""
    values = {name: getattr(owner, name, None) for name in names}
    built = [name for name, value in values.items() if callable(value)]
    own = getattr(owner, "__name__", None)
    return sorted(built, key=lambda name: getattr(values[name], "__module__", None) != own)


def _described(error: BaseException) -> str:
    """Return an error with the place where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}: {escaped(str(error))}{place}"
