"""load_model from Keras's own files: settings are compared with the configuration, unnamed variables never guessed."""

from pathlib import Path

from torch import nn

import torch_tfckpt as tfckpt

CNN = Path(__file__).parent / "golden" / "cnn.keras"


class Digits(nn.Module):
    """The CNN of docs/keras.md."""

    def __init__(self, epsilon: float = 1e-5, padding: int = 0) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, stride=2, bias=False, padding=padding)
        self.norm = nn.BatchNorm2d(4, eps=epsilon)
        self.head = nn.Linear(4, 3)


def test_settings_that_agree_are_no_finding() -> None:
    assert tfckpt.load_model(Digits(), CNN, strict="semantics").semantics == []


def test_another_epsilon_is_a_finding_with_both_values() -> None:
    """Also one that is not torch's default."""
    [finding] = tfckpt.load_model(Digits(epsilon=1e-3), CNN).semantics
    assert (finding.name, finding.modules) == ("batch_norm_epsilon", ("norm",))
    assert "eps=0.001" in finding.message and "epsilon=1e-05" in finding.message


def test_padding_with_a_stride_is_still_a_finding() -> None:
    """The layer has padding="same", which pads the end only."""
    [finding] = tfckpt.load_model(Digits(padding=1), CNN).semantics
    assert finding.name == "same_padding_stride"
