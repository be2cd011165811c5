"""Choice of the storage for a path."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]
from fsspec.registry import _registry  # type: ignore[import-untyped]

from torch_tfckpt.errors import FailedPreconditionError, InvalidArgumentError
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.local import LOCAL
from torch_tfckpt.storage.remote import FsspecStorage


@pytest.mark.parametrize(
    "path",
    [
        "model.ckpt", "/ckpt/model", "./s3://bucket/model", "dir/memory://x", "file:///ckpt/model", "C://ckpt",
        "c://ckpt", r"C:\ckpt\model", "memory:/x", "memory:", "S3://bucket", "://x", "1s://x", "s3:model",
        "simplecache::s3://b", "",
    ],
)  # fmt: skip
def test_ordinary_paths_are_local(path: str) -> None:
    """Everything that is not a URL, including a path that contains one; and file:// URLs."""
    assert storage_of(path) is LOCAL


def test_urls_are_remote() -> None:
    """All paths of a scheme share one storage, in every thread."""
    storage = storage_of("memory://a/b/model.ckpt")
    assert isinstance(storage, FsspecStorage)
    assert not storage.renames
    assert storage_of("memory://a") is storage
    file = storage.create("memory://test-choice/a::b")
    file.write(0, [b"x"])
    file.sync()
    with ThreadPoolExecutor(2) as threads:
        other = threads.submit(storage_of, "memory://test-choice/a::b").result()
    assert other.open("memory://test-choice/a::b").read(0, 1) == b"x"
    other.remove("memory://test-choice/a::b")
    assert not storage.exists("memory://test-choice/a::b")


def test_the_error_for_a_missing_driver_contains_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message contains the command to type."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.delitem(_registry, scheme, raising=False)
        with pytest.raises(InvalidArgumentError) as raised:
            storage_of(f"{scheme}://bucket/model")
        text = str(raised.value)
        assert text.startswith(f"the driver for {scheme}:// is not installed: ")
        assert text.endswith(f"pip install torch-tfckpt[remote] {package}")


def test_the_error_for_missing_fsspec_contains_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local paths do not need fsspec."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    for scheme, package in (("s3", " s3fs"), ("gs", " gcsfs"), ("az", " adlfs"), ("memory", "")):
        with pytest.raises(InvalidArgumentError) as raised:
            storage_of(f"{scheme}://bucket/model")
        assert str(raised.value) == (
            f"{scheme}:// needs fsspec, which is not installed. pip install torch-tfckpt[remote]{package}"
        )
    assert storage_of("model") is LOCAL


def test_an_unknown_scheme_is_refused() -> None:
    """The message explains how to write a local path of that name."""
    with pytest.raises(InvalidArgumentError) as raised:
        storage_of("nonsense://bucket/model")
    assert str(raised.value).startswith('"nonsense://bucket": Protocol not known: nonsense. ')
    assert str(raised.value).endswith("For a local path with that name, write ./nonsense://")


def test_a_driver_that_fails_to_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    """For example without credentials, whatever exception the library raises."""

    class Refusing(MemoryFileSystem):  # type: ignore[misc]
        protocol = "refusing"

        def __init__(self, **_: object) -> None:
            raise LookupError("no credentials")

    monkeypatch.setitem(_registry, "refusing", Refusing)
    with pytest.raises(
        FailedPreconditionError, match="refusing://bucket: the driver failed to start: LookupError: no cred"
    ):
        storage_of("refusing://bucket/model")


def test_listings_of_object_stores_are_not_cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cached listings may be minutes old. The drivers in our table support streams."""
    seen = []

    class Recording(MemoryFileSystem):  # type: ignore[misc]
        cachable = False

        def __init__(self, **options: object) -> None:
            super().__init__()
            seen.append(options)

    for scheme in ("s3", "s3a", "gs", "gcs", "az", "abfs", "other"):
        monkeypatch.setitem(_registry, scheme, Recording)
        storage = storage_of(f"{scheme}://bucket/model")
        assert seen.pop() == ({} if scheme == "other" else {"use_listings_cache": False})
        assert vars(storage)["_streams"] == (scheme in ("s3", "s3a", "gs", "gcs"))


# Python 3.12 warns about every fork of a process with threads; the test checks that such a fork works.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_gets_its_own_driver() -> None:
    """A driver's threads do not exist in the child, and its connections must not be shared."""
    before = storage_of("memory://a")
    child = os.fork()
    if not child:
        os._exit(storage_of("memory://a") is before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert storage_of("memory://a") is before
