"""Distinguish files that are missing or damaged from files that a system error makes inaccessible.

    ENOENT, ENOTDIR, ELOOP, ENAMETOOLONG        an answer: there is no such file
    DataLossError, from bytes that were read    an answer: the file is damaged
    EIO, EMFILE, EACCES, ESTALE, ETIMEDOUT      a refusal: nothing is known about the file; a retry may succeed

After a refusal, a caller must not continue with an older checkpoint, start from scratch, overwrite or delete anything.
A storage may raise a refusal as an OSError, or as a CheckpointError that was raised from an OSError (`__cause__`).
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from torch_tfckpt.errors import CheckpointError, FailedPreconditionError, NotFoundError
from torch_tfckpt.text import printable

# Errors of open(2) and stat(2) that mean that the file does not or cannot exist.
NOTHING_THERE: Final = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def says_nothing_there(error: OSError) -> bool:
    """Return whether a system error means that there is no such file. Drivers may omit `errno`."""
    return isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno in NOTHING_THERE


def is_refusal(error: BaseException) -> bool:
    """Return whether an error is a refusal, or was caused by one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__
    return cause is not None and not (says_nothing_there(cause) or isinstance(cause, IsADirectoryError))


@contextmanager
def refusals_named(path: str) -> Iterator[None]:
    """Convert refusals to FailedPreconditionErrors, and OSErrors for missing files to NotFoundErrors.

    Raises:
        FailedPreconditionError: a refusal; if it is an OSError, the message begins with `path`.
        NotFoundError: an OSError means that there is no such file.
        CheckpointError: any other CheckpointError is raised unchanged.
    """
    try:
        yield
    except CheckpointError as error:
        if isinstance(error, FailedPreconditionError) or not is_refusal(error):
            raise
        raise FailedPreconditionError(str(error)) from error
    except OSError as error:
        if says_nothing_there(error):
            raise NotFoundError(f"{printable(path)}: {error}. It was removed in the meantime; try again") from error
        raise FailedPreconditionError(
            f"{printable(path)}: {error}. It is unknown what is stored there. Try again, make it readable by this "
            f"user, or free the exhausted resource"
        ) from error
