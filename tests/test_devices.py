"""canonical_device: one name for each device."""

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
def test_torch_and_tensorflow_names_become_one(device: str | torch.device | None, expected: str) -> None:
    """TensorFlow and torch device names map to the same string; a canonical name is unchanged."""
    assert canonical_device(device) == expected
    assert canonical_device(expected) == expected


def test_device_names_equal_tensorflows(tensorflow: TensorFlowProcess) -> None:
    """Every TensorFlow device string becomes what TensorFlow's DeviceSpec makes of it."""
    assert [canonical_device(text) for text in TENSORFLOWS] == tensorflow.call("canonical_devices", TENSORFLOWS)


@pytest.mark.parametrize("text", ["/planet:1", "/gpu:x", "/job:ps:1", "/device:GPU", "nonsense", "/task:one"])
def test_an_invalid_device_is_refused(tensorflow: TensorFlowProcess, text: str) -> None:
    """TensorFlow refuses it too; the message starts with the same words."""
    with pytest.raises(InvalidArgumentError, match="Unknown attribute"):
        canonical_device(text)
    assert tensorflow.call("canonical_devices", [text]) == [None]


@pytest.mark.parametrize(
    "text", ["/task:" + "1" * 5000, "/gpu:" + "1" * 5000, "/device:GPU:" + "1" * 5000, "cpu:" + "1" * 5000]
)
def test_an_absurdly_long_index_is_refused(text: str) -> None:
    """Files may contain any number; it must raise one of our errors."""
    with pytest.raises(InvalidArgumentError):
        canonical_device(text)


@pytest.mark.parametrize(
    ("text", "device"),
    [("/", ""), ("//", ""), ("/cpu:00", "/device:CPU:0"), ("/Cpu", "/device:CPU:*"), ("/meta:0", "/device:META:0")],
)
def test_a_leading_slash_means_a_tensorflow_name(text: str, device: str) -> None:
    """The string is parsed as TensorFlow's even if torch would accept it."""
    assert canonical_device(text) == device


def test_two_devices_in_one_name_are_refused() -> None:
    """The message is TensorFlow's."""
    with pytest.raises(InvalidArgumentError, match="Multiple device types are not allowed"):
        canonical_device("/cpu:0/gpu:1")
