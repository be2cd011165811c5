"""torch.distributed.checkpoint (DCP) in a single process, as a peer."""

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.staging import AsyncStager, DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import async_save as dcp_async_save
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

# DCP warns each time, even with `no_dist`.
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")


def dcp_writer(path: Path, *, sync: bool) -> FileSystemWriter:
    """Return a writer of one file by each of four threads; the default is one thread."""
    return FileSystemWriter(path, sync_files=sync, thread_count=4)


def save_by_dcp(state: Mapping[str, torch.Tensor], path: Path, *, sync: bool) -> None:
    """torch.distributed.checkpoint.save in a single process."""
    dcp_save(dict(state), storage_writer=dcp_writer(path, sync=sync), no_dist=True)


def dcp_stager(*, cuda: bool) -> DefaultStager:
    """Return a stager that reuses its host memory, pinned if useful; DCP's default allocates each time."""
    return DefaultStager(
        StagingOptions(
            use_pinned_memory=cuda, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=cuda
        )
    )


def async_save_by_dcp(
    state: Mapping[str, torch.Tensor], path: Path, *, stager: AsyncStager | None
) -> Callable[[], object]:
    """Run DCP's async_save; return when the state may change, with a function that waits for the end."""
    future = dcp_async_save(dict(state), storage_writer=dcp_writer(path, sync=True), async_stager=stager, no_dist=True)
    assert isinstance(future, Future), "staging is asynchronous"
    return future.result


def load_by_dcp(path: Path, like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the values of torch.distributed.checkpoint.load in host memory."""
    state: dict[str, Any] = {name: torch.empty_like(tensor, device="cpu") for name, tensor in like.items()}
    dcp_load(state, storage_reader=FileSystemReader(path), no_dist=True)
    return state
