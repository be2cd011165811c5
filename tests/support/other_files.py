"""Files that people have in place of a checkpoint, each with its kind: from their real writers where these are here.

Formats whose writers the tests do not depend on (ONNX, TensorFlow.js, 7z, zstd) are written by hand, by their
specification.
"""

import bz2
import gzip
import json
import lzma
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import safetensors.torch
import torch

from torch_tfckpt.format.file_kind import FileKind
from torch_tfckpt.format.wire import sized_tag

Writer = Callable[[Path], None]
LFS: Final = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 12345\n"


def _tar(mode: str) -> Writer:
    def write(path: Path) -> None:
        path.with_suffix(".member").write_text("hello")
        with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
            archive.add(path.with_suffix(".member"), "hello.txt")
        path.with_suffix(".member").unlink()

    return write


def _zip(*names: str) -> Writer:
    def write(path: Path) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name in names:
                archive.writestr(name, "hello " * 10)

    return write


def _bytes(content: bytes) -> Writer:
    def write(path: Path) -> None:
        path.write_bytes(content)

    return write


def _text(content: str) -> Writer:
    return _bytes(content.encode())


def _json(content: object) -> Writer:
    return _text(json.dumps(content))


def _pickle(protocol: int) -> Writer:
    return _bytes(pickle.dumps({"w": [1, 2.5, "x"]}, protocol))


def _numpy(path: Path) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, x=np.ones(3))


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def _message(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(sized_tag(number, len(payload)) + payload for number, payload in fields)


def _onnx() -> bytes:
    """ModelProto of onnx/onnx.proto: ir_version, producer_name, a graph of one node, opset_import."""
    node = _message((1, b"x"), (2, b"y"), (3, b"n"), (4, b"Relu"))
    return b"\x08\x08" + _message((2, b"pytorch"), (7, _message((1, node), (2, b"main"))), (8, b"\x0a\x00\x10\x11"))


def _flatbuffer(identifier: bytes) -> bytes:
    """Offset of the root | identifier | layout of 4 bytes | root: a table without fields."""
    return struct.pack("<I4sHHi", 12, identifier, 4, 4, 4) + bytes(16)


SHARDS: Final = {"metadata": {"total_size": 8}, "weight_map": {"w": "model-00001-of-00002.safetensors"}}
TFJS: Final = {
    "format": "layers-model", "modelTopology": {"class_name": "Sequential", "config": {}},
    "weightsManifest": [{"paths": ["group1-shard1of1.bin"], "weights": []}],
}  # fmt: skip

OTHER_FILES: Final[dict[str, tuple[FileKind, Writer]]] = {
    "model.safetensors": (
        FileKind.SAFETENSORS,
        lambda path: safetensors.torch.save_file({"w": torch.ones(2), "b": torch.zeros(1)}, path),
    ),
    "model.safetensors.index.json": (FileKind.SAFETENSORS_INDEX, _json(SHARDS)),
    "pytorch_model.bin.index.json": (
        FileKind.TORCH_INDEX,
        _json({**SHARDS, "weight_map": {"w": "pytorch_model-00001-of-00002.bin"}}),
    ),
    "model.pt": (FileKind.TORCH, lambda path: torch.save({"w": torch.ones(2)}, path)),
    "module.pth": (FileKind.TORCH, lambda path: torch.save(torch.nn.Linear(2, 2), path)),
    "old.bin": (
        FileKind.OLD_TORCH,
        lambda path: torch.save({"w": torch.ones(2)}, path, _use_new_zipfile_serialization=False),
    ),
    "arrays.npz": (FileKind.NPZ, _numpy),
    "array.npy": (FileKind.NPY, _npy),
    **{f"protocol-{protocol}.pkl": (FileKind.PICKLE, _pickle(protocol)) for protocol in range(6)},
    "files.zip": (FileKind.ZIP, _zip("a.txt", "b.txt")),
    "bert.zip": (FileKind.ZIPPED_CHECKPOINT, _zip("uncased/bert_model.ckpt.index", "uncased/vocab.txt")),
    "files.tar": (FileKind.TAR, _tar("w")),
    "files.tar.gz": (FileKind.GZIPPED_TAR, _tar("w:gz")),
    "file.gz": (FileKind.GZIP, _bytes(gzip.compress(b"hello" * 100))),
    "file.bz2": (FileKind.BZIP2, _bytes(bz2.compress(b"hello" * 100))),
    "empty.bz2": (FileKind.BZIP2, _bytes(bz2.compress(b""))),
    "file.xz": (FileKind.XZ, _bytes(lzma.compress(b"hello" * 100))),
    "file.zst": (FileKind.ZSTANDARD, _bytes(b"\x28\xb5\x2f\xfd\x04\x58\x29\x00\x00hello" + bytes(4))),
    "file.7z": (FileKind.SEVEN_ZIP, _bytes(b"7z\xbc\xaf\x27\x1c\x00\x04" + bytes(24))),
    "model.onnx": (FileKind.ONNX, _bytes(_onnx())),
    "model.gguf": (FileKind.GGUF, _bytes(b"GGUF" + bytes([3, 0, 0, 0]) + bytes(40))),
    "model.ort": (FileKind.FLATBUFFER, _bytes(_flatbuffer(b"ORTM"))),
    "model.lite": (FileKind.TFLITE, _bytes(_flatbuffer(b"TFL3"))),
    "model.json": (FileKind.TFJS, _json(TFJS)),
    "large.json": (FileKind.TFJS, _json({**TFJS, "more": "x" * 2_000_000})),
    "config.json": (FileKind.JSON, _json({"hidden_size": 768})),
    "m.tfckpt.json": (FileKind.SIDECAR, _json({"format": "torch_tfckpt sidecar", "version": 1, "tensors": {}})),
    "pointer": (FileKind.LFS_POINTER, _bytes(LFS)),
    "login.ckpt": (FileKind.HTML, _text("\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n")),
    "denied.ckpt": (FileKind.XML, _text('<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>')),
    "notes.txt": (FileKind.TEXT, _text("Größe der Modelle\nnode 1: fast\n" * 10)),
    "checkpoint": (FileKind.STATE, _text('model_checkpoint_path: "model-7"\n')),
    "saved_model.pbtxt": (FileKind.SAVED_MODEL_TEXT, _text("saved_model_schema_version: 1\nmeta_graphs {\n}\n")),
    "graph.meta.txt": (FileKind.META_GRAPH_TEXT, _text("# a comment\nmeta_info_def {\n}\n")),
}
