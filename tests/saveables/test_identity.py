"""identity_of: when restoring one thing restores another."""

import torch

from torch_tfckpt.saveables.identity import identity_of


def test_the_same_memory_is_the_same_tensor() -> None:
    """A parameter, its data, a detached view: one memory."""
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    assert identity_of(parameter) == identity_of(parameter.data) == identity_of(parameter.detach())


def test_other_views_and_other_memory_are_other_tensors() -> None:
    """Offset, shape and strides count, and so does the storage."""
    tensor = torch.zeros(4, 4)
    others = [tensor[1:], tensor.t(), tensor.view(16), tensor[:2], tensor.clone(), tensor[:, 1:]]
    assert len({identity_of(each) for each in [tensor, *others]}) == 7


def test_tensors_without_memory_are_themselves_only() -> None:
    """Empty, meta, sparse and lazy tensors all have no address, and are not one tensor for that."""
    tensors = [
        torch.zeros(0), torch.zeros(0), torch.zeros(2, device="meta"), torch.zeros(2, device="meta"),
        torch.zeros(2).to_sparse(), torch.nn.UninitializedParameter(), torch.nn.UninitializedParameter(),
    ]  # fmt: skip
    assert len({identity_of(each) for each in tensors}) == 7
    assert all(identity_of(each) == identity_of(each) for each in tensors)
