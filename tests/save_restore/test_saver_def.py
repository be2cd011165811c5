"""SaverDef of a saver: scopes, and which fields are names of nodes."""

import pytest

from torch_tfckpt._proto.queue_runner_pb2 import QueueRunnerDef
from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.save_restore.saver_def import (
    DEFAULT_FILENAME,
    check_scope,
    default_names,
    in_scope,
    naming_nodes,
    out_of_scope,
)

SETTINGS = SaverDef(
    filename_tensor_name="save/Const:0",
    save_tensor_name="save/control_dependency:0",
    restore_op_name="save/restore_all",
    max_to_keep=3,
    sharded=True,
    keep_checkpoint_every_n_hours=0.5,
    version=SaverDef.V1,
)


def in_a() -> SaverDef:
    made = SaverDef()
    made.CopyFrom(SETTINGS)
    made.filename_tensor_name = "a/save/Const:0"
    made.save_tensor_name = "a/save/control_dependency:0"
    made.restore_op_name = "a/save/restore_all"
    return made


@pytest.mark.parametrize("scope", ["a", "a/"])
def test_into_a_scope_and_out_of_it(scope: str) -> None:
    """Only the names change, and in a copy."""
    assert in_scope(SETTINGS, scope) == in_a()
    assert out_of_scope(in_a(), scope) == SETTINGS
    assert SETTINGS.restore_op_name == "save/restore_all"


@pytest.mark.parametrize("scope", [None, ""])
def test_into_no_scope(scope: str | None) -> None:
    """None and "" return an equal copy."""
    copy = in_scope(SETTINGS, scope)
    assert copy == SETTINGS and copy is not SETTINGS


@pytest.mark.parametrize("name", ["filename_tensor_name", "save_tensor_name", "restore_op_name"])
def test_out_of_another_scope(name: str) -> None:
    """The result is None if one of the names is in another scope."""
    settings = in_a()
    setattr(settings, name, "ab/x:0")
    assert out_of_scope(settings, "a") is None


@pytest.mark.parametrize("thing", [None, 3, "save", QueueRunnerDef(), b""], ids=lambda thing: type(thing).__name__)
def test_another_type_is_rejected(thing: object) -> None:
    """The error contains the type."""
    with pytest.raises(InvalidArgumentError, match=f"must be a saver_pb2.SaverDef: got {type(thing).__name__}"):
        in_scope(thing, None)


@pytest.mark.parametrize("name", ["save_tensor_name", "restore_op_name"])
def test_settings_without_names(name: str) -> None:
    """A missing name raises in TensorFlow's words; the filename may be missing."""
    settings = in_a()
    settings.ClearField("filename_tensor_name")
    assert in_scope(settings, None) == settings
    setattr(settings, name, "")
    with pytest.raises(InvalidArgumentError, match=f"saver_def must specify the {name}"):
        in_scope(settings, None)


@pytest.mark.parametrize("scope", ["a", "a/", "a/b", "0", ".a", "A-b_c.d", "a>b", "a\\b", "", None])
def test_scopes(scope: str | None) -> None:
    """Scopes that TensorFlow accepts are accepted."""
    assert check_scope(scope) == scope


@pytest.mark.parametrize("scope", ["a b", "_a", "/a", "-a", "a:0", "^a", "a\n", "\u00e9", " ", "a\x00"], ids=ascii)
def test_invalid_scopes(scope: str) -> None:
    """Both functions, in_scope included, reject them in TensorFlow's words."""
    with pytest.raises(InvalidArgumentError, match="is not a valid root scope name"):
        check_scope(scope)
    with pytest.raises(InvalidArgumentError, match="is not a valid root scope name"):
        in_scope(SETTINGS, scope)


@pytest.mark.parametrize("tensor", ["save/Const:0", "saver_filename:0", "a\\b/x>y:0"])
def test_a_path_that_is_a_tensor(tensor: str) -> None:
    """The SaverDef is unchanged, and the default filename is TensorFlow's."""
    settings = SaverDef(filename_tensor_name=tensor, save_tensor_name="s:0", restore_op_name="r", sharded=True)
    assert naming_nodes(settings, None) == (settings, DEFAULT_FILENAME) == (settings, "model")
    assert naming_nodes(settings, "other") == (settings, "model")


@pytest.mark.parametrize(
    "filename",
    ["model", "/tmp/a b/model", "save/Const", "x:", "x:a", "x:0\n", "/x:0", "_x:0", "gs://b/x:0", "a:0:0", "model:12"],
)
def test_a_filename_that_is_a_path(filename: str) -> None:
    """It is the default filename; a node in the scope of the restore node is named for it."""
    settings = SaverDef(filename_tensor_name=filename, save_tensor_name="s:0", restore_op_name="a/b/restore_all")
    found, path = naming_nodes(settings, None)
    assert (found.filename_tensor_name, path) == ("a/b/Const:0", filename)
    assert settings.filename_tensor_name == filename
    found.filename_tensor_name = filename
    assert found == settings


def test_a_path_that_looks_like_a_tensor() -> None:
    """It is a path if it equals the filename of the saver."""
    settings = SaverDef(filename_tensor_name="model:0", save_tensor_name="s:0", restore_op_name="restore_all")
    found, path = naming_nodes(settings, "model:0")
    assert (found.filename_tensor_name, path) == ("save/Const:0", "model:0")


def test_no_path() -> None:
    """Without a filename the default is TensorFlow's."""
    found, path = naming_nodes(SaverDef(save_tensor_name="s:0", restore_op_name="x/r"), None)
    assert (found.filename_tensor_name, path) == ("x/Const:0", "model")


@pytest.mark.parametrize(
    ("path", "saves", "restores"),
    [
        ("p:0", "/tmp/x y", "r"),
        ("p:0", "s:0", "r e"),
        ("p:0", "s:1", "r"),
        ("p:0", "p:0", "r"),
        ("p:0", "s:0", "s"),
        ("p:0", "s:0", "p"),
        ("model", "s:0", "s"),
        ("model", "", ""),
    ],
)
@pytest.mark.parametrize("sharded", [False, True])
def test_names_that_cannot_be_three_nodes(path: str, saves: str, restores: str, sharded: bool) -> None:
    """They are replaced by TensorFlow's names in a copy; other fields are kept."""
    settings = SaverDef(
        filename_tensor_name=path, save_tensor_name=saves, restore_op_name=restores, sharded=sharded, max_to_keep=3
    )
    found, filename = naming_nodes(settings, None)
    assert filename == "model" and settings.save_tensor_name == saves
    assert (found.filename_tensor_name, found.restore_op_name) == ("save/Const:0", "save/restore_all")
    assert found.save_tensor_name == ("save/Identity:0" if sharded else "save/control_dependency:0")
    assert (found.sharded, found.max_to_keep) == (sharded, 3)


@pytest.mark.parametrize(
    ("sharded", "version", "saves"),
    [
        (False, SaverDef.V1, "control_dependency"),
        (False, SaverDef.V2, "control_dependency"),
        (True, SaverDef.V1, "ShardedFilespec"),
        (True, SaverDef.V2, "Identity"),
    ],
)
def test_default_names(sharded: bool, version: int, saves: str) -> None:
    """The names are TensorFlow's."""
    found = default_names("a/b", sharded=sharded, version=version)
    assert (found.filename_tensor_name, found.restore_op_name) == ("a/b/Const:0", "a/b/restore_all")
    assert found.save_tensor_name == f"a/b/{saves}:0"
