"""Denied access: a file that this user may not see is not a missing file.

Only permissions count here. A program that takes them for "there is no checkpoint" would start its training again.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.text import printable


@contextmanager
def denied_access() -> Iterator[None]:
    """Convert a PermissionError, for example of `Storage.exists`, to a FailedPreconditionError with a fix.

    Raises:
        FailedPreconditionError: the system, or a store, denies access.
    """
    try:
        yield
    except PermissionError as error:
        place = "" if error.filename is None else f"{printable(os.fsdecode(error.filename))}: "
        raise FailedPreconditionError(
            f"{place}{error.strerror or error}. Make it readable for this user, and let the user enter all directories "
            f"above it"
        ) from error


def is_denied_access(error: BaseException) -> bool:
    """Return whether an error means that access is denied to a file, which may well exist."""
    return isinstance(error, PermissionError) or isinstance(error.__cause__, PermissionError)
