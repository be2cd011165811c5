"""Hints of a restore on the prefix below which a checkpoint stores the names."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torch_tfckpt import NotFoundError, Saver
from torch_tfckpt.saveables.name_prefixes import prefix_hint


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


CASES: dict[str, tuple[Any, Any, str]] = {
    "a prefix in the file": (
        {"model": model(), "step": torch.tensor(0)},
        model(),
        'All 7 names are stored below "model/". Name it in the saver: Saver({"model": model})',
    ),
    "a prefix in the saver": (
        model(),
        {"model": model()},
        'All 7 names below "model/" are stored without a prefix. Pass the value under "model" itself: Saver(model)',
    ),
    "another prefix": (
        {"net": model(), "step": torch.tensor(0)},
        {"model": model(), "step": torch.tensor(0)},
        'All 7 names below "model/" are stored below "net/". Name it "net" in the saver: Saver({"net": model})',
    ),
    "most of them": (
        {"model": nn.Linear(2, 3)},
        {"weight": torch.zeros(3, 2), "bias": torch.zeros(3), "new": torch.zeros(1)},
        '2 of 3 names are stored below "model/". Name it in the saver: Saver({"model": model})',
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_restore_names_the_prefix(tmp_path: Path, case: str) -> None:
    """The error says what to write; and with that written the checkpoint is restored."""
    saved, restored, hint = CASES[case]
    path = Saver(saved).save(tmp_path / "m")
    saver = Saver(restored)
    with pytest.raises(NotFoundError) as caught:
        saver.restore(path)
    assert hint in str(caught.value)
    assert "Closest" not in str(caught.value)


def test_following_the_hint(tmp_path: Path) -> None:
    """Both fixes in the hint work."""
    one, other = model(), model()
    Saver(other).restore(Saver(one).save(tmp_path / "m"))
    Saver({"model": other}).restore(Saver({"model": one}).save(tmp_path / "n"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize(
    ("wanted", "stored"),
    [
        ({"a", "b"}, {"x/a"}),  # half of them
        ({"m/a", "m/b"}, {"m/a", "x/c"}),  # a name is missing, the prefix is right
        ({"a/x"}, {"b/x"}),  # one name is a coincidence
        ({"a"}, set()),
        (set(), {"a"}),
    ],
)
def test_no_hint(wanted: set[str], stored: set[str]) -> None:
    """Half of the names or fewer are not enough."""
    assert prefix_hint(wanted, stored) == ""


def test_several_prefixes() -> None:
    """All that are as good are listed; the one to write is the first."""
    stored = [f"{prefix}/{name}" for prefix in ("gen", "ema") for name in ("w", "b")]
    assert prefix_hint({"w", "b"}, stored) == (
        'All 2 names are stored below "gen/" or below "ema/". Name it in the saver: Saver({"gen": model})'
    )


def test_thousands_of_prefixes_do_not_take_minutes() -> None:
    """Only the most frequent prefixes of the wanted names are looked at; each is one pass over the stored names."""
    count = 20_000
    passes = 0

    class Stored(list[str]):
        def __iter__(self) -> Iterator[str]:
            nonlocal passes
            passes += 1
            return super().__iter__()

    stored = Stored(f"layer_{i}/weight" for i in range(count))
    assert prefix_hint([f"block_{i}/weight" for i in range(count)], stored) == ""
    assert passes < 10
