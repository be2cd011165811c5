"""State of random number generators, so that a resumed run draws the same numbers."""

import logging
import random
from typing import Any

import numpy as np
import torch

from torch_tfckpt.errors import InvalidArgumentError

_log = logging.getLogger(__name__)


class RNGState:
    """State of the random number generators of torch, Python and numpy, as a value for a var_list.

    Args:
        generator: One torch.Generator. None means all global generators of the process: torch's for the CPU and, if
            CUDA is initialised, for each of its devices; Python's `random`; numpy's `numpy.random`.

    Generators of other processes, such as those of a DataLoader's workers, are neither saved nor restored.

    Examples:
        >>> import torch, torch_tfckpt as tfckpt
        >>> saver = tfckpt.Saver({"model": torch.nn.Linear(2, 1), "rng": tfckpt.RNGState()})
        >>> path = saver.save("model.ckpt")
        >>> expected = torch.rand(3)
        >>> report = saver.restore(path)
        >>> torch.equal(torch.rand(3), expected)
        True
    """

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self._generator = generator

    def __repr__(self) -> str:
        return "RNGState()" if self._generator is None else f"RNGState({self._generator!r})"

    def state_dict(self) -> dict[str, Any]:
        """Return the current state: tensors and plain values."""
        if self._generator is not None:
            return {"generator": self._generator.get_state()}
        version, words, gauss = random.getstate()
        state: dict[str, Any] = {
            "torch": torch.get_rng_state(),
            "python": {
                "version": version,
                "words": torch.tensor(words, dtype=torch.int64, device="cpu"),
                "gauss": gauss,
            },
            "numpy": np.random.get_state(legacy=False),
        }
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            state["cuda"] = torch.cuda.get_rng_state_all()
        return state

    def load_state_dict(self, state_dict: Any, /) -> None:
        """Restore a state returned by `state_dict`. States of absent CUDA devices are skipped with a warning.

        Raises:
            InvalidArgumentError: the argument is not such a state, or is the state of different generators; nothing was
                changed.
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
        # Try each state on a scratch generator first: if one does not fit, no generator may be changed.
        random.Random().setstate(words)
        torch.Generator().set_state(state["torch"])
        bit_generator = np.random.get_state(legacy=False)["bit_generator"]
        if state["numpy"]["bit_generator"] != bit_generator:
            raise ValueError(
                f"numpy.random uses {bit_generator}, but the stored state is from {state['numpy']['bit_generator']}"
            )
        scratch = type(np.random.get_bit_generator())  # type: ignore[attr-defined, unused-ignore]
        np.random.RandomState(scratch()).set_state(state["numpy"])
        here = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if len(cuda) > here:
            _log.warning(
                "the checkpoint has generator states of %d CUDA device(s), but this machine has %d", len(cuda), here
            )
        for index, each in enumerate(cuda[:here]):
            torch.cuda.set_rng_state(each, index)
        random.setstate(words)
        torch.set_rng_state(state["torch"])
        np.random.set_state(state["numpy"])
