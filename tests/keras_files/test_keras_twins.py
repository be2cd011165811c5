"""Models of real Keras 3 into torch twins, from every form of file: outputs are equal within 1e-5.

Keras runs in its own process. A twin whose attributes have Keras's names needs no rules; for one with other names, the
rules of KeyMapper.infer do it. With the configuration in the file, a correct twin has no findings.
"""

import functools
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

import keras_twins as twins
import numpy as np
import numpy.typing as npt
import pytest
import torch
from tensorflow_process import RawTensor, TensorFlowProcess
from torch import nn

import torch_tfckpt as tfckpt

FORMS: Final = ("m.keras", "m.weights.h5", "m.h5", "ckpt")
WITH_CONFIG: Final = ("m.keras", "m.h5")
Array = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A Keras model of tensorflow_keras_twins.py and its twins.

    Attributes:
        shapes: Of its inputs.
        names: Name of each layer in `make` -> its name in another twin.
        other_names: Forms in which the names of the layers, or the layers themselves, are others than in `make`.
        refused: Forms in which some variables are unknown, or not stored.
    """

    make: Callable[[], nn.Module]
    shapes: Sequence[tuple[int, ...]]
    names: Mapping[str, str] = field(default_factory=dict)
    other_names: Sequence[str] = ()
    refused: Sequence[str] = ()


CASES: Final[Mapping[str, Case]] = {
    "mlp": Case(twins.Mlp, [(4, 6)], {"fc1": "body", "fc2": "classifier"}),
    "norms": Case(
        twins.Norms,
        [(4, 8, 8, 3)],
        {"stem": "c", "bn0": "n1", "bn1": "n2", "bn2": "n3", "bn3": "n4", "head": "fc"},
        refused=("m.weights.h5",),
    ),
    "separable": Case(
        twins.Separable,
        [(4, 8, 8, 2)],
        {"depth": "a", "separable_depth": "b_dw", "separable": "b_pw", "up": "c"},
        FORMS,
    ),
    "conv_1d_3d": Case(twins.Convolutions, [(4, 9, 2), (4, 4, 4, 4, 1)]),
    "recurrent": Case(
        twins.Recurrent, [(4, 7, 3)], {"memory": "r1", "both": "r2", "gates": "r3", "gru": "r4", "plain": "r5"}
    ),
    "attention": Case(twins.Attention, [(4, 6)], {"tokens": "emb", "attend": "mha", "norm": "ln", "mix": "out"}),
    "nested": Case(twins.Nested, [(4, 5)], {"body": "first", "tower": "second"}, ["ckpt"]),
    "subclassed": Case(
        twins.Subclassed,
        [(4, 6, 3)],
        {"stem": "conv", "bn": "n", "block1": "b1", "block2": "b2", "head": "fc"},
        ["m.h5"],
    ),
    "listed": Case(twins.Listed, [(4, 4)], {"blocks": "parts"}, ["m.h5"], refused=["ckpt"]),
    "distributed": Case(twins.Distributed, [(4, 3, 5, 2)], {"times": "conv", "norms": "ln"}, ["m.h5", "ckpt"]),
    "groups": Case(
        twins.Groups,
        [(4, 4, 4, 6)],
        {"norm": "gn1", "act": "a", "mix": "c", "shift": "gn2"},
        refused=("m.weights.h5",),
    ),
    "slopes": Case(twins.Slopes, [(4, 4, 5, 3)], {"conv": "c", "slope": "p1", "head": "fc", "last": "p2"}),
    "named_norm": Case(twins.NamedNorm, [(4, 6)], {"fc": "a", "bn": "b"}, refused=("m.keras", "m.weights.h5")),
    "flattened": Case(twins.Flattened, [(4, 11, 7, 2)]),
}
Written = Callable[[str], tuple[Path, Array]]
"""Name of a model -> the directory with all its forms, and its outputs for `inputs`."""


def inputs(model: str) -> list[Array]:
    rng = np.random.default_rng(2)
    if model == "attention":  # tokens
        return [rng.integers(0, 11, (4, 6)).astype(np.float32)]
    return [rng.standard_normal(shape).astype(np.float32) for shape in CASES[model].shapes]


@pytest.fixture(scope="module")
def written(tensorflow: TensorFlowProcess, tmp_path_factory: pytest.TempPathFactory) -> Written:
    """Writes each model once."""

    @functools.cache
    def write(model: str) -> tuple[Path, Array]:
        directory = tmp_path_factory.mktemp(model)
        raw: RawTensor = tensorflow.call("tensorflow_keras_twins.write", model, str(directory), inputs(model))
        return directory, np.frombuffer(raw.data, np.float32).reshape(raw.shape)

    return write


def _load(
    module: nn.Module, path: Path, wanted: Array, model: str, mapper: tfckpt.KeyMapper | None = None
) -> tfckpt.LoadReport:
    """Load, require equal outputs, and no findings if the configuration is known."""
    strict: Literal["semantics", True] = "semantics" if path.name in WITH_CONFIG else True
    report = tfckpt.load_model(module, path, mapper=mapper, strict=strict)
    with torch.no_grad():
        found = module.eval()(*map(torch.from_numpy, inputs(model)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    return report


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", CASES)
def test_equal_names_need_no_rules(written: Written, model: str, form: str) -> None:
    """Unless some variables are unknown. For forms in which names are others, infer finds the rules."""
    case = CASES[model]
    directory, wanted = written(model)
    module, rules = case.make(), None
    if form in case.refused:
        with pytest.raises(tfckpt.NotFoundError):
            _load(module, directory / form, wanted, model)
        return
    if form in case.other_names:
        rules = tfckpt.KeyMapper.infer(directory / form, module)
    _load(module, directory / form, wanted, model, rules)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("model", [name for name, case in CASES.items() if case.names])
def test_other_names_are_inferred(written: Written, model: str, form: str) -> None:
    """By kind, shapes and numbers."""
    case = CASES[model]
    directory, wanted = written(model)
    module = twins.Renamed(case.make(), case.names)
    if form in case.refused:
        with pytest.raises(tfckpt.NotFoundError):
            tfckpt.KeyMapper.infer(directory / form, module)
        return
    _load(module, directory / form, wanted, model, tfckpt.KeyMapper.infer(directory / form, module))


@pytest.mark.parametrize("form", FORMS)
def test_a_flattened_map_is_reordered(written: Written, form: str) -> None:
    """The twin flattens channels first. Without rules, this is a finding; infer gives the order."""
    directory, wanted = written("flattened")
    module = twins.FlattenedInTorchsOrder()
    [finding] = tfckpt.load_model(module, directory / form).semantics
    assert (finding.name, finding.modules) == ("dense_after_flatten", ("hidden",))
    _load(module, directory / form, wanted, "flattened", tfckpt.KeyMapper.infer(directory / form, module))


def test_a_flattening_that_only_keras_shows(written: Written, tmp_path: Path) -> None:
    """It is a finding, and infer asks for the order, with rules that are complete: the second layout is right here."""
    directory, wanted = written("flattened")
    path, module = directory / "m.keras", twins.Untraceable()
    [finding] = tfckpt.load_model(module, path).semantics
    assert (finding.name, finding.modules) == ("dense_after_flatten", ("hidden",))
    with pytest.raises(tfckpt.InvalidArgumentError, match="dense_after_flatten") as error:
        tfckpt.KeyMapper.infer(path, module)
    proposed = [line for line in str(error.value).splitlines() if line.startswith("  ")]
    (tmp_path / "map.toml").write_text("\n".join(proposed))
    rules = tfckpt.KeyMapper.from_file(tmp_path / "map.toml")
    _load(module, path, wanted, "flattened", tfckpt.KeyMapper.infer(path, module, rules=rules))


def test_unnamed_variables_are_listed_with_rules(written: Written, tmp_path: Path) -> None:
    """The rules that infer proposes for the variables of a norm load the model, if the user confirms them."""
    directory, wanted = written("named_norm")
    module = twins.NamedNorm()
    with pytest.raises(tfckpt.NotFoundError, match="does not record which variables these are") as error:
        tfckpt.load_model(module, directory / "m.keras")
    assert '"bn/vars/0" [4]' in str(error.value) and "Load the .keras file" in str(error.value)
    with pytest.raises(tfckpt.NotFoundError, match="if they are in the usual order of Keras") as error:
        tfckpt.KeyMapper.infer(directory / "m.keras", module)
    proposed = str(error.value).partition("of Keras, they are:\n")[2].partition("\nBuild")[0]
    (tmp_path / "map.toml").write_text(proposed)
    rules = tfckpt.KeyMapper.from_file(tmp_path / "map.toml")
    _load(
        module,
        directory / "m.keras",
        wanted,
        "named_norm",
        tfckpt.KeyMapper.infer(directory / "m.keras", module, rules=rules),
    )
    assert tfckpt.load_model(module, directory / "m.keras", mapper=rules).remarks == []


ON_TORCH: Final = [
    *(f"{model}/{form}" for model in ("mlp", "recurrent", "nested", "attention") for form in FORMS),
    *(f"norms/{form}" for form in ("m.keras", "m.h5", "ckpt")),
    *(f"subclassed/{form}" for form in ("m.keras", "m.weights.h5", "m.h5")),
]


def test_keras_on_its_torch_backend(written: Written, tmp_path: Path) -> None:
    """In a process of its own: the same models are filled from files and checkpoints, without rules and remarks."""
    for model in {each.partition("/")[0] for each in ON_TORCH}:
        directory, wanted = written(model)
        np.save(directory / "inputs.npy", inputs(model)[0])
        np.save(directory / "outputs.npy", wanted)
        (tmp_path / model).symlink_to(directory)
    program = [sys.executable, str(Path(twins.__file__).with_name("keras_on_torch.py")), str(tmp_path), *ON_TORCH]
    done = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
