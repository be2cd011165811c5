"""identity_of: keys that are equal if restoring one object restores the other."""

import torch

from torch_tfckpt.saveables.identity import identity_of


def test_the_same_memory_is_the_same_tensor() -> None:
    """A parameter, its data and a detached view share their memory."""
    parameter = torch.nn.Parameter(torch.zeros(2, 3))
    assert identity_of(parameter) == identity_of(parameter.data) == identity_of(parameter.detach())


def test_other_views_and_other_memory_are_other_tensors() -> None:
    """Offset, shape, strides and storage are compared."""
    tensor = torch.zeros(4, 4)
    others = [tensor[1:], tensor.t(), tensor.view(16), tensor[:2], tensor.clone(), tensor[:, 1:]]
    assert len({identity_of(each) for each in [tensor, *others]}) == 7


def test_tensors_without_memory_equal_only_themselves() -> None:
    """Empty, meta, sparse and lazy tensors all have no address, but are different tensors."""
    tensors = [
        torch.zeros(0), torch.zeros(0), torch.zeros(2, device="meta"), torch.zeros(2, device="meta"),
        torch.zeros(2).to_sparse(), torch.nn.UninitializedParameter(), torch.nn.UninitializedParameter(),
    ]  # fmt: skip
    assert len({identity_of(each) for each in tensors}) == 7
    assert all(identity_of(each) == identity_of(each) for each in tensors)
