"""Convert meta graphs to and from the text form, as TensorFlow writes it with as_text=True.

    saver_def { filename_tensor_name: "save/Const:0" ... }
    collection_def { key: "mine" value { any_list { value { [type.googleapis.com/tensorflow.SaverDef] { ... } } } } }

The contents of an Any are written under the name of its message, which begins with "tensorflow.", while this package's
messages have different names. Therefore text is read and written with copies of the messages under TensorFlow's
names, in a private descriptor pool: the default pool is left to TensorFlow, which may be loaded in the same process.

Source: text_format of Python's protobuf; write_graph in tensorflow/python/framework/graph_io.py.
"""

import functools
import io
import re
from collections.abc import Iterator
from typing import Final

from google.protobuf import any_pb2, duration_pb2, text_format, timestamp_pb2, wrappers_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError, EncodeError, Message
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from torch_tfckpt._proto import (
    checkpoint_state_pb2,
    control_flow_pb2,
    queue_runner_pb2,
    saved_model_pb2,
    saved_tensor_slice_pb2,
    tensor_bundle_pb2,
    trackable_object_graph_pb2,
    variable_pb2,
)
from torch_tfckpt.errors import DataLossError, UnimplementedError, error_context
from torch_tfckpt.meta_graph.raw import MAX_MESSAGE, RawMetaGraph
from torch_tfckpt.text import escaped

META_GRAPH: Final = "MetaGraphDef"
SAVED_MODEL: Final = "SavedModel"
GRAPH_DEF: Final = "GraphDef"
# Files with the messages that an Any may contain. Together with their imports, these are all files of _proto, and the
# files of protobuf itself that TensorFlow loads.
_FILES: Final[tuple[FileDescriptor, ...]] = tuple(
    module.DESCRIPTOR
    for module in (
        any_pb2, duration_pb2, timestamp_pb2, wrappers_pb2, checkpoint_state_pb2, control_flow_pb2, queue_runner_pb2,
        saved_model_pb2, saved_tensor_slice_pb2, tensor_bundle_pb2, trackable_object_graph_pb2, variable_pb2,
    )
)  # fmt: skip
_OURS: Final = "torch_tfckpt"
_THEIRS: Final = "tensorflow"


# A longer line is split into its tokens, and long strings in it into pieces: protobuf's reader takes a hundred bytes of
# memory for each character of a string or a run of white space, until it reaches the end of the string or run.
_LONG_LINE: Final = 1 << 16
_TOKENS: Final = re.compile(r"""(?P<string>"(?:[^"\\]++|\\.)*+"|'(?:[^'\\]++|\\.)*+')|#.*+|[^\s"'#]++|["']""")
_STRING_PIECES: Final = re.compile(
    r"(?:[^\\]|\\(?:[0-7]{1,3}|x[0-9a-fA-F]{1,2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|.)){1,16384}+"
)


def to_text(meta_graph: RawMetaGraph) -> str:
    """Return the text form, byte for byte as TensorFlow writes it with as_text=True.

    The contents of an Any are written as text if its message is known, else as bytes.

    Raises:
        DataLossError: the meta graph, or the contents of an Any in it, are damaged or too deeply nested.
        UnimplementedError: it has unknown fields, which text cannot represent.

    Cost: decodes all of it; a few times its size in memory; about 10 seconds for 1,000,000 fields.
    """
    return _text_of(meta_graph.raw, META_GRAPH, meta_graph.place)


def saved_model_to_text(meta_graph: RawMetaGraph) -> str:
    """Return the text form of the SavedModel that contains the meta graph."""
    return _text_of(memoryview(meta_graph.saved_model()), SAVED_MODEL, meta_graph.place)


def _text_of(raw: memoryview, kind: str, place: str) -> str:
    with error_context(place):
        if len(raw) >= MAX_MESSAGE:
            raise DataLossError(f"the {kind} is {len(raw):,} bytes, but must be smaller than {MAX_MESSAGE:,} bytes")
        message = _new(kind)
        try:
            message.ParseFromString(bytes(raw))
            return text_format.MessageToString(message, descriptor_pool=_pool(), message_formatter=_refuse_unknown)
        except DecodeError as error:
            raise DataLossError(f"a part of the meta graph is invalid: {error}. Copy the file again") from error
        except RecursionError as error:
            raise DataLossError("messages are too deeply nested for text. Write the binary form") from error


def _refuse_unknown(message: Message, indent: int, as_one_line: bool) -> None:
    """Raise UnimplementedError if a message has unknown fields; called before each message is printed."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise UnimplementedError(
            f"{message.DESCRIPTOR.name} has an unknown field {unknown[0].field_number}, which text cannot represent; a "
            f"newer version of TensorFlow may have added it. Write the binary form"
        )


def encode_text(text: bytes, kind: str) -> bytes:
    """Return the binary form of a message in text form.

    Args:
        text: The contents of the file.
        kind: META_GRAPH, SAVED_MODEL or GRAPH_DEF.

    Raises:
        DataLossError: `text` is not the text form of such a message.

    Cost: a few times its size in memory; about 10 seconds for 1,000,000 fields.
    """
    message = _new(kind)
    try:
        text_format.MergeLines(_lines(text), message, descriptor_pool=_pool())
        return message.SerializeToString(deterministic=True)
    except text_format.ParseError as error:
        raise DataLossError(_finding(error)) from error
    except DataLossError:
        raise
    except (RecursionError, EncodeError) as error:
        raise DataLossError("messages are too deeply nested or too large") from error
    except ValueError as error:  # a number out of range for its field
        raise DataLossError(escaped(str(error))) from error


def _finding(error: text_format.ParseError) -> str:
    """Return the error message of protobuf's reader, with the line that it quotes shortened."""
    message = str(error)
    return escaped(message if len(message) <= 300 else f"{message[:100]}...{message[-180:]}", 300)


def _lines(text: bytes) -> Iterator[str]:
    """Yield the lines; a list of them would be large for millions of empty lines."""
    for number, encoded in enumerate(io.BytesIO(text), 1):
        try:
            line = encoded.decode().strip()
        except UnicodeDecodeError as error:
            raise DataLossError(f"line {number} is not UTF-8: {error.reason}") from error
        if len(line) <= _LONG_LINE:
            yield line
        else:
            yield from _cut(line)


def _cut(line: str) -> Iterator[str]:
    """Yield each token of a line as a separate line; long strings in pieces, which protobuf concatenates."""
    for token in _TOKENS.finditer(line):
        string = token["string"]
        if string is None or len(string) <= _LONG_LINE:
            yield token[0]
        else:
            quote = string[0]
            for piece in _STRING_PIECES.finditer(string, 1, len(string) - 1):
                yield f"{quote}{piece[0]}{quote}"


def _new(name: str) -> Message:
    return GetMessageClass(_pool().FindMessageTypeByName(f"{_THEIRS}.{name}"))()


@functools.cache
def _pool() -> DescriptorPool:
    """Return a pool with the messages of _proto under TensorFlow's names."""
    pool = DescriptorPool()
    for file in _with_imports():
        proto = FileDescriptorProto()
        file.CopyToProto(proto)
        if proto.package == _OURS:
            proto.package = _THEIRS
            messages = list(proto.message_type)
            while messages:
                message = messages.pop()
                messages += message.nested_type
                for field in message.field:
                    if field.type_name.startswith(f".{_OURS}."):
                        field.type_name = f".{_THEIRS}.{field.type_name.removeprefix(f'.{_OURS}.')}"
        pool.Add(proto)  # type: ignore[no-untyped-call, unused-ignore]
    return pool


def _with_imports() -> list[FileDescriptor]:
    """Return `_FILES` and all their imports, imports first."""
    ordered: dict[str, FileDescriptor] = {}
    waiting = list(_FILES)
    while waiting:
        file = waiting[-1]
        missing = [other for other in file.dependencies if other.name not in ordered]
        if missing:
            waiting += missing
        else:
            ordered.setdefault(waiting.pop().name, file)
    return list(ordered.values())
