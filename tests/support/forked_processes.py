"""Processes forked from one that has already imported torch and this package: they start in milliseconds, not seconds.

    context = forkserver()
    process = context.Process(target=function_of_a_module, args=(1, 2))

The process that forks is started by the first call and serves all tests of this process, so it has the environment and
the working directory of that moment. It has run no computation and has one thread.
"""

import multiprocessing
import os
import sys
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from typing import Final

# torch._dynamo is what the first step of an optimizer imports. The others load what `import torch_tfckpt` puts off.
PRELOADED: Final = (
    "torch",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch_tfckpt.saver",
    "torch_tfckpt.models.checkpoint",
)


def forkserver() -> ForkServerContext:
    """Return the context of multiprocessing whose processes are forked from one that has imported `PRELOADED`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    # It imports before it is told sys.path, and skips what it does not find.
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context
