"""Recognise text files: protobuf messages in text form, JSON by its keys, web pages, git-lfs pointers.

Source: https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md; huggingface_hub/serialization/_base.py (index
files); tfjs-core/src/io/types.ts (ModelJSON).
"""

import codecs
import json
import re
from typing import Any, Final

from torch_tfckpt.format.file_kind import FileKind

LFS_POINTER: Final = b"version https://git-lfs"
SIDECAR_FORMAT: Final = "torch_tfckpt sidecar"
_HEAD: Final = 4096  # bytes that are checked for control characters
_NOT_TEXT: Final = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")
# In the text form of a message 0x1c to 0x1f are white space, as in protobuf's reader.
_NOT_MESSAGE_TEXT: Final = re.compile(rb"[\x00-\x08\x0e-\x1b\x7f]")
_FIRST_NAME: Final = re.compile(r"(?:\s++|#.*+)*+([A-Za-z_]\w*+)?")
# The first field of a message in text form, with the character after it: "node" alone may begin any text.
_FIRST_FIELD: Final = re.compile(r"(?:\s++|#.*+)*+([a-z_]++)\s*+([:{])")
_MESSAGES: Final = {
    "model_checkpoint_path:": FileKind.STATE,
    "all_model_checkpoint_paths:": FileKind.STATE,
    "saved_model_schema_version:": FileKind.SAVED_MODEL_TEXT,
    "meta_graphs{": FileKind.SAVED_MODEL_TEXT,
    "meta_info_def{": FileKind.META_GRAPH_TEXT,
    "graph_def{": FileKind.META_GRAPH_TEXT,
    "saver_def{": FileKind.META_GRAPH_TEXT,
    "collection_def{": FileKind.META_GRAPH_TEXT,
    "node{": FileKind.GRAPH_TEXT,
    "library{": FileKind.GRAPH_TEXT,
    "versions{": FileKind.GRAPH_TEXT,
}
_KEY: Final = re.compile(r'"((?:[^"\\]|\\.){0,200}+)"\s*+:')
_TFJS_KEYS: Final = frozenset(("modelTopology", "weightsManifest"))
_PAGE: Final = re.compile(r"<(?:!doctype html|html|head|body)\b", re.IGNORECASE)


def looks_like_text(content: bytes) -> bool:
    """Return whether the beginning of a file has no control characters, as in a message in text form."""
    return _NOT_MESSAGE_TEXT.search(content, 0, _HEAD) is None


def first_name(text: bytes) -> str:
    """Return the name of the first field of a message in text form, after comments; "" if not found."""
    match = _FIRST_NAME.match(text[:_HEAD].decode("utf-8", "replace"))
    return match[1] or "" if match is not None else ""


def as_text(head: bytes, tail: bytes, size: int) -> str | None:
    """Return the beginning of a text file; None if it is not UTF-8 or has control characters in head or tail."""
    if _NOT_TEXT.search(head) or _NOT_TEXT.search(tail):
        return None
    try:
        # The last character of `head` may be incomplete.
        text = codecs.getincrementaldecoder("utf-8")().decode(head, final=len(head) == size)
    except UnicodeDecodeError:
        return None
    return text.removeprefix("\ufeff")


def text_kind(text: str, content: bytes | None) -> FileKind:
    """Return the kind of a text file.

    Args:
        text: The beginning of the file.
        content: The whole file if it is short enough to parse, else None.
    """
    if text.encode().startswith(LFS_POINTER):
        return FileKind.LFS_POINTER
    begin = text.lstrip()
    if begin.startswith("<"):
        if _PAGE.search(begin, 0, 2000):
            return FileKind.HTML
        return FileKind.XML if begin.startswith("<?xml") else FileKind.TEXT
    if begin.startswith(("{", "[")):
        return _json_kind(begin, content)
    field = _FIRST_FIELD.match(text)
    return _MESSAGES.get(f"{field[1]}{field[2]}", FileKind.TEXT) if field else FileKind.TEXT


def _json_kind(begin: str, content: bytes | None) -> FileKind:
    """Recognise JSON by the keys of the outermost object; for a large file, by all keys at its beginning."""
    if content is None:
        keys, parsed = set(_KEY.findall(begin)), None
    else:
        parsed = _parsed(content)
        if parsed is None:
            return FileKind.TEXT
        keys = set(parsed) if isinstance(parsed, dict) else set()
    if "weight_map" in keys:
        named = list(parsed["weight_map"].values()) if parsed and isinstance(parsed["weight_map"], dict) else [begin]
        first = str(named[0]) if named else ""
        if ".h5" in first:
            return FileKind.KERAS_INDEX
        return FileKind.SAFETENSORS_INDEX if ".safetensors" in first else FileKind.TORCH_INDEX
    if keys & _TFJS_KEYS:
        return FileKind.TFJS
    if parsed and keys >= {"format", "tensors"} and parsed["format"] == SIDECAR_FORMAT:
        return FileKind.SIDECAR
    if keys >= {"class_name", "config"}:
        return FileKind.KERAS_CONFIG
    return FileKind.JSON


def _parsed(content: bytes) -> Any:
    """Return the value of a JSON document; None if it is not valid."""
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
