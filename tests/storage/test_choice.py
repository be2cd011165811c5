"""Which storage a path means."""

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
    """Everything that is no URL, also what has the look of one farther in; and the URL of a local file."""
    assert storage_of(path) is LOCAL


def test_urls_are_remote() -> None:
    """One storage for all paths of a scheme, from all threads' point of view one place."""
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


def test_a_driver_that_is_missing_is_told_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """What to type is in the text."""
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    for scheme, package in (("s3", "s3fs"), ("gs", "gcsfs")):
        monkeypatch.delitem(_registry, scheme, raising=False)
        with pytest.raises(InvalidArgumentError) as raised:
            storage_of(f"{scheme}://bucket/model")
        text = str(raised.value)
        assert text.startswith(f"the driver for {scheme}:// is missing: ")
        assert text.endswith(f"pip install torch-tfckpt[remote] {package}")


def test_fsspec_that_is_missing_is_told_with_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Local paths need nothing."""
    monkeypatch.setitem(sys.modules, "fsspec", None)
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    for scheme, package in (("s3", " s3fs"), ("gs", " gcsfs"), ("az", " adlfs"), ("memory", "")):
        with pytest.raises(InvalidArgumentError) as raised:
            storage_of(f"{scheme}://bucket/model")
        assert str(raised.value) == (
            f"{scheme}:// is reached through fsspec, which is missing. pip install torch-tfckpt[remote]{package}"
        )
    assert storage_of("model") is LOCAL


def test_an_unknown_scheme_is_told() -> None:
    """With the way to write a local path of that name."""
    with pytest.raises(InvalidArgumentError) as raised:
        storage_of("nonsense://bucket/model")
    assert str(raised.value).startswith('"nonsense://bucket": Protocol not known: nonsense. ')
    assert str(raised.value).endswith("a local path of that name is written ./nonsense://")


def test_a_driver_that_does_not_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for want of credentials, whatever error that is in its library."""

    class Refusing(MemoryFileSystem):  # type: ignore[misc]
        protocol = "refusing"

        def __init__(self, **_: object) -> None:
            raise LookupError("no credentials")

    monkeypatch.setitem(_registry, "refusing", Refusing)
    with pytest.raises(
        FailedPreconditionError, match="refusing://bucket: the driver does not start: LookupError: no cred"
    ):
        storage_of("refusing://bucket/model")


def test_object_stores_keep_no_listings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their drivers would answer with what they heard minutes ago. Known ones take streams."""
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


# Python 3.12 warns of every fork of a process with threads; that such a fork works is what is tested.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_has_a_driver_of_its_own() -> None:
    """The threads of a driver do not exist in the child, and its connections must not be shared."""
    before = storage_of("memory://a")
    child = os.fork()
    if not child:
        os._exit(storage_of("memory://a") is before)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert storage_of("memory://a") is before
