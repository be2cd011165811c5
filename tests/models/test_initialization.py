"""init_from_checkpoint: which stored tensor goes into which variable, and every way to ask for what cannot be."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from saver_files import damage_last_tensor, same
from small_modules import nested
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt import PartitionedVariable, SaverDef, SaveSliceInfo, Variable
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.format.object_graph import OBJECT_GRAPH_KEY, ObjectGraph, SerializedTensor, TrackableObject
from torch_tfckpt.models.initialization import init_from_checkpoint
from torch_tfckpt.storage.local import LOCAL

# The variables of checkpoint_utils_test.py.
SHAPES = {"var1": (1, 10), "var2": (10, 10), "var3": (100, 100), "useful_scope/var4": (9, 9)}


def random_values(**more: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """A tensor for each of SHAPES, and for each of `more`, whose "__" stands for "/"."""
    shapes = SHAPES | {name.replace("__", "/"): shape for name, shape in more.items()}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(shape, generator=generator) for name, shape in shapes.items()}


@pytest.fixture
def stored() -> dict[str, torch.Tensor]:
    """What `directory` holds."""
    return random_values()


@pytest.fixture
def directory(tmp_path: Path, stored: dict[str, torch.Tensor]) -> Path:
    """A directory with a checkpoint of `stored`, of step 0."""
    tfckpt.Saver(stored).save(tmp_path / "ckpt", global_step=0)
    return tmp_path


def zeros(**shapes: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Variables of nothing; "__" stands for "/"."""
    return {name.replace("__", "/"): torch.zeros(shape) for name, shape in shapes.items()}


def parts(full_name: str, count: int = 5, size: int = 100) -> list[Variable]:
    """A [size, size] variable in parts of rows, all zero."""
    rows = size // count
    return [
        Variable(
            torch.zeros(rows, size),
            f"{full_name}/part_{i}",
            SaveSliceInfo(full_name, [size, size], [rows * i, 0], [rows, size]),
        )
        for i in range(count)
    ]


def whole(pieces: list[Variable]) -> torch.Tensor:
    return torch.cat([part.tensor for part in pieces])


class Scopes(nn.Module):
    """The names of checkpoint_utils_test.py, from some_scope.my1 to the var4 of a scope in a scope."""

    def __init__(self) -> None:
        super().__init__()
        self.some_scope = nn.Module()
        for name, of in {"my1": "var1", "my2": "var2", "my3": "var3", "my4": "var3"}.items():
            self.some_scope.register_parameter(name, nn.Parameter(torch.zeros(SHAPES[of])))
        inner = nn.Module()
        inner.register_buffer("var4", torch.zeros(9, 9))
        self.some_scope.some_other_scope = nn.Module()
        self.some_scope.some_other_scope.other_useful_scope = inner


class TestCheckpointUtils:
    """The cases of TensorFlow's own test."""

    def test_no_checkpoints(self, tmp_path: Path) -> None:
        """CASES 186, testNoCheckpoints: a missing directory and an empty one are not checkpoints."""
        (tmp_path / "empty").mkdir()
        for missing in ("empty", "nothing"):
            with pytest.raises(tfckpt.NotFoundError):
                tfckpt.load_variable(tmp_path / missing, "var1")
        with pytest.raises(tfckpt.NotFoundError, match="Couldn't find 'checkpoint' file or checkpoints in given dir"):
            tfckpt.load_variable(tmp_path / "empty", "var1")

    def test_no_tensor(self, directory: Path) -> None:
        """CASES 186, testNoTensor: a name that is not there."""
        with pytest.raises(tfckpt.NotFoundError, match="var5"):
            tfckpt.load_variable(directory, "var5")

    @pytest.mark.parametrize("kind", [str, Path, os.fsencode])
    def test_reading(self, directory: Path, stored: dict[str, torch.Tensor], kind: Any) -> None:
        """CASES 187: load_variable and list_variables of a directory, given in every kind of path."""
        where = kind(directory)
        for name, value in stored.items():
            read = tfckpt.load_variable(where, name)
            assert isinstance(read, torch.Tensor) and same(read, value)
        expected = [("useful_scope/var4", [9, 9]), ("var1", [1, 10]), ("var2", [10, 10]), ("var3", [100, 100])]
        assert tfckpt.list_variables(where) == expected

    def test_dict_and_pairs(self, directory: Path, stored: dict[str, torch.Tensor]) -> None:
        """CASES 188: names, objects and a scope in one dict; pairs, of which two read one tensor."""
        model = Scopes()
        scope = model.some_scope
        found = init_from_checkpoint(
            model,
            directory,
            {"var1": "some_scope/my1", "useful_scope/": "some_scope/some_other_scope/other_useful_scope/"},
        )
        inner = scope.get_submodule("some_other_scope.other_useful_scope").get_buffer("var4")
        assert found == {
            "some_scope.my1": "var1", "some_scope.some_other_scope.other_useful_scope.var4": "useful_scope/var4",
        }  # fmt: skip
        assert same(scope.get_parameter("my1"), stored["var1"]) and same(inner, stored["useful_scope/var4"])
        assert not any(scope.get_parameter(name).any() for name in ("my2", "my3", "my4"))

        my3 = scope.get_parameter("my3")
        pairs: list[tuple[str, Any]] = [("var2", "some_scope/my2"), ("var3", my3), ("var3", "some_scope.my4")]
        assert init_from_checkpoint(model, directory, pairs) == {
            "some_scope.my2": "var2", "some_scope.my3": "var3", "some_scope.my4": "var3"
        }  # fmt: skip
        assert same(scope.get_parameter("my2"), stored["var2"])
        assert same(my3, stored["var3"]) and same(scope.get_parameter("my4"), stored["var3"])

    def test_a_scope_does_not_capture_suffixes(self, tmp_path: Path) -> None:
        """CASES 189: useful_scope_1/ is not a part of useful_scope/, on either side."""
        stored = random_values(useful_scope_1__var5=(9, 9))
        tfckpt.Saver(stored).save(tmp_path / "m")
        variables = zeros(useful_scope__var4=(9, 9), useful_scope_1__var5=(9, 9))
        assert list(init_from_checkpoint(variables, tmp_path / "m", {"useful_scope/": "useful_scope/"})) == [
            "useful_scope/var4"
        ]
        assert same(variables["useful_scope/var4"], stored["useful_scope/var4"])
        assert not variables["useful_scope_1/var5"].any()

    def test_from_the_root(self, directory: Path, stored: dict[str, torch.Tensor]) -> None:
        """CASES 190, testInitFromRootCheckpoint: all names, below a scope."""
        variables = {f"some_scope/{name}": torch.zeros_like(value) for name, value in stored.items()}
        assert init_from_checkpoint(variables, directory, {"/": "some_scope/"}) == {
            name: name.removeprefix("some_scope/") for name in sorted(variables)
        }
        assert all(same(variables[f"some_scope/{name}"], value) for name, value in stored.items())

    def test_to_the_root(self, directory: Path, stored: dict[str, torch.Tensor]) -> None:
        """CASES 190, testInitToRootCheckpoint: all names as they are."""
        variables = {name: torch.zeros_like(value) for name, value in stored.items()}
        init_from_checkpoint(variables, directory, {"/": "/"})
        assert all(same(variables[name], value) for name, value in stored.items())

    @pytest.mark.parametrize("version", [SaverDef.V1, SaverDef.V2], ids=["V1", "V2"])
    def test_partitioned(self, tmp_path: Path, version: int) -> None:
        """CASES 191: [100, 100] stored in five parts comes into the same parts, into others through a scope, and into
        parts given as objects.
        """
        values = torch.rand(100, 100)
        saved = parts("scope/var1")
        for part, rows in zip(saved, torch.split(values, 20), strict=True):
            part.tensor.copy_(rows)
        tfckpt.Saver(saved, write_version=version).save(tmp_path / "m")
        same_parts, others, objects = parts("scope/my1"), parts("other/var1", 4), parts("alone", 2)
        variables = [*same_parts, *others]
        assert init_from_checkpoint(variables, tmp_path / "m", {"scope/var1": "scope/my1"}) == {
            "scope/my1": "scope/var1"
        }
        assert same(whole(same_parts), values) and not whole(others).any()
        init_from_checkpoint(variables, tmp_path / "m", {"scope/": "other/"})
        assert same(whole(others), values)
        assert init_from_checkpoint(variables, tmp_path / "m", {"scope/var1": objects}) == {}
        assert same(whole(objects), values)

    @pytest.mark.parametrize(
        ("assignment_map", "text"),
        [
            ({"no_var": "some_scope/my1"}, "^Tensor no_var is not found in .*ckpt-0 checkpoint"),
            ({"var3": "some_scope/no_var"}, "scope only name some_scope should map to scope only var3. Should be"),
            ({"var3": "some_scope/my1"}, r"my1 \(\[1,10\]\) doesn't match with shape of tensor var3 \(\[100,100\]\)"),
            ({"useful_scope/": "some_scope/"}, r"Tensor useful_scope/my1 \(my1 in useful_scope/\) is not found in"),
            ({"useful_scope": "some_scope/"}, "Should be 'scope/': 'other_scope/'"),
            ({"var1": "some_scope/my5"}, "tensor_name = var1; expected dtype double does not equal original dtype f"),
        ],
        ids=["no tensor", "no variable", "shape", "scope", "no scope", "dtype"],
    )
    def test_missing(self, directory: Path, assignment_map: dict[str, str], text: str) -> None:
        """CASES 192: what is not there or does not fit is a ValueError in TensorFlow's words; no directory is not."""
        variables = {f"some_scope/my{i + 1}": torch.zeros(shape) for i, shape in enumerate(SHAPES.values())}
        variables["some_scope/my5"] = torch.zeros(1, 10, dtype=torch.float64)
        with pytest.raises(ValueError, match=text) as raised:
            init_from_checkpoint(variables, directory, assignment_map)
        assert isinstance(raised.value, tfckpt.InvalidArgumentError)
        with pytest.raises(tfckpt.NotFoundError):
            init_from_checkpoint(variables, directory / "no_dir", assignment_map)
        assert not any(value.any() for value in variables.values())


# Names.


def linear(*names: str) -> nn.Module:
    """A module with a Linear(2, 2, bias=False), all zero, under each dotted name."""
    module = nested(lambda: nn.Linear(2, 2, bias=False), *names)
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


@pytest.mark.parametrize("scope", ["encoder/", "encoder."])
@pytest.mark.parametrize("between", ["/", "."])
def test_both_spellings_of_a_modules_names(tmp_path: Path, scope: str, between: str) -> None:
    """A scope of a module may end with either; names below it are found with dots and with slashes."""
    name = f"bert/{between.join(('layer', '0', 'weight'))}"
    tfckpt.save_file({name: torch.ones(2, 2)}, tmp_path / "m")
    model = linear("encoder.layer.0", "encoder_1.layer.0")
    assert init_from_checkpoint(model, tmp_path / "m", {"bert/": scope}) == {"encoder.layer.0.weight": name}
    assert model.get_parameter("encoder.layer.0.weight").all()
    assert not model.get_parameter("encoder_1.layer.0.weight").any()
    for target in ("encoder.layer.0.weight", "encoder/layer/0/weight", "encoder/layer.0/weight"):
        nn.init.zeros_(model.get_parameter("encoder.layer.0.weight"))
        init_from_checkpoint(model, tmp_path / "m", {name: target})
        assert model.get_parameter("encoder.layer.0.weight").all()


def test_names_of_a_dict_are_verbatim(tmp_path: Path) -> None:
    """Only names of modules have two spellings: the scope layer_1/ of a dict does not hold layer_1.5/weight."""
    tfckpt.save_file({"a/weight": torch.ones(1), "a/5/weight": torch.ones(1)}, tmp_path / "m")
    variables = {"layer_1/weight": torch.zeros(1), "layer_1.5/weight": torch.zeros(1)}
    assert list(init_from_checkpoint(variables, tmp_path / "m", {"a/": "layer_1/"})) == ["layer_1/weight"]
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'no variable "layer_1\.weight"'):
        init_from_checkpoint(variables, tmp_path / "m", {"a/weight": "layer_1.weight"})


def test_a_scope_that_our_saver_stored(tmp_path: Path) -> None:
    """Names of a module in a checkpoint have dots; "encoder." is a scope there."""
    trained = linear("encoder.a", "decoder.a")
    nn.init.ones_(trained.get_parameter("encoder.a.weight"))
    tfckpt.Saver(trained).save(tmp_path / "m")
    model = linear("body.a")
    assert init_from_checkpoint(model, tmp_path / "m", {"encoder.": "body."}) == {"body.a.weight": "encoder.a.weight"}
    assert model.get_parameter("body.a.weight").all()


def test_modules_under_a_key(tmp_path: Path) -> None:
    """Of a module in a dict the key stands before its names; buffers that state_dict leaves out are not looked for."""
    tfckpt.save_file({"x/a/weight": torch.ones(2, 2), "step": torch.tensor(7)}, tmp_path / "m")
    module = linear("a")
    module.register_buffer("cache", torch.zeros(3), persistent=False)
    variables = {"model": module, "step": torch.tensor(0)}
    found = init_from_checkpoint(variables, tmp_path / "m", {"x/": "model/", "step": "step"})
    assert found == {"model/a.weight": "x/a/weight", "step": "step"}
    assert module.get_parameter("a.weight").all() and variables["step"] == 7


def test_shared_tensors(tmp_path: Path) -> None:
    """A tensor that a module shares between its parts is found under any of its names, and reported under all."""
    tfckpt.save_file({"encoder/weight": torch.ones(2, 2)}, tmp_path / "m")
    model = linear("decoder", "encoder")
    model.get_submodule("decoder").weight = model.get_submodule("encoder").weight
    assert init_from_checkpoint(model, tmp_path / "m", {"/": "/"}) == {
        "decoder.weight": "encoder/weight", "encoder.weight": "encoder/weight"
    }  # fmt: skip
    assert model.get_parameter("decoder.weight").all()


def test_every_kind_of_object(tmp_path: Path) -> None:
    """Tensors, Parameters, Variables, partitioned ones and tuples of slices, of the model and of no model; those that
    are not in it are filled and not reported.
    """
    values = torch.rand(100, 100)
    tfckpt.save_file({"v": values, "x": torch.ones(2)}, tmp_path / "m")
    tensor, parameter, variable = torch.zeros(2), nn.Parameter(torch.zeros(2)), Variable(torch.zeros(2), "mine")
    in_model, one, other = parts("p"), parts("q"), parts("r")
    pairs: list[tuple[str, Any]] = [
        ("x", tensor), ("x", parameter), ("x", variable), ("v", in_model), ("v", PartitionedVariable("q", one)),
        ("v", tuple(other)),
    ]  # fmt: skip
    model = {"partitioned": PartitionedVariable("p", in_model), "parameter": parameter}
    assert init_from_checkpoint(model, tmp_path / "m", pairs) == {"parameter": "x", "partitioned": "v"}
    for filled in (tensor, parameter, variable.tensor):
        assert same(filled, torch.ones(2))
    assert all(same(whole(pieces), values) for pieces in (in_model, one, other))
    assert parameter.requires_grad and parameter.is_leaf


def test_some_parts_alone(tmp_path: Path) -> None:
    """A list of some parts of a tensor takes these; the others stay as they are."""
    values = torch.rand(100, 100)
    tfckpt.save_file({"v": values}, tmp_path / "m")
    pieces = parts("p")
    assert init_from_checkpoint(pieces, tmp_path / "m", {"v": pieces[1:2]}) == {"p": "v"}
    assert same(pieces[1].tensor, values[20:40]) and not pieces[0].tensor.any()


# Object-based checkpoints.


@pytest.fixture
def objects(tmp_path: Path) -> str:
    """model/kernel called "dense/kernel", model/bias called "bias", and head/bias called "bias" as well."""
    stored = {"model/kernel": ("dense/kernel", 1.0), "model/bias": ("bias", 2.0), "head/bias": ("bias", 3.0)}
    nodes = []
    with BundleWriter(LOCAL, str(tmp_path / "objects")) as writer:
        for path, (full_name, value) in stored.items():
            key = f"{path}/.ATTRIBUTES/VARIABLE_VALUE"
            nodes.append(TrackableObject(attributes=(SerializedTensor("VARIABLE_VALUE", full_name, key),)))
            writer.add(key, torch.full((2,), value))
        writer.add(OBJECT_GRAPH_KEY, ObjectGraph(tuple(nodes)).encode())
    return str(tmp_path / "objects")


@pytest.mark.parametrize(
    "name", ["model/kernel/.ATTRIBUTES/VARIABLE_VALUE", "model/kernel", "dense/kernel"], ids=["key", "path", "name"]
)
def test_names_of_objects(objects: str, name: str) -> None:
    """A key, the path of an object, and the name that a variable had lead to one tensor, whose key is reported."""
    variables = {"w": torch.zeros(2)}
    key = "model/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert init_from_checkpoint(variables, objects, {name: "w"}) == {"w": key}
    assert same(variables["w"], torch.ones(2))


def test_scopes_of_objects(objects: str) -> None:
    """Paths of objects have scopes like all names."""
    variables = zeros(my__kernel=(2,), my__bias=(2,))
    init_from_checkpoint(variables, objects, {"model/": "my/"})
    assert [variables[name].tolist() for name in sorted(variables)] == [[2.0, 2.0], [1.0, 1.0]]


def test_a_name_that_two_variables_had(objects: str) -> None:
    """Names of Keras variables are often alike: such a name leads to none of them, and the text lists their keys."""
    keys = '"head/bias/.ATTRIBUTES/VARIABLE_VALUE", "model/bias/.ATTRIBUTES/VARIABLE_VALUE"'
    with pytest.raises(tfckpt.InvalidArgumentError, match=f'2 variables are called "bias". Map .*: {keys}'):
        init_from_checkpoint({"b": torch.zeros(2)}, objects, {"bias": "b"})
    with pytest.raises(tfckpt.InvalidArgumentError, match=r'Tensor model/bais is not found .* Closest: "model/bias"'):
        init_from_checkpoint({"b": torch.zeros(2)}, objects, {"model/bais": "b"})


def test_a_checkpoint_of_tensorflows_objects(golden: Path) -> None:
    """tf.train.Checkpoint wrote model/kernel, whose variable was named "kernel": both find it, and so does a scope."""
    path, key = golden / "tensorflow" / "object" / "object", "model/kernel/.ATTRIBUTES/VARIABLE_VALUE"
    expected = tfckpt.load_variable(path, key)
    assert isinstance(expected, torch.Tensor) and expected.any()
    for assignment_map in ({"model/kernel": "dense/kernel"}, {"kernel": "dense/kernel"}, {"model/": "dense/"}):
        variables = {"dense/kernel": torch.zeros(2, 2)}
        assert init_from_checkpoint(variables, path, assignment_map) == {"dense/kernel": key}
        assert same(variables["dense/kernel"], expected)


# What cannot be.


@pytest.mark.parametrize(
    ("assignment_map", "text"),
    [
        ({"var": "b/w"}, r'Tensor var is not found in .*m checkpoint. Closest: "var1". `tfckpt ls` lists all 2'),
        ({"a/": "b/w"}, "Tensor a/ is not found in .*m checkpoint. A scope is mapped to a scope: 'scope/'"),
        ({"a/": "b"}, 'scope only name  should map to scope only a/. .* There is no variable "b"'),
        ({"a/": ""}, 'There is no variable ""'),
        ({"": "b/"}, "Should be 'scope/': 'other_scope/'"),
        ({"var1": "scope/variabel"}, 'There is no variable "scope/variabel". Closest: "scope/variable"'),
        ({"c/": "b/"}, r"Tensor c/v \(v in c/\) is not found in .*m checkpoint. Also missing in that scope: 1 more"),
        ([("a/w", "b/w"), ("var1", "b/w")], '"a/w" and "var1" are both mapped to variable "b/w". Omit one'),
        ({"/": "/", "a/": "b/"}, "Tensor b/v"),
    ],
)  # fmt: skip
def test_maps_that_mean_nothing(tmp_path: Path, assignment_map: Any, text: str) -> None:
    """Each says what is wrong and what is there instead; nothing is assigned."""
    tfckpt.save_file({"var1": torch.ones(2), "a/w": torch.ones(2)}, tmp_path / "m")
    variables = zeros(b__w=(2,), b__v=(2,), scope__variable=(2,))
    with pytest.raises(tfckpt.InvalidArgumentError, match=text):
        init_from_checkpoint(variables, tmp_path / "m", assignment_map)
    assert not any(value.any() for value in variables.values())


@pytest.mark.parametrize(
    ("model", "assignment_map", "error", "text"),
    [
        ({}, {"x": None}, TypeError, '"x" is mapped to a NoneType. Map it to the name of a variable'),
        ({}, {"x": []}, TypeError, '"x" is mapped to a list'),
        ({}, {"x": [torch.zeros(1)]}, TypeError, '"x" is mapped to a list'),
        ({}, {torch.zeros(1): "x"}, TypeError, "is not a pair of a name in the checkpoint and a variable"),
        ({}, "x", TypeError, "'x' is not a pair"),
        ({}, None, TypeError, "assignment_map is a NoneType. Pass a dict, or a list of pairs"),
        ({}, [("x", "y", "z")], TypeError, r"\('x', 'y', 'z'\) is not a pair"),
        ({}, {"x": [Variable(torch.zeros(1), "v")]}, ValueError, "Slices must all be slices"),
        ({}, {"x": [*parts("p"), *parts("q")]}, ValueError, "Slices must all be from the same tensor: p != q"),
        ({}, {"x": parts("p")}, tfckpt.InvalidArgumentError, r"spec \[100,100\] does not match .* \[1\].*Nothing was"),
        ({"s": {"epoch": 1}}, {}, TypeError, '"s" is a dict. init_from_checkpoint fills tensors'),
        (5, {}, TypeError, "5 is a int. Pass a dict of names, a torch.nn.Module"),
        ({"v": torch.zeros(1, device="meta")}, {"x": "v"}, tfckpt.InvalidArgumentError, "Materialize it first"),
        (nn.LazyLinear(1), {"x": "weight"}, tfckpt.InvalidArgumentError, "Run the module once first"),
        ({"v": torch.tensor(0)}, {"text": "v"}, tfckpt.InvalidArgumentError, "int64 does not equal .* string"),
    ],
    ids=range(15),
)  # fmt: skip
def test_wrong_arguments(tmp_path: Path, model: Any, assignment_map: Any, error: type[Exception], text: str) -> None:
    """Of another form, without memory, of another kind: said before anything is assigned."""
    tfckpt.save_file({"x": torch.ones(1), "text": b"a"}, tmp_path / "m")
    with pytest.raises(error, match=text):
        init_from_checkpoint(model, tmp_path / "m", assignment_map)


def test_a_scope_without_variables(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """TensorFlow passes over it in silence; here a warning names it and what is like it, and the rest is assigned."""
    tfckpt.save_file({"a/weight": torch.ones(2, 2), "x": torch.ones(2)}, tmp_path / "m")
    variables = {"model": linear("encoder"), "x": torch.zeros(2)}
    with caplog.at_level(logging.INFO):
        assert init_from_checkpoint(variables, tmp_path / "m", {"a/": "model/encodr/", "x": "x"}) == {"x": "x"}
    warning, info = caplog.records
    assert warning.getMessage() == (
        'init_from_checkpoint: no variable is in scope "model/encodr/", to which "a/" is mapped. Closest: '
        '"model/encoder."'
    )
    assert warning.levelno == logging.WARNING
    assert info.getMessage() == f'{tmp_path / "m"}: "x" initialised from "x"'


@pytest.mark.parametrize("version", [SaverDef.V1, SaverDef.V2], ids=["V1", "V2"])
def test_damage_leaves_everything_unchanged(tmp_path: Path, version: int) -> None:
    """The last of the values is damaged: none is assigned."""
    tfckpt.Saver({"a": torch.ones(3000), "b": torch.rand(3000)}, write_version=version).save(tmp_path / "m")
    damage_last_tensor(tmp_path, version)
    variables = zeros(a=(3000,), b=(3000,))
    with pytest.raises(tfckpt.DataLossError):
        init_from_checkpoint(variables, tmp_path / "m", {"/": "/"})
    assert not variables["a"].any() and not variables["b"].any()


# All maps.

NAMES = ["a", "b", "s/a", "s/b", "s/t/a", "s_1/a"]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A checkpoint in which the i-th of NAMES holds i + 1."""
    folder = tmp_path_factory.mktemp("numbered")
    yield tfckpt.save_file({name: torch.tensor(i + 1) for i, name in enumerate(NAMES)}, folder / "m")
    shutil.rmtree(folder)


@settings(max_examples=150)
@given(
    st.lists(st.sampled_from(NAMES), unique=True),
    st.lists(st.tuples(*[st.sampled_from([*NAMES, "/", "s/", "s/t/", "none/"])] * 2), max_size=3),
)
def test_either_all_of_a_map_or_nothing(numbered: str, names: list[str], pairs: list[tuple[str, str]]) -> None:
    """Whatever is mapped to whatever: an error and no variable changed, or each variable holds the tensor that the
    result shows, below the scope that contains it, and the others nothing.
    """
    variables = {name: torch.tensor(0) for name in names}
    try:
        found = init_from_checkpoint(variables, numbered, pairs)
    except tfckpt.InvalidArgumentError:
        found = {}
    assert {name: int(value) for name, value in variables.items()} == {
        name: NAMES.index(found[name]) + 1 if name in found else 0 for name in names
    }
    for name, key in found.items():
        assert any(
            (source, target) == (key, name)
            or (
                source.endswith("/")
                and target.endswith("/")
                and name.startswith(target.lstrip("/"))
                and key == source.lstrip("/") + name.removeprefix(target.lstrip("/"))
            )
            for source, target in pairs
        )


def square(*names: str) -> dict[str, torch.Tensor]:
    """Tensors whose axes a shape does not tell apart."""
    return {name: torch.arange(9.0).view(3, 3) + at for at, name in enumerate(names)}


class Square(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.own = nn.Module()
        self.own.kernel = nn.Parameter(torch.zeros(3, 3))
        self.own.weight = nn.Parameter(torch.zeros(3, 3))


def test_known_kernels_of_a_module_are_turned(tmp_path: Path) -> None:
    """By name, by tensor and in a scope; a module's own kernel has TensorFlow's layout."""
    stored = square("a/kernel", "a/weight")
    tfckpt.save_file(stored | {"a/bias": torch.ones(3)}, tmp_path / "m")
    model = Square()
    for target in ("fc.weight", "fc/weight", model.fc.weight):
        nn.init.zeros_(model.fc.weight)
        assert init_from_checkpoint(model, tmp_path / "m", {"a/kernel": target}) == {"fc.weight": "a/kernel"}
        assert torch.equal(model.fc.weight, stored["a/kernel"].t())
    init_from_checkpoint(model, tmp_path / "m", {"a/": "fc/"})
    assert torch.equal(model.fc.weight, stored["a/weight"])  # torch's own name
    init_from_checkpoint({"net": model}, tmp_path / "m", {"a/kernel": "net/fc.weight"})
    assert torch.equal(model.fc.weight, stored["a/kernel"].t())
    init_from_checkpoint(model, tmp_path / "m", {"a/kernel": "own.kernel"})
    assert torch.equal(model.own.get_parameter("kernel"), stored["a/kernel"])


def test_kernels_of_other_layers(tmp_path: Path) -> None:
    """As load_model: convolutions, and both weights of an LSTM from one kernel of TensorFlow 1."""
    kernel, cell = torch.rand(3, 3, 3, 3), torch.rand(6, 12)
    tfckpt.save_file({"c/kernel": kernel, "lstm/cell/kernel": cell, "lstm/cell/bias": torch.zeros(12)}, tmp_path / "m")
    model = nn.ModuleDict({"c": nn.Conv2d(3, 3, 3), "lstm": nn.LSTM(3, 3)})
    pairs = [("c/kernel", "c.weight"), *(("lstm/cell/kernel", f"lstm.weight_{part}_l0") for part in ("ih", "hh"))]
    init_from_checkpoint(model, tmp_path / "m", pairs)
    assert torch.equal(model.get_parameter("c.weight"), kernel.permute(3, 2, 0, 1))
    i, j, f, o = cell.chunk(4, 1)
    turned = torch.cat([i, f, j, o], 1).t()
    assert torch.equal(model.get_parameter("lstm.weight_ih_l0"), turned[:, :3])
    assert torch.equal(model.get_parameter("lstm.weight_hh_l0"), turned[:, 3:])


@pytest.mark.parametrize("layout", ["dense", (1, 0), "in out -> out in", {"kind": "dense"}, "same"], ids=range(5))
def test_layouts_in_a_map(tmp_path: Path, layout: Any) -> None:
    """For variables of every kind."""
    stored = square("a/w")
    tfckpt.save_file(stored, tmp_path / "m")
    expected = stored["a/w"] if layout == "same" else stored["a/w"].t()
    model, plain, variable = Square(), torch.zeros(3, 3), Variable(torch.zeros(3, 3), "v")
    init_from_checkpoint(model, tmp_path / "m", {"a/w": ("fc.weight", layout)})
    init_from_checkpoint({"v": plain}, tmp_path / "m", [("a/w", ("v", layout))])
    init_from_checkpoint({}, tmp_path / "m", {"a/w": (variable, layout)})
    for tensor in (model.fc.weight, plain, variable.tensor):
        assert torch.equal(tensor, expected)


@pytest.mark.parametrize(
    ("model", "assignment_map", "text"),
    [
        (Square(), {"a/w": "fc.weight"}, r'"a/w", mapped to "fc.weight": .*Linear is unknown.*"dense"\)'),
        (Square(), {"a/kernel": "own.weight"}, r"torch's name for a weight.* \(variable, \"dense\"\)"),
        (dict(Square().named_parameters()), {"a/kernel": "fc.weight"}, "torch's name for a weight"),
        ({}, {"a/kernel": nn.Linear(3, 3).weight}, "a Parameter that is not in the model"),
        (Square(), {"a/w": ("fc.weight", "conv2d")}, r"conv2d.*tensors with 4 dimensions; \[3,3\] has 2"),
        (Square(), {"a/w": ("fc.weight", "dence")}, r'"a/w": unknown layout "dence". Closest: "dense"'),
        (Square(), {"a/": ("fc/", "dense")}, "maps a scope, which cannot have a layout"),
        (Square(), {"a/w": ("fc.bias", "dense")}, r"Shape of variable fc.bias .*after layout \"dense\""),
    ],
    ids=range(8),
)  # fmt: skip
def test_layouts_that_are_unknown_or_wrong(tmp_path: Path, model: Any, assignment_map: Any, text: str) -> None:
    """Nothing is copied with its axes in a wrong order; the error shows what to write."""
    tfckpt.save_file(square("a/kernel", "a/w", "a/weight") | {"a/bias": torch.ones(3)}, tmp_path / "m")
    with pytest.raises(tfckpt.InvalidArgumentError, match=text):
        init_from_checkpoint(model, tmp_path / "m", assignment_map)
