"""Identities of converted files: equal if the files have the same tensors, otherwise different.

A sidecar, and the index of several .safetensors files, contain the identity of the files that they belong to, so a mix
of files from two conversions, for instance after copying, is an error. The same conversion always gives the same bytes.

- .safetensors: a digest of all tensors, in the metadata of each file if there are several files or a sidecar.
- .pt and .npz: a digest of the names, sizes and checksums in the directory of the archive.
- TensorFlow checkpoints: a digest of the checksums in the index.
"""

import hashlib
import zipfile
from collections.abc import Iterable, Mapping
from typing import Final

IDENTITY_KEY: Final = "torch_tfckpt"
IDENTITY_SIZE: Final = 16  # hexadecimal digits


def identity_of(parts: Iterable[str]) -> str:
    """Return a digest of the strings, whatever their order."""
    digest = hashlib.blake2b(digest_size=IDENTITY_SIZE // 2)
    for part in sorted(part.encode("utf-8", "surrogatepass") for part in parts):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def identity_of_sums(sums: Mapping[str, int]) -> str:
    """Return the identity of tensors, given name -> checksum."""
    return identity_of(f"{checksum} {name}" for name, checksum in sums.items())


def identity_of_archive(members: Iterable[zipfile.ZipInfo]) -> str:
    """Return the identity of a zip archive, from its directory."""
    return identity_of(f"{member.CRC} {member.file_size} {member.filename}" for member in members)
