"""Optimizers of one of several modules: state never goes to parameters of the same name in another module."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import InvalidArgumentError


class Two:
    """An encoder and a decoder with the same names and shapes, and an optimizer over some of their parameters."""

    def __init__(self, seed: int, *parts: str, named: bool = False) -> None:
        torch.manual_seed(seed)
        self.modules = {"decoder": nn.Linear(2, 2), "encoder": nn.Linear(2, 2)}
        first, *later = [self.parameters(part, named) for part in parts]
        self.optimizer = torch.optim.Adam(first)
        for group in later:
            self.optimizer.add_param_group({"params": group})

    def parameters(self, part: str, named: bool = False) -> Any:
        module = self.modules[part]
        return module.named_parameters() if named else module.parameters()

    def step(self) -> "Two":
        for module in self.modules.values():
            module(torch.randn(3, 2)).square().sum().backward()
        self.optimizer.step()
        return self

    def moment(self, part: str) -> torch.Tensor | None:
        moment: torch.Tensor | None = self.optimizer.state.get(self.modules[part].weight, {}).get("exp_avg")
        return moment

    @property
    def var_list(self) -> dict[str, Any]:
        return {**self.modules, "optimizer": self.optimizer}


def save(directory: Path, var_list: dict[str, Any]) -> str:
    return tfckpt.Saver(var_list).save(directory / "model.ckpt")


def restore(path: str | Path, var_list: dict[str, Any]) -> None:
    tfckpt.Saver(var_list).restore(path)


def assert_moments(restored: Two, saved: Two, *parts: str) -> None:
    for part in ("encoder", "decoder"):
        here, there = restored.moment(part), saved.moment(part)
        if part in parts:
            assert here is not None and there is not None and torch.equal(here, there)
        else:
            assert here is None


@pytest.mark.parametrize("named", [False, True], ids=["parameters", "named_parameters"])
def test_another_module(tmp_path: Path, named: bool) -> None:
    """The encoder's state is not restored into an optimizer of the decoder, and nothing changes."""
    path = save(tmp_path, Two(1, "encoder", named=named).step().var_list)
    other = Two(2, "decoder", named=named)
    before = other.modules["decoder"].weight.clone()
    with pytest.raises(InvalidArgumentError, match=r'checkpoint: "encoder/bias".*optimizer: "decoder/bias"'):
        restore(path, other.var_list)
    assert_moments(other, other)
    assert torch.equal(other.modules["decoder"].weight, before)


@pytest.mark.parametrize("named", [False, True], ids=["parameters", "named_parameters"])
def test_same_module(tmp_path: Path, named: bool) -> None:
    saved = Two(1, "encoder", named=named).step()
    path = save(tmp_path, saved.var_list)
    restored = Two(2, "encoder", named=named)
    restore(path, restored.var_list)
    assert_moments(restored, saved, "encoder")


def test_grown_to_several_modules(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Saved with the parameters of one module, restored with those of both."""
    saved = Two(1, "encoder").step()
    path = save(tmp_path, saved.var_list)
    restored = Two(2, "encoder", "decoder")
    restore(path, restored.var_list)
    assert_moments(restored, saved, "encoder")
    assert 'only in this optimizer: "decoder/bias", "decoder/weight"' in caplog.text


def test_one_of_several_modules_and_the_other_one_later(tmp_path: Path) -> None:
    """Saved with both, restored with one; the other one waits for add_param_group, also over a save in between."""
    saved = Two(1, "encoder", "decoder").step()
    path = save(tmp_path, saved.var_list)
    restored = Two(2, "encoder")
    restore(path, restored.var_list)
    assert_moments(restored, saved, "encoder")
    (tmp_path / "second").mkdir()
    second = save(tmp_path / "second", restored.var_list)
    restored.optimizer.add_param_group({"params": restored.parameters("decoder")})
    assert_moments(restored, saved, "encoder", "decoder")
    for parts in (("encoder", "decoder"), ("decoder", "encoder")):
        again = Two(3, *parts)
        restore(second, again.var_list)
        assert_moments(again, saved, "encoder", "decoder")
    last = Two(4, "decoder")
    restore(second, last.var_list)
    assert_moments(last, saved, "decoder")


def test_the_stored_module_waits(tmp_path: Path) -> None:
    """Saved with one module, restored with both of its parts in two steps, where the names change in between."""
    saved = Two(1, "encoder").step()
    path = save(tmp_path, saved.var_list)
    restored = Two(2, "decoder", "encoder")
    restore(path, restored.var_list)
    assert_moments(restored, saved, "encoder")


def test_a_module_renamed_by_convert(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The state is restored by the names in both modules, and a warning names the modules."""
    saved = Two(1, "encoder").step()
    path = save(tmp_path, {"encoder": saved.modules["encoder"], "optimizer": saved.optimizer})
    renamed = tmp_path / "renamed"
    tfckpt.convert(path, renamed, to="tf", rename=[("encoder/(.*)", r"net/\1")])
    restored = Two(2, "encoder")
    restore(renamed, {"net": restored.modules["encoder"], "optimizer": restored.optimizer})
    assert_moments(restored, saved, "encoder")
    assert 'the state was saved for the parameters of "encoder", and is restored for those of "net"' in caplog.text


def test_names_in_a_wrapping_optimizer(tmp_path: Path) -> None:
    """The module of the optimizer inside a wrapper is compared, too."""

    class Wrapper(torch.optim.Optimizer):
        def __init__(self, base: torch.optim.Optimizer) -> None:
            self.base = base
            self.defaults, self.param_groups, self.state = base.defaults, base.param_groups, base.state

        def state_dict(self) -> dict[str, Any]:
            return {"slow": 1}

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            self.slow = state_dict["slow"]

    saved = Two(1, "encoder").step()
    path = save(tmp_path, {**saved.modules, "optimizer": Wrapper(saved.optimizer)})
    same, other = Two(2, "encoder"), Two(2, "decoder")
    restore(path, {**same.modules, "optimizer": Wrapper(same.optimizer)})
    assert_moments(same, saved, "encoder")
    with pytest.raises(InvalidArgumentError):
        restore(path, {**other.modules, "optimizer": Wrapper(other.optimizer)})
    assert_moments(other, other)
