"""Choose the storage for a path: local files, or an fsspec driver for a URL."""

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
    """fsspec driver for a URL scheme."""

    package: str  # name on PyPI
    streams: bool  # its files support `autocommit=False`: nothing is visible before `commit`


_S3, _GOOGLE, _AZURE = _Driver("s3fs", True), _Driver("gcsfs", True), _Driver("adlfs", False)
_DRIVERS: Final = {"s3": _S3, "s3a": _S3, "gs": _GOOGLE, "gcs": _GOOGLE, "az": _AZURE, "abfs": _AZURE}


def storage_of(path: str) -> Storage:
    """Return the storage for `path`: LOCAL, or one that uses fsspec's driver for `scheme://...`.

    Args:
        path: As returned by `storage.names.fspath`. `storage.names.is_url` decides which paths are URLs.

    Returns:
        One storage per scheme (and per host or account that the URLs name); one per thread if the driver is not
        thread-safe. Drivers are configured as fsspec documents: environment variables, `~/.config/fsspec`.

    Raises:
        InvalidArgumentError: fsspec or the driver for the scheme is not installed, or there is no such driver.
        FailedPreconditionError: the driver fails to start, for example without credentials.

    Cost: the first call for a scheme imports the driver; later calls take microseconds.
    Thread safety: safe. After a fork the child opens its own connections.
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
        raise InvalidArgumentError(f"{scheme}:// needs fsspec, which is not installed. {install}") from error
    # Do not cache listings: checkpoints that other processes add or delete must be seen. This option is only for the
    # drivers listed above: others would pass an unknown option on to their servers.
    options = {"use_listings_cache": False} if driver else {}
    try:
        # Omit the rest of the path, because fsspec interprets "::" in it. fsspec caches the file systems it returns.
        files, _ = url_to_fs(f"{scheme}://{authority}", **options)
    except ImportError as error:
        raise InvalidArgumentError(f"the driver for {scheme}:// is not installed: {error}. {install}") from error
    except ValueError as error:
        raise InvalidArgumentError(
            f"{quoted(f'{scheme}://{authority}')}: {error}. Fix the URL or the driver's configuration. For a local "
            f"path with that name, write ./{scheme}://"
        ) from error
    except Exception as error:
        raise FailedPreconditionError(
            f"{printable(f'{scheme}://{authority}')}: the driver failed to start: {type(error).__name__}: {error}. "
            f"Configure it as fsspec's documentation describes"
        ) from error
    return _storage(files, scheme, driver is not None and driver.streams, os.getpid())


@functools.cache
def _storage(files: object, scheme: str, streams: bool, process: int) -> FsspecStorage:
    # One per process: after a fork, older versions of fsspec treat the parent's and the child's file system as equal.
    return FsspecStorage(files, scheme, streams=streams)  # type: ignore[arg-type]
