"""Conversion of names and layouts, as requested: the direction, the rules, and the target's module.

    TurnRequest.of(to_torch=True, preset="bert", check="net:build")

Contract:

    one direction    to_torch or to_tf, with rules from a preset or a map file, inferred rules, or the rules that the
                     module of `check` implies. Without a direction, nothing else may be given
    the module       the module of `check`, or else of `infer`; built once, on the meta device, so it takes no memory
    wrong arguments  are reported before the source is opened
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_args

from torch import nn

from torch_tfckpt.conversion.convert_report import TensorOutcome
from torch_tfckpt.conversion.deferred_source import DeferredSource
from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.models.factories import Factory, module_of
from torch_tfckpt.models.rules.key_mapper import KeyMapper, Rules, as_key_mapper
from torch_tfckpt.models.sources import Averages
from torch_tfckpt.storage.names import AnyPath

COUNTER: Final = "num_batches_tracked"  # a buffer of torch's BatchNorm; TensorFlow has no such variable
_RULES: Final = "`preset`, `map` or `infer`"


@dataclass(slots=True)
class Turned:
    """The tensors to write, and their entries in the report.

    Attributes:
        source: The tensors under their new names.
        outcomes: What becomes of each stored tensor.
        filled: Name of each tensor that is not stored -> the value of its elements.
        remarks: What may be unintended, for the report.
        model: The module that the tensors must fit; None if none is known.
        part: Prefix of the names of the module's tensors in the target: "model." if it also has optimizer state.
        contents: For PtSink.
    """

    source: DeferredSource
    outcomes: list[TensorOutcome]
    filled: dict[str, float] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    model: nn.Module | None = None
    part: str = ""
    contents: Callable[[dict[str, Any]], Any] | None = None


@dataclass(frozen=True, slots=True)
class TurnRequest:
    """The arguments of `convert` that concern names and layouts, checked."""

    to_torch: bool
    mapper: KeyMapper | None
    infer: Factory | None
    check: Factory | None
    optimizer: bool
    ema: Averages
    strict: bool

    @classmethod
    def of(
        cls,
        *,
        to_torch: bool,
        to_tf: bool,
        preset: str | None,
        scope: str | None,
        map: AnyPath | KeyMapper | Rules | None,
        infer: Factory | None,
        check: Factory | None,
        optimizer: bool,
        ema: str,
        strict: bool,
        others: Mapping[str, bool],
    ) -> "TurnRequest | None":
        """Return the request; None if names and layouts stay as they are.

        Args:
            others: Name of each argument that cannot be combined with a direction -> whether it is given.

        Raises:
            InvalidArgumentError: arguments are mutually exclusive or have no effect.
            NotFoundError: there is no such preset or map file.
        """
        rules = {"preset": preset, "map": map, "infer": infer}
        given = [name for name, value in rules.items() if value is not None]
        if to_torch and to_tf:
            raise InvalidArgumentError("to_torch and to_tf are mutually exclusive. Pass one of them")
        if ema not in get_args(Averages):
            raise InvalidArgumentError(f'ema={ema!r}: pass "warn", "ignore", "prefer" or "only"')
        if not to_torch and not to_tf:
            more = {"scope": scope is not None, "check": check is not None, "optimizer": optimizer}
            more |= {"ema": ema != "warn", "strict": not strict}
            for name in [*given, *(name for name, is_given in more.items() if is_given)]:
                raise InvalidArgumentError(
                    f"`{name}` has no effect, because names and layouts are not converted. Pass to_torch=True or "
                    f"to_tf=True to convert them; or omit `{name}`"
                )
            return None
        direction = "to_torch" if to_torch else "to_tf"
        if len(given) > 1:
            both = " and ".join(f"`{name}`" for name in given)
            raise InvalidArgumentError(f"{both} are mutually exclusive. Pass one of them")
        for name in (name for name, is_given in others.items() if is_given):
            raise InvalidArgumentError(
                f"`{name}` cannot be combined with {direction}. Convert in two steps, with `{name}` in the first"
            )
        if not given and check is None:
            raise InvalidArgumentError(
                f"{direction}=True needs rules for names and layouts. Pass {_RULES}; or check=pkg.mod:factory alone, "
                f"if the names of the module are those of the checkpoint"
            )
        if not to_torch:
            _check_to_tf(infer, optimizer, ema)
        mapper = None
        if preset is not None:
            mapper = KeyMapper.preset(preset, scope=scope)
        elif isinstance(map, str | bytes | os.PathLike):
            mapper = KeyMapper.from_file(map, scope=scope)
        elif scope is not None:
            raise InvalidArgumentError("`scope` is for the rules of a `preset` or of a map file. Omit it")
        elif map is not None:
            mapper = as_key_mapper(map)
        return cls(to_torch, mapper, infer, check, optimizer, ema, strict)  # type: ignore[arg-type]

    def prepared(self, path: str) -> "tuple[KeyMapper | None, nn.Module | None]":
        """Infer the rules and build the module, if they are needed, and return both.

        Raises:
            InvalidArgumentError: a factory cannot be imported, raises an error or returns something else; or as
                `KeyMapper.infer`.
        """
        model = None if self.check is None else module_of("check", self.check)
        if self.infer is None:
            return self.mapper, model
        inferred = module_of("infer", self.infer)
        return KeyMapper.infer(path, inferred), inferred if model is None else model


def _check_to_tf(infer: Factory | None, optimizer: bool, ema: str) -> None:
    """Raise an error for arguments that are only for to_torch."""
    if infer is not None:
        raise InvalidArgumentError(
            "`infer` cannot be combined with to_tf: it finds rules in a TensorFlow checkpoint, which to_tf writes. "
            "Find them in the original checkpoint with `tfckpt map`, and pass the file as `map`; pass the factory as "
            "`check`"
        )
    if optimizer:
        raise UnimplementedError(
            "`optimizer` cannot be combined with to_tf, which writes only the model. To write the state of an "
            "optimizer, too, load the file with torch.load, and call save_model(model, prefix, optimizer=optimizer)"
        )
    if ema != "warn":
        raise InvalidArgumentError(
            "`ema` cannot be combined with to_tf: a state_dict has no separate moving averages. Omit it"
        )
