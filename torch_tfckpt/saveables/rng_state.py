"""The state of random number generators, so that a resumed run draws the numbers the first one would have drawn."""

import logging
import random
from typing import Any

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError

_log = logging.getLogger(__name__)


class RNGState:
    """The generators of torch, Python and numpy, to be put into a var_list.

    Args:
        generator: One torch.Generator. None means all that are global in the process: torch's for the CPU and, where
            CUDA is initialised, for each of its devices; Python's `random`; numpy's `numpy.random`.

        Saver({"model": model, "optimizer": optimizer, "rng": RNGState()})

    Generators of other processes, such as those of a DataLoader's workers, are not touched.
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._generator = generator

    def state_dict(self) -> dict[str, Any]:
        """The state now, of tensors and plain values."""
        if self._generator is not None:
            return {"generator": self._generator.get_state()}
        version, words, gauss = random.getstate()
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
            "numpy": np.random.get_state(legacy=False),
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: Any, /) -> None:
        """Takes over a state that `state_dict` gave. States of CUDA devices that are not here are left, and logged.

        Raises:
            InvalidArgumentError: it is none, or one of other generators; nothing was changed.
        """
        try:
            self._load(state_dict)
        except (LookupError, AttributeError, TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InvalidArgumentError(
                f"this is not the state of {'this generator' if self._generator else 'the global generators'}: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _load(self, state: Any) -> None:
        if self._generator is not None:
            self._generator.set_state(state["generator"])
            return
        python = state["python"]
        words = (python["version"], tuple(python["words"].tolist()), python["gauss"])
        cuda = list(state.get("cuda", []))
        # Generators made for the purpose take each state first: one that does not fit must leave none changed.
        random.Random().setstate(words)
        torch.Generator().set_state(state["torch"])
        bit_generator = np.random.get_state(legacy=False)["bit_generator"]
        if state["numpy"]["bit_generator"] != bit_generator:
            raise ValueError(f"numpy.random has {bit_generator} here, stored is {state['numpy']['bit_generator']}")
        scratch = type(np.random.get_bit_generator())  # type: ignore[attr-defined, unused-ignore]
        np.random.RandomState(scratch()).set_state(state["numpy"])
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if len(cuda) > here:
            _log.warning("generators of %d CUDA devices are stored, %d devices are here", len(cuda), here)
        for index, each in enumerate(cuda[:here]):
            torch.cuda.set_rng_state(each, index)
        random.setstate(words)
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])
