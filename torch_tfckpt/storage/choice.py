"""Which storage a path means: the files of this machine, or those behind a URL."""

import functools
import os
from typing import Final, NamedTuple

from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.names import is_url
from torch_tfckpt.storage.protocol import Storage
from torch_tfckpt.storage.remote import FsspecStorage
from torch_tfckpt.text import printable, quoted


class _Driver(NamedTuple):
    """What is known of the package behind a scheme."""

    package: str  # as pip names it
    streams: bool  # its files take `autocommit=False`: nothing is visible before their `commit`


_S3, _GOOGLE, _AZURE = _Driver("s3fs", True), _Driver("gcsfs", True), _Driver("adlfs", False)
_DRIVERS: Final = {"s3": _S3, "s3a": _S3, "gs": _GOOGLE, "gcs": _GOOGLE, "az": _AZURE, "abfs": _AZURE}


def storage_of(path: str) -> Storage:
    """LOCAL for ordinary paths; for `scheme://...` the storage that fsspec's driver of that scheme reaches.

    Args:
        path: As `storage.names.fspath` gives it. `storage.names.is_url` tells which of them are URLs.

    Returns:
        One storage for all paths of a scheme, as long as their URLs name no hosts or accounts apart; one for each
        thread where the driver is not made for several. Drivers are configured as fsspec documents it: environment
        variables, `~/.config/fsspec`.

    Raises:
        InvalidArgumentError: fsspec, or the driver of the scheme, is not installed, or there is no such driver.
        FailedPreconditionError: the driver does not start, for instance for want of credentials.

    Cost: importing the driver at the first call of a scheme, then microseconds.
    Threads: safe. After a fork the child gets connections of its own.
    """
    if not is_url(path):
        return LOCAL
    scheme, _, rest = path.partition("://")
    return _remote(scheme, rest.partition("/")[0])


def _remote(scheme: str, authority: str) -> Storage:
    driver = _DRIVERS.get(scheme)
    install = f"pip install torch-tfckpt[remote]{f' {driver.package}' if driver else ''}"
    try:
        from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    except ImportError as error:
        raise InvalidArgumentError(f"{scheme}:// is reached through fsspec, which is missing. {install}") from error
    # Listings are not kept: the checkpoints of another process, and the loss of them, must be seen. The other drivers
    # hand options that they do not know to their servers.
    options = {"use_listings_cache": False} if driver else {}
    try:
        # Without the rest of the path: fsspec gives "::" in it a meaning of its own. Instances are kept by fsspec.
        files, _ = url_to_fs(f"{scheme}://{authority}", **options)
    except ImportError as error:
        raise InvalidArgumentError(f"the driver for {scheme}:// is missing: {error}. {install}") from error
    except ValueError as error:
        raise InvalidArgumentError(
            f"{quoted(f'{scheme}://{authority}')}: {error}. Mend the URL or the driver's configuration; a local "
            f"path of that name is written ./{scheme}://"
        ) from error
    except Exception as error:
        raise FailedPreconditionError(
            f"{printable(f'{scheme}://{authority}')}: the driver does not start: {type(error).__name__}: {error}. "
            f"Configure it as fsspec says"
        ) from error
    return _storage(files, scheme, driver is not None and driver.streams, os.getpid())


@functools.cache
def _storage(files: object, scheme: str, streams: bool, process: int) -> FsspecStorage:
    # By process: after a fork older versions of fsspec call the parent's file system and the child's equal.
    return FsspecStorage(files, scheme, streams=streams)  # type: ignore[arg-type]
