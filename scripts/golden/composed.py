"""Folders composed of bytes that TensorFlow 2.21 cannot write; expected.json has what it reads."""

import hashlib
import struct
from pathlib import Path

import numpy as np
from tensorflow_process import RawTensor, TensorFlowProcess

from golden.messages import bundle_entry, encoded, fields_of
from golden.recipe import Recipe, in_tensorflow
from golden.tables import masked_crc, table, varint, with_snappy, with_values

GRAPH_KEY = b"_CHECKPOINTABLE_OBJECT_GRAPH"
BUNDLE_HEADER = bytes.fromhex("08011a020801")  # one shard, little-endian, written by version 1
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 124532216\n"


def numbers(name: str, dtype: str, *shape: int) -> RawTensor:
    """Return a tensor of small whole numbers, different for each name."""
    count = int(np.prod(shape))
    values = np.frombuffer(hashlib.shake_128(name.encode()).digest(count), np.int8)
    if dtype == "bfloat16":  # the upper half of a float32; whole numbers below 256 are exact
        halves = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
        return RawTensor(dtype, shape, halves.tobytes())
    return RawTensor(dtype, shape, values.astype(np.dtype(dtype).newbyteorder("<")).tobytes())


def compress_index(prefix: Path) -> None:
    """Rewrite the index with snappy."""
    index = prefix.with_name(prefix.name + ".index")
    index.write_bytes(with_snappy(index.read_bytes()))


def write_state(folder: Path, *names: str) -> None:
    """Write a state file with the given checkpoints, the last one as the latest."""
    lines = [f'model_checkpoint_path: "{names[-1]}"', *(f'all_model_checkpoint_paths: "{name}"' for name in names)]
    (folder / "checkpoint").write_text("\n".join(lines) + "\n", encoding="utf-8")


def estimator_tensors() -> dict[str, RawTensor]:
    """Return two dense layers with Adam's slots, named as by an Estimator of TensorFlow 1."""
    shapes = {"dense/kernel": (6, 5), "dense/bias": (5,), "dense_1/kernel": (5, 3), "dense_1/bias": (3,)}
    slots = {name + slot: shape for name, shape in shapes.items() for slot in ("", "/Adam", "/Adam_1")}
    values = {name: numbers(name, "float32", *shape) for name, shape in slots.items()}
    step = RawTensor.of(np.int64(46900))
    return values | {
        "beta1_power": numbers("1", "float32"),
        "beta2_power": numbers("2", "float32"),
        "global_step": step,
    }


def write_snappy(tensorflow: TensorFlowProcess, folder: Path) -> None:
    prefix = folder / "model.ckpt-46900"
    tensorflow.call("save_v2", str(prefix), estimator_tensors())
    compress_index(prefix)
    write_state(folder, "model.ckpt-0", prefix.name)  # the first one is deleted


def write_index_alone(tensorflow: TensorFlowProcess, folder: Path) -> None:
    prefix = folder / "lenet"
    tensorflow.call("save_v2", str(prefix), estimator_tensors())
    compress_index(prefix)
    (folder / "lenet.data-00000-of-00001").unlink()


def write_objects_index_alone(tensorflow: TensorFlowProcess, folder: Path) -> None:
    prefix = folder / "checkpoint-2"
    tensorflow.call("object_checkpoint", str(prefix))
    compress_index(prefix)
    (folder / "checkpoint-2.data-00000-of-00001").unlink()
    write_state(folder, prefix.name)


def write_lfs_pointer(tensorflow: TensorFlowProcess, folder: Path) -> None:
    prefix = folder / "weights"
    tensorflow.call("object_checkpoint", str(prefix))
    data = folder / "weights.data-00000-of-00001"
    data.write_text(LFS_POINTER.format(hashlib.sha256(data.read_bytes()).hexdigest()), encoding="utf-8")
    state = "\n".join(['model_checkpoint_path: "weights"', 'all_model_checkpoint_paths: "weights"'])
    (folder / "checkpoint").write_text(state, encoding="utf-8")  # without a final line feed, as after editing by hand


def write_missing_shard(tensorflow: TensorFlowProcess, folder: Path) -> None:
    prefix = folder / "model.ckpt-0"
    weights = {}
    for block in range(3):
        for part in ("q", "k", "v", "o"):
            name = f"decoder/block_{block:03d}/layer_000/SelfAttention/{part}"
            weights[name] = numbers(name, "bfloat16", 4, 6)
            weights[f"{name}_slot_v"] = numbers(f"{name}_slot_v", "float32", 4, 6)
    tensors = {"global_step": RawTensor.of(np.int64(1000)), **weights}
    tensorflow.call("sharded_save_by_saver", str(prefix), tensors, [0] + [1] * len(weights))
    compress_index(prefix)
    (folder / "model.ckpt-0.data-00001-of-00002").unlink()
    write_state(folder, prefix.name)


def write_reordered_graph(tensorflow: TensorFlowProcess, folder: Path) -> None:
    """Reverse the order of the fields of each object in the graph, which protobuf allows."""
    prefix = folder / "objects"
    tensorflow.call("object_checkpoint", str(prefix))
    data, index = folder / "objects.data-00000-of-00001", folder / "objects.index"
    graph = tensorflow.call("restore", str(prefix), [GRAPH_KEY.decode()])[0].strings()[0]
    objects = [(tag, encoded(sorted(fields_of(body), key=lambda each: -each[0]))) for tag, body in fields_of(graph)]
    reordered = encoded(objects)
    assert reordered != graph and len(reordered) == len(graph)
    data.write_bytes(data.read_bytes().replace(graph, reordered))
    crc = struct.pack("<I", string_tensor([reordered])[1])

    def change(key: bytes, value: bytes) -> bytes:
        return value[:-4] + crc if key == GRAPH_KEY else value  # the checksum is an entry's last field

    index.write_bytes(with_snappy(with_values(index.read_bytes(), change)))


def string_tensor(elements: list[bytes]) -> tuple[bytes, int]:
    """Return the bytes of a string tensor with 32-bit lengths, as until 2018, and their checksum."""
    lengths = b"".join(varint(len(element)) for element in elements)
    fixed = b"".join(struct.pack("<I", len(element)) for element in elements)
    stored, payload = masked_crc(fixed), b"".join(elements)
    return lengths + stored + payload, struct.unpack("<I", masked_crc(fixed + stored + payload))[0]


def write_old_strings(_: TensorFlowProcess, folder: Path) -> None:
    """Write strings with lengths of 0, 1 and 2 bytes as varints; the data is not in the order of names."""
    strings = {"word": [b"tensor"], "empty": [b""], "words": [b"first", b"", b"\0\xff", b"m" * 700]}
    floats = np.arange(-1.5, 4, dtype="<f4").tobytes()
    parts: list[tuple[str, int, tuple[int, ...], bytes, int]] = [
        (name, 7, (len(elements),), *string_tensor(elements)) for name, elements in strings.items()
    ]
    parts.append(("floats", 1, (2, 3), floats, struct.unpack("<I", masked_crc(floats))[0]))
    entries, data = {}, b""
    for name, dtype, shape, stored, crc in parts:
        entries[name.encode()] = bundle_entry(dtype, shape, len(data), len(stored), crc)
        data += stored
    (folder / "foo.data-00000-of-00001").write_bytes(data)
    (folder / "foo.index").write_bytes(table([(b"", BUNDLE_HEADER), *sorted(entries.items())]))


COMPOSED = (
    Recipe("snappy-index", "v2", "an index compressed with snappy; a state file that names a deleted checkpoint, too",
           "model.ckpt-46900", write_snappy),
    Recipe("reordered-object-graph", "object", "snappy; an object graph whose fields are in reverse order",
           "objects", write_reordered_graph),
    Recipe("strings-of-2017", "v2", "string lengths as 32-bit varints; data not in the order of names",
           "foo", write_old_strings),
    Recipe("object-graph-alone", "savedmodel", "a SavedModel without variables: only an object graph",
           "variables/variables", in_tensorflow("objects.write_graph_alone")),
    Recipe("missing-shard", "negative", "bfloat16; snappy; the second of two shards is missing",
           "model.ckpt-0", write_missing_shard),
    Recipe("index-alone", "negative", "snappy; no data file", "lenet", write_index_alone),
    Recipe("index-alone-of-objects", "negative", "an object-based checkpoint without its data file; snappy",
           "checkpoint-2", write_objects_index_alone),
    Recipe("git-lfs-pointer", "negative", "a git-lfs pointer instead of the data", "weights", write_lfs_pointer),
    Recipe("graph-of-tensorflow-0", "v1", "graph version 9, without a TensorFlow version; the version 1 file "
           "`checkpoint-5` and the state file `checkpoint`", "checkpoint-5",
           in_tensorflow("old_graphs.write_version_9")),
    Recipe("graph-of-tensorflow-0.12", "v1", "graph version 19: one version 1 shard; collections of messages; a "
           "variable that is not saved", "export-?????-of-00001", in_tensorflow("old_graphs.write_version_19")),
    Recipe("savedmodel-of-tensorflow-0", "savedmodel", "graph version 15; variables are a version 1 shard",
           "variables/variables-?????-of-00001", in_tensorflow("old_graphs.write_saved_model_of_version_15")),
    Recipe("graph-of-tensorflow-1.11", "v2", "graph version 27: a linear regression with its training operation",
           "model", in_tensorflow("old_graphs.write_version_27")),
    Recipe("savedmodel-of-tensorflow-1.5", "savedmodel", "graph version 26: a counter; signatures that change it and "
           "give a reference", "variables/variables", in_tensorflow("old_graphs.write_saved_model_of_version_26")),
)  # fmt: skip
