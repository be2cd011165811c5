"""transformers, timm, torchvision, Lightning and Accelerate, imported beside a CPU build of torch.

The wheel of torchvision has no CPU operators for a torch that was built elsewhere, and fails while it registers their
fake implementations. Without these registrations the import works; only the operators themselves (nms, roi_align)
are missing, which no model of the tests uses. The others import torchvision, too, when it is installed.
"""

import importlib
import os
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any
from unittest import mock

import pytest
import torch

# Package -> the extra of pyproject.toml that installs it.
EXTRAS = {
    **dict.fromkeys(("transformers", "timm", "torchvision"), "families"),
    **dict.fromkeys(("lightning", "accelerate"), "integrations"),
}
REQUIRE_FAMILIES = "TORCH_TFCKPT_REQUIRE_FAMILIES"


@cache
def import_family(name: str) -> ModuleType:
    """Return the package, one of EXTRAS. Raises ModuleNotFoundError if it is not installed."""
    register = torch.library.register_fake

    def register_fake(operator: Any, *arguments: Any, **options: Any) -> Callable[[Any], Any]:
        if isinstance(operator, str) and operator.startswith("torchvision::"):
            return lambda function: function
        return register(operator, *arguments, **options)  # type: ignore[no-any-return]

    with mock.patch.object(torch.library, "register_fake", register_fake), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # First the one that fails without the patch, since the others import it.
        try:
            importlib.import_module("torchvision")
        except ModuleNotFoundError:
            if name == "torchvision":
                raise
        return importlib.import_module(name)


def family(name: str) -> ModuleType:
    """Return the package, one of EXTRAS; skip the test if it is not installed."""
    try:
        return import_family(name)
    except ModuleNotFoundError:
        reason = f"{name} is not installed; `scripts/install {EXTRAS[name]}` installs it"
        if os.environ.get(REQUIRE_FAMILIES) == "1":
            pytest.fail(f"{reason}, and {REQUIRE_FAMILIES}=1 requires it")
        pytest.skip(reason)
