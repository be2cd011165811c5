"""canonical_device: one spelling for each device."""

import pytest
import torch
from tensorflow_process import TensorFlowProcess

from torch_tfckpt.devices import canonical_device
from torch_tfckpt.errors import InvalidArgumentError

TENSORFLOWS = (
    "/cpu:0", "/gpu:1", "/GPU:10", "/device:GPU:0", "/device:CPU:*", "/cpu", "/job:ps", "/job:ps/task:1",
    "/job:ps/replica:0/task:1/cpu:0", "/task:1/job:ps/gpu:2", "/device:TPU:3", "/job:1", "gpu:1", "/Gpu:*",
)  # fmt: skip


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (None, ""),
        ("", ""),
        ("cpu", "/device:CPU:0"),
        ("cuda:1", "/device:GPU:1"),
        ("cuda", "/device:GPU:0"),
        ("mps", "/device:MPS:0"),
        (torch.device("cpu"), "/device:CPU:0"),
        (torch.device("cuda", 3), "/device:GPU:3"),
        ("/cuda:1", "/device:GPU:1"),
        ("/device:cuda:1", "/device:GPU:1"),
        ("/cpu:0", "/device:CPU:0"),
        ("/gpu:1", "/device:GPU:1"),
        ("/job:ps/replica:0/task:1/cpu:0", "/job:ps/replica:0/task:1/device:CPU:0"),
        ("/device:GPU:0", "/device:GPU:0"),
    ],
)
def test_torchs_and_tensorflows_spellings_become_one(device: str | torch.device | None, expected: str) -> None:
    """SAVER 2, and torch's own text; what is canonical stays as it is."""
    assert canonical_device(device) == expected
    assert canonical_device(expected) == expected


def test_tensorflow_spells_its_devices_the_same_way(tensorflow: TensorFlowProcess) -> None:
    """Every text of TensorFlow's kind becomes what DeviceSpec makes of it."""
    assert [canonical_device(text) for text in TENSORFLOWS] == tensorflow.call("canonical_devices", TENSORFLOWS)


@pytest.mark.parametrize("text", ["/planet:1", "/gpu:x", "/job:ps:1", "/device:GPU", "nonsense", "/task:one"])
def test_what_is_no_device_is_refused(tensorflow: TensorFlowProcess, text: str) -> None:
    """By TensorFlow as well, with the same beginning of the text."""
    with pytest.raises(InvalidArgumentError, match="Unknown attribute"):
        canonical_device(text)
    assert tensorflow.call("canonical_devices", [text]) == [None]


@pytest.mark.parametrize(
    "text", ["/task:" + "1" * 5000, "/gpu:" + "1" * 5000, "/device:GPU:" + "1" * 5000, "cpu:" + "1" * 5000]
)
def test_a_number_that_no_device_has(text: str) -> None:
    """Files may say any; it is an error of ours."""
    with pytest.raises(InvalidArgumentError):
        canonical_device(text)


@pytest.mark.parametrize(
    ("text", "device"),
    [("/", ""), ("//", ""), ("/cpu:00", "/device:CPU:0"), ("/Cpu", "/device:CPU:*"), ("/meta:0", "/device:META:0")],
)
def test_texts_that_begin_with_a_slash(text: str, device: str) -> None:
    """They are TensorFlow's, whatever torch would make of them."""
    assert canonical_device(text) == device


def test_two_devices_in_one_text_are_refused() -> None:
    """TensorFlow's words."""
    with pytest.raises(InvalidArgumentError, match="Multiple device types are not allowed"):
        canonical_device("/cpu:0/gpu:1")
