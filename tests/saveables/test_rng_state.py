"""RNGState: restored generators continue where they were."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from saveables_files import restore, save

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.saveables.rng_state import RNGState


def draws() -> list[float]:
    """Draw from each generator, and a second time from normals, of which two generators cache one."""
    return [
        random.random(),
        random.gauss(0, 1),
        np.random.standard_normal(),
        np.random.rand(),
        torch.randn(3).sum().item(),
    ]


def test_all_global_generators_continue_where_they_were(tmp_path: Path) -> None:
    """The same numbers are drawn again, even from the middle of a pair of normals."""
    draws()
    assert "rng/torch" in save({"rng": RNGState()}, tmp_path / "ckpt")
    expected = [draws() for _ in range(3)]
    assert [draws() for _ in range(3)] != expected
    restore({"rng": RNGState()}, tmp_path / "ckpt")
    assert [draws() for _ in range(3)] == expected


def test_one_generator_alone(tmp_path: Path) -> None:
    """The global ones are not touched."""
    generator = torch.Generator().manual_seed(7)
    assert save({"g": RNGState(generator)}, tmp_path / "ckpt") == ["g", "g/generator"]
    expected = torch.randn(5, generator=generator)
    before = torch.get_rng_state()
    restore({"g": RNGState(generator)}, tmp_path / "ckpt")
    assert torch.equal(torch.randn(5, generator=generator), expected)
    assert torch.equal(torch.get_rng_state(), before)


def test_states_of_absent_devices_are_logged(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint from a machine with GPUs is restored on one without."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    state = RNGState().state_dict() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 2}
    RNGState().load_state_dict(state)
    assert "generator states of 2 CUDA device(s), but this machine has 0" in caplog.text


def test_states_of_devices_are_set_on_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """One state per device, in their order; with one device, only the first state."""
    taken: list[tuple[int, int]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.tensor([n]) for n in range(2)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, index: taken.append((state.item(), index)))
    RNGState().load_state_dict(RNGState().state_dict())
    assert taken == [(0, 0), (1, 1)]


def broken(**changes: Any) -> dict[str, Any]:
    return RNGState().state_dict() | changes


@pytest.mark.parametrize(
    "state",
    [
        5, {}, {"torch": torch.zeros(1)}, broken(torch=torch.zeros(5, dtype=torch.uint8)), broken(torch="text"),
        broken(python={"version": 3, "words": torch.zeros(5, dtype=torch.int64), "gauss": None}),
        broken(numpy={"bit_generator": "PCG64"}), broken(numpy={"bit_generator": "MT19937", "state": {}}),
        broken(numpy={"bit_generator": "MT19937", "state": {"key": np.zeros(3), "pos": 1}}), broken(python=5),
        broken(python={"version": 3, "words": [1], "gauss": None}),
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_changes_no_generator(state: Any) -> None:
    """InvalidArgumentError, and the next numbers are the same as without the call."""
    before = RNGState().state_dict()
    with pytest.raises(InvalidArgumentError, match="not the state of the global generators"):
        RNGState().load_state_dict(state)
    assert repr(RNGState().state_dict()) == repr(before)


def test_a_single_generator_rejects_a_state_of_another_kind() -> None:
    """The message names the expected generator."""
    with pytest.raises(InvalidArgumentError, match="not the state of this generator"):
        RNGState(torch.Generator()).load_state_dict({"generator": torch.zeros(3, dtype=torch.uint8)})
