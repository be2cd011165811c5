"""Kinds of files: what each is, and how to read it.

`recognise.recognise` finds the kind of a file from its bytes. The table in this module has the wording for messages:
what the file is, and how to read it. Update it when the package supports another kind.
"""

import enum
from typing import Final

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.text import printable


class Reading(enum.Enum):
    """The part of a file that this package can read."""

    TENSORS = enum.auto()
    GRAPH = enum.auto()
    NOTHING = enum.auto()


_CONVERT: Final = "`tfckpt ls` lists it, and `tfckpt convert` converts it to a checkpoint"
_KERAS: Final = "`tfckpt ls` lists it, and `tfckpt show --config` its layers"
_NO_VALUES: Final = "It has no values; `tfckpt meta` shows it. Pass the checkpoint itself to read its tensors"
_NO_GRAPHS: Final = (
    "Its weights, if any, are constants of the graph: torch_tfckpt.import_graph_def imports it. To read tensors, pass "
    "the checkpoint that it was made from"
)
_UNPACK: Final = "Unpack it: tar xf FILE. Then pass a checkpoint in it"
_NAME_ANOTHER: Final = "Not supported. Pass a checkpoint instead: its prefix, its directory or one of its files"


class FileKind(enum.Enum):
    """One kind of file.

    Attributes:
        what: What the file is, as in "model.h5 is ...".
        hint: How to read the file, in one or two sentences without the final period.
        reading: The part of the file that this package can read.
    """

    def __init__(self, what: str, hint: str, reading: Reading = Reading.NOTHING) -> None:
        self.what, self.hint, self.reading = what, hint, reading

    # TensorFlow checkpoints, and damaged files that were probably checkpoints.
    INDEX = "the index of a TensorFlow checkpoint (version 2)", "`tfckpt ls` lists its tensors", Reading.TENSORS
    VERSION_1 = "a TensorFlow checkpoint (version 1)", "`tfckpt ls` lists its tensors", Reading.TENSORS
    TABLE = "a table file, as TensorFlow checkpoints are", "`tfckpt ls` lists its tensors if it is one", Reading.TENSORS
    CUT_TABLE = "a damaged or truncated TensorFlow checkpoint or index", "Copy it again"
    EMPTY = "an empty file", "Copy it again"
    ZEROS = "a file that begins and ends with zero bytes, probably from an interrupted copy", "Copy it again"
    UNKNOWN = (
        "a file of an unknown kind. The data file of a TensorFlow checkpoint looks like this, and so does a damaged "
        "file",
        "Pass the .index file next to it, or copy the file again",
    )
    # Files that belong to checkpoints.
    STATE = (
        "a `checkpoint` state file, which names the newest checkpoint of its directory",
        "Run `tfckpt latest` on the directory, or `tfckpt ls`",
        Reading.TENSORS,
    )
    META_GRAPH = "a meta graph (MetaGraphDef, as in .meta files)", _NO_VALUES, Reading.GRAPH
    META_GRAPH_TEXT = "a meta graph in text form (MetaGraphDef)", _NO_VALUES, Reading.GRAPH
    SAVED_MODEL = (
        "the graph of a SavedModel (saved_model.pb)",
        "`tfckpt meta` shows it. Its values are in the directory `variables` next to it: pass that, or the SavedModel",
        Reading.GRAPH,
    )
    SAVED_MODEL_TEXT = (
        "the graph of a SavedModel in text form (saved_model.pbtxt)",
        "`tfckpt meta` shows it. Its values are in the directory `variables` next to it: pass that, or the SavedModel",
        Reading.GRAPH,
    )
    SIDECAR = (
        "a sidecar of torch_tfckpt, with the values that the converted file next to it cannot store",
        "It is read together with that file. Pass that file instead",
    )
    # TensorFlow's other files.
    GRAPH = "a TensorFlow graph without variables (GraphDef), such as a frozen graph", _NO_GRAPHS
    GRAPH_TEXT = "a TensorFlow graph without variables in text form (GraphDef)", _NO_GRAPHS
    KERAS = "a Keras model (.keras)", _KERAS, Reading.TENSORS
    KERAS_HDF5 = "an HDF5 file (.h5) with a Keras model or its weights", _KERAS, Reading.TENSORS
    KERAS_INDEX = "the index of several HDF5 files with Keras weights", "`tfckpt ls` lists it", Reading.TENSORS
    HDF5 = "an HDF5 file, such as Keras's .h5 files", "`tfckpt ls` lists it if it is one of Keras", Reading.TENSORS
    KERAS_CONFIG = (
        "the description of a Keras model in JSON, without its weights",
        "Not supported. keras.models.model_from_json reads it; pass the file with the weights",
    )
    TFLITE = "a TensorFlow Lite model (a flatbuffer)", "Not supported. Open it with tf.lite.Interpreter"
    TFJS = (
        "the model.json of a TensorFlow.js model",
        "Not supported. Convert it to a SavedModel or to Keras with tensorflowjs_converter, and read that",
    )
    EVENTS = "an event file of TensorBoard", "Not supported. Open it with TensorBoard; checkpoints are separate files"
    TFRECORD = (
        "a TFRecord file, which contains data, not the weights of a model",
        "Not supported. Open it with tf.data.TFRecordDataset",
    )
    # Files that PyTorch and others write.
    SAFETENSORS = "a safetensors file", f"safetensors.torch.load_file reads it; {_CONVERT}", Reading.TENSORS
    SAFETENSORS_INDEX = "the index of several safetensors files", _CONVERT, Reading.TENSORS
    TORCH = "a PyTorch file (torch.save)", f"torch.load(FILE, weights_only=True) reads it; {_CONVERT}", Reading.TENSORS
    TORCH_INDEX = "the index of several PyTorch files", "Pass one of those files instead; `tfckpt ls` lists it"
    OLD_TORCH = (
        "a file of PyTorch before 1.6",
        "Not supported. Load it with torch.load(FILE, weights_only=True) and save it again with torch.save",
    )
    TORCHSCRIPT = (
        "a TorchScript module (torch.jit.save)",
        "Not supported. Load it with torch.jit.load, and pass its state_dict() to torch_tfckpt.save_file",
    )
    PICKLE = (
        "a pickle file",
        "Not supported, because reading a pickle can run arbitrary code. If you trust it, load it in its own program, "
        "and save its tensors with torch_tfckpt.save_file",
    )
    NPZ = "a .npz archive of numpy arrays", f"numpy.load reads it; {_CONVERT}", Reading.TENSORS
    NPY = "a .npy file, one numpy array", "Not supported. Save it with numpy.savez, and pass the .npz file"
    ONNX = "an ONNX model", "Not supported. Open it with onnx.load"
    GGUF = "a GGUF file, as llama.cpp uses", "Not supported. Open it with the gguf package"
    FLATBUFFER = "a flatbuffer file, as some programs for mobile devices use", _NAME_ANOTHER
    # Archives.
    ZIP = "a zip archive", "Unpack it: python -m zipfile -e FILE DIRECTORY. Then pass a checkpoint in it"
    ZIPPED_CHECKPOINT = (
        "a zip archive with a TensorFlow checkpoint in it",
        "Unpack it: python -m zipfile -e FILE DIRECTORY. Then pass the checkpoint",
    )
    TAR = "a tar archive", _UNPACK
    GZIPPED_TAR = "a tar archive compressed with gzip", _UNPACK
    GZIP = "a file compressed with gzip", "Unpack it: gunzip FILE. Then pass the result"
    BZIP2 = "a file compressed with bzip2", "Unpack it: bunzip2 FILE, or tar xf FILE. Then pass the result"
    XZ = "a file compressed with xz", "Unpack it: unxz FILE, or tar xf FILE. Then pass the result"
    ZSTANDARD = "a file compressed with zstd", "Unpack it: unzstd FILE, or tar xf FILE. Then pass the result"
    SEVEN_ZIP = "a 7z archive", "Unpack it: 7z x FILE. Then pass a checkpoint in it"
    # Text.
    LFS_POINTER = "a git-lfs pointer, not the file itself", "Run `git lfs pull` in its repository"
    HTML = (
        "an HTML page, such as the login or error page of a failed download",
        "Open it in a browser to read the message, and download the file again",
    )
    XML = (
        "an XML document, such as the error message of a failed download",
        "Open it to read the message, and download the file again",
    )
    JSON = "a JSON file", _NAME_ANOTHER
    TEXT = "a text file", _NAME_ANOTHER

    @property
    def is_keras(self) -> bool:
        """Whether the file is read like a checkpoint, by `keras_files`."""
        return self in (FileKind.KERAS, FileKind.KERAS_HDF5, FileKind.KERAS_INDEX, FileKind.HDF5)

    @property
    def is_foreign(self) -> bool:
        """Whether the file is anything other than a table of a checkpoint, intact or damaged."""
        return self not in _MAY_BE_CHECKPOINTS


_MAY_BE_CHECKPOINTS: Final = frozenset(
    {
        FileKind.INDEX, FileKind.VERSION_1, FileKind.TABLE, FileKind.CUT_TABLE, FileKind.EMPTY, FileKind.ZEROS,
        FileKind.UNKNOWN,
    }
)  # fmt: skip

# Extensions that always mean the same kind.
_ENDINGS: Final = {
    ".safetensors": FileKind.SAFETENSORS,
    ".pt": FileKind.TORCH,
    ".pth": FileKind.TORCH,
    ".bin": FileKind.TORCH,
    ".npz": FileKind.NPZ,
    ".npy": FileKind.NPY,
    ".h5": FileKind.HDF5,
    ".hdf5": FileKind.HDF5,
    ".keras": FileKind.KERAS,
    ".tflite": FileKind.TFLITE,
    ".onnx": FileKind.ONNX,
    ".pkl": FileKind.PICKLE,
    ".pickle": FileKind.PICKLE,
    ".zip": FileKind.ZIP,
}


_WRITERS: Final = {
    FileKind.SAFETENSORS: "safetensors.torch.save_file",
    FileKind.TORCH: "torch.save",
    FileKind.NPZ: "numpy.savez",
    FileKind.NPY: "numpy.save",
    FileKind.HDF5: "Keras's save_weights",
    FileKind.KERAS: "Keras's save",
}
_CONVERTIBLE: Final = frozenset(
    (FileKind.SAFETENSORS, FileKind.TORCH, FileKind.NPZ)
)  # torch_tfckpt.convert writes these


def promised_kind(path: str) -> FileKind | None:
    """Return the kind of file that the extension of `path` indicates, ignoring case; None if unknown."""
    name = path.replace("\\", "/").rpartition("/")[2]
    stem, dot, ending = name.rpartition(".")
    return _ENDINGS.get(f"{dot}{ending}".lower()) if stem else None


def refuse_other_ending(path: str, function: str) -> None:
    """Raise InvalidArgumentError if a checkpoint's prefix has the extension of another kind of file.

    Args:
        path: The prefix that was given.
        function: Name of the function that was called to write it.
    """
    kind = promised_kind(path)
    if kind is None:
        return
    ending = path.rpartition(".")[2]
    writer = _WRITERS.get(kind)
    other = f"{writer} writes .{ending} files. " if writer else ""
    convert = "torch_tfckpt.convert converts a checkpoint to such a file. " if kind in _CONVERTIBLE else ""
    raise InvalidArgumentError(
        f"{printable(path)}: .{ending} is the extension of {kind.what}, but {function} writes a TensorFlow checkpoint. "
        f"{other}{convert}For a checkpoint, use a different prefix, such as {printable(path[: -len(ending) - 1])}.ckpt"
    )


def not_wanted(path: str, kind: FileKind, wanted: str = "a TensorFlow checkpoint") -> str:
    """Return the error message for a file of the wrong kind: what it is, what was expected, and a hint."""
    return f"{printable(path)} is {kind.what}, not {wanted}. {kind.hint}"
