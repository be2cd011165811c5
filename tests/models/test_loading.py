"""load_model: names, prefixes, layouts, dtypes, strictness; and that nothing changes unless all of it can."""

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import Small, assert_is_small, bits, numbered, save_objects, small_in_tensorflow
from torch import nn

import torch_tfckpt as tfckpt
from torch_tfckpt.errors import CheckpointError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.data_type import DataType
from torch_tfckpt.models.loading import load_model
from torch_tfckpt.models.rules.key_mapper import KeyMapper
from torch_tfckpt.saveables.load_report import Conversion


@pytest.fixture
def model() -> Small:
    return Small()


def test_tensorflow_names_and_layouts(tmp_path: Path, model: Small) -> None:
    """No mapper: parents are found by name, leaves and layouts by the table; the report lists what was transposed."""
    tfckpt.save_file(small_in_tensorflow() | {"global_step": torch.tensor(7)}, tmp_path / "m")
    report = load_model(model, tmp_path / "m")
    assert_is_small(model, small_in_tensorflow())
    missing, unexpected = report
    assert (missing, unexpected, report.mismatched, report.ignored) == ([], [], [], ["global_step"])
    assert report.converted == [
        Conversion("conv.weight", "conv/kernel", "conv2d", DataType.DT_FLOAT, torch.float32),
        Conversion("fc.weight", "fc/kernel", "dense", DataType.DT_FLOAT, torch.float32),
    ]
    assert report.sources["bn.running_var"] == "bn/moving_variance" and "bn.num_batches_tracked" not in report.sources
    assert report.prefix == ""


@pytest.mark.parametrize("prefix", ["model/", "module.", "net/deep/", "a.b/"])
def test_a_prefix_is_found(tmp_path: Path, model: Small, prefix: str) -> None:
    """All names are below it; the report spells it as the checkpoint does, and ignores what is outside it."""
    stored = {prefix + name: value for name, value in small_in_tensorflow().items()}
    tfckpt.save_file(stored | {"other/fc/kernel": torch.zeros(3, 8), "step": torch.tensor(1)}, tmp_path / "m")
    report = load_model(model, tmp_path / "m")
    assert_is_small(model, small_in_tensorflow())
    assert (report.prefix, report.ignored) == (prefix, ["other/fc/kernel", "step"])


def test_a_count_of_tensors_is_of_those_that_are_counted(tmp_path: Path) -> None:
    """Counters of batches, which torch stores and TensorFlow does not, are in neither of the two numbers."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
    for naming in ("torch", "tf"):
        tfckpt.save_model(model, tmp_path / naming, naming=naming)
        stored = tfckpt.load_file(tmp_path / naming)
        tfckpt.save_file({f"{name}/{key}": stored[key] for name in ("a", "b") for key in stored}, tmp_path / "both")
        with pytest.raises(InvalidArgumentError, match=r"below each of 2 prefixes, 6 of its 6 tensors are found"):
            load_model(model, tmp_path / "both")


def test_several_prefixes_are_an_error_unless_one_is_said(tmp_path: Path, model: Small) -> None:
    """No guess between two models in one file, strict or not."""
    one, other = small_in_tensorflow(), {name: value + 1 for name, value in small_in_tensorflow().items()}
    both = {f"one/{k}": v for k, v in one.items()} | {f"other/{k}": v for k, v in other.items()}
    tfckpt.save_file(both, tmp_path / "m")
    before = bits(model)
    with pytest.raises(InvalidArgumentError, match=r'below each of 2 prefixes, 9 of its 9 .* found: "one/", "other/"'):
        load_model(model, tmp_path / "m", strict=False)
    assert bits(model) == before
    for spelling in ("other", "other/", "other."):
        assert load_model(model, tmp_path / "m", prefix=spelling).prefix == "other/"
        assert_is_small(model, other)
    with pytest.raises(NotFoundError, match='no tensor of the module is stored below the prefix "otter"'):
        load_model(model, tmp_path / "m", prefix="otter")
    with pytest.raises(NotFoundError, match="Missing key"):
        load_model(model, tmp_path / "m", prefix="")


def test_half_of_a_model_is_no_prefix(tmp_path: Path) -> None:
    """A prefix counts only if more than half of the module is below it."""
    tfckpt.save_file({"a/0.weight": torch.zeros(2, 2), "a/0.bias": torch.zeros(2)}, tmp_path / "m")
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    report = load_model(model, tmp_path / "m", strict=False)
    assert (report.prefix, report.sources, len(report.missing)) == ("", {}, 4)


def test_what_a_saver_saved(tmp_path: Path, model: Small) -> None:
    """The model of Saver({"model": ..., "optimizer": ..., "step": ...}), its optimizer and step ignored."""
    optimizer = torch.optim.Adam(model.parameters())
    model.fc(torch.ones(3)).sum().backward()
    optimizer.step()
    saver = tfckpt.Saver({"model": model, "optimizer": optimizer, "step": torch.tensor(3)})
    path = saver.save(tmp_path / "m")
    assert path is not None
    fresh = Small()
    report = load_model(fresh, path)
    assert bits(fresh) == bits(model)
    assert report.prefix == "model/" and "optimizer/state/fc.bias/exp_avg" in report.ignored
    bare = tfckpt.Saver(nn.ModuleDict({"net": model})).save(tmp_path / "bare")
    assert bare is not None
    assert load_model(fresh, bare).prefix == "net."


@pytest.mark.parametrize("below", ["", "model/"])
def test_objects_named_as_attributes(tmp_path: Path, model: Small, below: str) -> None:
    """Object-based: from the root or from one of its children; Keras 3's underscore is known."""
    keras = {"conv/kernel": "conv/_kernel", "fc/kernel": "fc/_kernel", "emb/embeddings": "emb/_embeddings"}
    variables = {below + keras.get(name, name): value for name, value in small_in_tensorflow().items()}
    save_objects(tmp_path / "m", variables | {"save_counter": torch.tensor(1)})
    report = load_model(model, tmp_path / "m")
    assert_is_small(model, small_in_tensorflow())
    assert report.prefix == below
    assert report.sources["fc.weight"] == f"{below}fc/_kernel/.ATTRIBUTES/VARIABLE_VALUE"
    assert report.ignored == ["_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE"]


def test_full_names(tmp_path: Path, model: Small) -> None:
    """Object-based, and only the variables' own names are those of the module."""
    stored = small_in_tensorflow()
    full_names = {f"layers/{number}": f"net/{name}" for number, name in enumerate(stored)}
    save_objects(tmp_path / "m", dict(zip(full_names, stored.values(), strict=True)), full_names=full_names)
    assert load_model(model, tmp_path / "m").prefix == "net/"
    assert_is_small(model, stored)


def test_mapper_sees_keys_paths_and_full_names(tmp_path: Path) -> None:
    """DESIGN: KeyMapper before all else; the layout follows from the stored leaf unless the rule says one."""
    kernel, bias = numbered(3, 3), numbered(3)
    full_names = {"layers/0/_kernel": "d/kernel", "layers/0/bias": "d/bias"}
    save_objects(tmp_path / "m", {"layers/0/_kernel": kernel, "layers/0/bias": bias}, full_names=full_names)
    model = nn.Sequential(fc := nn.Linear(3, 3))
    for rules in (
        {"d/kernel": "0.weight", "d/bias": "0.bias"},
        [(r"layers/(\d+)/_kernel", r"\1.weight"), (r"layers/(\d+)/bias", r"\1.bias")],
        {f"{path}/.ATTRIBUTES/VARIABLE_VALUE": f"0.{leaf}" for path, leaf in zip(full_names, ["weight", "bias"],
                                                                                 strict=True)},
    ):  # fmt: skip
        nn.init.zeros_(fc.weight)
        assert load_model(model, tmp_path / "m", mapper=KeyMapper(rules)).unexpected == []
        assert torch.equal(fc.weight, kernel.t()) and torch.equal(fc.bias, bias)
    load_model(model, tmp_path / "m", mapper={"d/kernel": ("0.weight", "same"), "d/bias": "0.bias"})
    assert torch.equal(fc.weight, kernel)


def test_mapper_mistakes_are_reported(tmp_path: Path, model: Small) -> None:
    """Unknown sources, missing targets and two sources for one target are errors; None ignores a tensor."""
    tfckpt.save_file(small_in_tensorflow() | {"extra": torch.zeros(1)}, tmp_path / "m")
    with pytest.raises(
        NotFoundError, match=r'"fc.bias" \(mapped from "fc/bais", which is not stored. Closest: "fc/bias"\)'
    ):
        load_model(model, tmp_path / "m", mapper={"fc/bais": "fc.bias"})
    with pytest.raises(
        InvalidArgumentError, match=r'Unexpected .*"extra" \(mapped to "fc.extra", which the module does not have'
    ):
        load_model(model, tmp_path / "m", mapper={"extra": "fc.extra"})
    with pytest.raises(InvalidArgumentError, match=r'"bn/gamma" and "fc/bias" are both mapped to "fc\.bias"'):
        load_model(model, tmp_path / "m", mapper=[("bn/gamma|fc/bias", "fc.bias")])
    assert load_model(model, tmp_path / "m", mapper={"extra": None}).ignored == ["extra"]


@pytest.mark.parametrize("leaf", ["kernel", "weights", "weight"])
def test_a_square_weight_is_transposed_by_its_name(tmp_path: Path, leaf: str) -> None:
    """The layout never follows from the shape."""
    tfckpt.save_file({f"fc/{leaf}": numbered(4, 4), "fc/bias": numbered(4)}, tmp_path / "m")
    model = nn.ModuleDict({"fc": nn.Linear(4, 4)})
    load_model(model, tmp_path / "m")
    expected = numbered(4, 4) if leaf == "weight" else numbered(4, 4).t()
    assert torch.equal(model.state_dict()["fc.weight"], expected)


def test_own_names_go_before_tensorflow_s(tmp_path: Path) -> None:
    """Of "fc.weight", "fc/weight" and "fc/kernel" the first there is; two of TensorFlow's leaves are an error."""
    model = nn.ModuleDict({"fc": nn.Linear(4, 4, bias=False)})
    stored = {"fc.weight": numbered(4, 4), "fc/weight": numbered(4, 4) + 1, "fc/kernel": numbered(4, 4) + 2}
    tfckpt.save_file(stored, tmp_path / "m")
    assert load_model(model, tmp_path / "m", strict=False).unexpected == ["fc/kernel", "fc/weight"]
    assert torch.equal(model.state_dict()["fc.weight"], numbered(4, 4))
    tfckpt.save_file({"fc/kernel": numbered(4, 4), "fc/weights": numbered(4, 4)}, tmp_path / "m")
    with pytest.raises(InvalidArgumentError, match=r'"fc\.weight" may be stored as "fc/kernel" or "fc/weights"'):
        load_model(model, tmp_path / "m", strict=False)


def test_strict_lists_all_in_load_state_dict_s_words(tmp_path: Path, model: Small) -> None:
    """Missing, unexpected and mismatched in one message, with a hint; nothing is changed."""
    stored = small_in_tensorflow()
    stored["fc/biass"] = stored.pop("fc/bias")
    stored["conv/kernel"] = torch.zeros(5, 7, 3, 2)
    stored["emb/embeddings"] = torch.zeros(4, 6, dtype=torch.int32)
    stored["fc/kernel"] = torch.zeros(3)
    tfckpt.save_file(stored, tmp_path / "m")
    before = bits(model)
    with pytest.raises(NotFoundError) as told:
        load_model(model, tmp_path / "m")
    assert bits(model) == before
    assert str(told.value) == (
        f"{tmp_path}/m: Error(s) in loading state_dict for Small:\n"
        '  Missing key(s): "fc.bias" (Closest: "fc/biass")\n'
        '  Unexpected key(s): "fc/biass"\n'
        "  size mismatch for conv.weight: copying a param with shape [5,7,3,2] in layout conv2d from checkpoint, the "
        'shape in current model is [3,2,5,7], stored as "conv/kernel"\n'
        "  dtype mismatch for emb.weight: int32 in checkpoint, torch.float32 in current model, stored as "
        '"emb/embeddings"\n'
        "  size mismatch for fc.weight: copying a param with shape [3] in layout dense from checkpoint, the shape in "
        'current model is [8,3], stored as "fc/kernel"\n'
        '  no layout turns [5,7,3,2] of "conv/kernel" into [3,2,5,7] of "conv.weight": not supported yet. If you know '
        'the order of the elements, give two functions in a rule: mapper={"conv/kernel": ("conv.weight", (to_torch, '
        "to_stored))}\n"
        "Nothing was loaded. Map names with mapper=, or pass strict=False to load the tensors that fit"
    )


@pytest.mark.parametrize(
    ("strict", "change", "raises"),
    [
        (True, "names", True), ("names", "names", True), ("shapes", "names", False), (False, "names", False),
        (True, "shapes", True), ("names", "shapes", False), ("shapes", "shapes", True), (False, "shapes", False),
    ],
)  # fmt: skip
def test_strictness(tmp_path: Path, model: Small, strict: Any, change: str, raises: bool) -> None:
    """ "names" tolerates shapes that do not fit, "shapes" missing names; the report has both."""
    stored = small_in_tensorflow()
    if change == "names":
        stored["head/bias"] = stored.pop("fc/bias")
    else:
        stored["fc/bias"] = torch.zeros(9)
    tfckpt.save_file(stored, tmp_path / "m")
    bias = model.fc.bias.detach().clone()
    if raises:
        with pytest.raises(CheckpointError):
            load_model(model, tmp_path / "m", strict=strict)
        return
    report = load_model(model, tmp_path / "m", strict=strict)
    names, shapes = (report.missing, report.unexpected), [each.name for each in report.mismatched]
    assert (names, shapes) == ((["fc.bias"], ["head/bias"]), []) if change == "names" else (([], []), ["fc.bias"])
    assert torch.equal(model.fc.bias, bias) and torch.equal(model.bn.weight, stored["bn/gamma"])
    assert "fc.bias" in str(report)


def test_training_state_is_not_unexpected(tmp_path: Path, model: Small) -> None:
    """Counters, slots and averages of name-based files are not unexpected; a slot without a variable is."""
    stored = small_in_tensorflow()
    beside = {"global_step", "beta1_power", "beta2_power_1", "scope/beta1_power", "fc/kernel/ExponentialMovingAverage"}
    for slot in ("Adam", "Adam_1", "Momentum", "RMSProp_2", "Adagrad", "adam_v"):
        beside.add(f"fc/kernel/{slot}")
    shapes = {key: (3, 8) if key.startswith("fc/kernel") else () for key in [*beside, "gone/Adam"]}
    tfckpt.save_file(stored | {key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / "m")
    report = load_model(model, tmp_path / "m", strict=False)
    assert (set(report.ignored), report.unexpected) == (beside, ["gone/Adam"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_floating_dtypes_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    """Floating-point values get the module's dtype, which is reported; integers and booleans must agree."""
    model = nn.ModuleDict({"fc": nn.Linear(2, 2, bias=False).to(dtype)})
    tfckpt.save_file({"fc.weight": numbered(2, 2)}, tmp_path / "m")
    report = load_model(model, tmp_path / "m")
    weight = model.state_dict()["fc.weight"]
    assert weight.dtype == dtype and torch.equal(weight, numbered(2, 2).to(dtype))
    assert report.converted == [Conversion("fc.weight", "fc.weight", "same", DataType.DT_FLOAT, dtype)]
    assert f"DT_FLOAT to {dtype}" in str(report)


@pytest.mark.parametrize("stored", [torch.tensor(1, dtype=torch.int32), torch.tensor(1.0)], ids=["int32", "float"])
def test_other_dtypes_are_not(tmp_path: Path, stored: torch.Tensor) -> None:
    """An int64 buffer takes int64 only; a string fits no tensor."""
    model = nn.Module()
    model.register_buffer("steps", torch.tensor(0))
    tfckpt.save_file({"steps": stored}, tmp_path / "m")
    with pytest.raises(InvalidArgumentError, match="dtype mismatch for steps"):
        load_model(model, tmp_path / "m")
    tfckpt.save_file({"steps": "text"}, tmp_path / "m")
    with pytest.raises(InvalidArgumentError, match="dtype mismatch for steps: string in checkpoint, torch"):
        load_model(model, tmp_path / "m")


def test_parameters_are_filled_in_place(tmp_path: Path, model: Small) -> None:
    """The same objects, at the same addresses, whatever their strides; requires_grad as it was; no gradient."""
    model.conv.weight.data = model.conv.weight.data.to(memory_format=torch.channels_last)
    model.fc.weight.requires_grad_(False)
    before = {name: (id(p), p.data_ptr(), p.stride(), p.requires_grad) for name, p in model.named_parameters()}
    tfckpt.save_file(small_in_tensorflow(), tmp_path / "m")
    load_model(model, tmp_path / "m")
    after = {name: (id(p), p.data_ptr(), p.stride(), p.requires_grad) for name, p in model.named_parameters()}
    assert after == before
    assert_is_small(model, small_in_tensorflow())
    assert all(p.grad_fn is None for p in model.parameters())


class Marked(nn.Parameter):
    """A Parameter of a class of its own."""


def test_assign_puts_new_parameters(tmp_path: Path, model: Small) -> None:
    """As load_state_dict(assign=True): requires_grad, class and attributes stay, the objects do not."""
    model.fc.weight.requires_grad_(False)
    model.fc.bias = Marked(model.fc.bias.detach())
    model.fc.bias.note = "kept"  # type: ignore[attr-defined]
    old = model.fc.weight
    tfckpt.save_file(small_in_tensorflow(), tmp_path / "m")
    load_model(model, tmp_path / "m", assign=True)
    assert_is_small(model, small_in_tensorflow())
    assert model.fc.weight is not old and not model.fc.weight.requires_grad and model.conv.weight.requires_grad
    assert isinstance(model.fc.bias, Marked) and model.fc.bias.note == "kept"  # type: ignore[attr-defined]
    assert all(value.is_contiguous() for value in model.state_dict().values())
    assert not isinstance(model.bn.running_mean, nn.Parameter)


def test_meta_modules_need_assign(tmp_path: Path) -> None:
    """A module on the meta device takes the tensors that were read; it cannot be filled in place."""
    tfckpt.save_file(small_in_tensorflow(), tmp_path / "m")
    with torch.device("meta"):
        model = Small()
    with pytest.raises(InvalidArgumentError, match=r'"conv.weight" is on the meta device .* Pass assign=True'):
        load_model(model, tmp_path / "m")
    load_model(model, tmp_path / "m", assign=True)
    assert_is_small(model, small_in_tensorflow())
    assert model.fc.weight.device.type == "cpu" and isinstance(model.fc.weight, nn.Parameter)


def test_batch_counts_of_meta_modules(tmp_path: Path) -> None:
    """Zero where TensorFlow has none, so that the module works; what is stored where there is one."""
    tfckpt.save_file(small_in_tensorflow(), tmp_path / "m")
    source = Small()
    source.bn.get_buffer("num_batches_tracked").fill_(7)
    tfckpt.save_model(source, tmp_path / "counted", naming="tf")
    for prefix, count in (("m", 0), ("counted", 7)):
        with torch.device("meta"):
            model = Small()
        load_model(model, tmp_path / prefix, assign=True)
        assert all(value.device.type == "cpu" for value in model.state_dict().values())
        assert model.bn.num_batches_tracked == count


@pytest.mark.parametrize("assign", [False, True])
def test_lazy_modules_are_materialized(tmp_path: Path, assign: bool) -> None:
    """They take the stored shape, and work."""
    tfckpt.save_file({"0/kernel": numbered(3, 5), "0/bias": numbered(5)}, tmp_path / "m")
    model = nn.Sequential(nn.LazyLinear(5))
    load_model(model, tmp_path / "m", assign=assign)
    assert torch.equal(model.get_parameter("0.weight"), numbered(3, 5).t())
    assert torch.equal(model(torch.eye(3)), numbered(3, 5) + numbered(5))
    assert type(model.get_parameter("0.weight")) is nn.Parameter
    wrong = nn.Sequential(nn.LazyLinear(5))
    tfckpt.save_file({"0/kernel": numbered(3), "0/bias": numbered(5)}, tmp_path / "m")
    with pytest.raises(
        InvalidArgumentError, match=r"size mismatch for 0.weight: .*\[3\] in layout dense .* not known yet"
    ):
        load_model(wrong, tmp_path / "m")


class Tied(nn.Module):
    """An embedding whose weight is also that of a Linear, or not."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.emb = nn.Embedding(4, 3)
        self.out = nn.Linear(3, 4, bias=False)
        if tied:
            self.out.weight = self.emb.weight


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("key", "turn"),
    [("emb.weight", False), ("out.weight", False), ("emb/embeddings", False), ("out/kernel", True)],
)
def test_tied_parameters_are_found_under_either_name(tmp_path: Path, key: str, turn: bool, assign: bool) -> None:
    """And stay tied; each name with its own layout."""
    tfckpt.save_file({key: numbered(4, 3).t() if turn else numbered(4, 3)}, tmp_path / "m")
    model = Tied(True)
    report = load_model(model, tmp_path / "m", assign=assign)
    assert model.out.weight is model.emb.weight and torch.equal(model.emb.weight, numbered(4, 3))
    assert report.sources == {"emb.weight": key, "out.weight": key}


@pytest.mark.parametrize("assign", [False, True])
def test_tied_tensors_can_be_loaded_untied(tmp_path: Path, assign: bool) -> None:
    """Saver's JSON of shared names is read; the two tensors remain separate."""
    saved = Tied(True)
    path = tfckpt.Saver({"net": saved}).save(tmp_path / "m")
    assert path is not None
    model = Tied(False)
    load_model(model, path, assign=assign)
    assert torch.equal(model.out.weight, saved.emb.weight) and torch.equal(model.emb.weight, saved.emb.weight)
    assert model.out.weight.data_ptr() != model.emb.weight.data_ptr()


def test_damaged_json_of_shared_names(tmp_path: Path) -> None:
    """It raises a DataLossError, not an error of json."""
    for text in ("{", "[1]", '{"a": 1}'):
        tfckpt.save_file({"emb.weight": numbered(4, 3), ".shared": text}, tmp_path / "m")
        with pytest.raises(tfckpt.DataLossError, match=r'"\.shared" is n'):
            load_model(Tied(False), tmp_path / "m")


def test_averages(tmp_path: Path, model: Small) -> None:
    """ "ignore" loads values, "prefer" averages if there are any, "only" raises and names those without."""
    stored = small_in_tensorflow()
    suffix = "/ExponentialMovingAverage"
    shadows = {name + suffix: value + 100 for name, value in stored.items()}
    tfckpt.save_file(stored | shadows, tmp_path / "all")
    tfckpt.save_file(stored | {f"fc/kernel{suffix}": shadows[f"fc/kernel{suffix}"]}, tmp_path / "one")
    tfckpt.save_file(shadows, tmp_path / "bare")
    assert load_model(model, tmp_path / "all").averaged == []
    assert_is_small(model, stored)
    for prefix in ("all", "bare"):
        load_model(model, tmp_path / "all")
        report = load_model(model, tmp_path / prefix, ema="only")
        assert report.sources["fc.weight"] == f"fc/kernel{suffix}" and len(report.averaged) == 9
        assert_is_small(model, {name: value + 100 for name, value in stored.items()})
    report = load_model(model, tmp_path / "one", ema="prefer")
    assert report.averaged == ["fc.weight"] and "1 of them moving averages" in str(report)
    assert_is_small(model, {name: value + 100 * (name == "fc/kernel") for name, value in stored.items()})
    with pytest.raises(
        NotFoundError, match=r'ema="only", but no moving average is stored for "conv.weight", "conv.bias"'
    ):
        load_model(model, tmp_path / "one", ema="only")


class WithMore(nn.Module):
    """Extra state, and a buffer that is not persistent."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.register_buffer("passing", torch.zeros(2), persistent=False)

    def get_extra_state(self) -> Any:
        return {"n": 1}

    def set_extra_state(self, state: Any) -> None:
        raise AssertionError("left alone")


def test_extra_state_and_passing_buffers_are_left_alone(tmp_path: Path) -> None:
    """It is neither missing nor filled, even from a file of Saver that has the extra state."""
    path = tfckpt.Saver(WithMore()).save(tmp_path / "m")
    assert path is not None
    assert load_model(WithMore(), path).ignored == ["_extra_state"]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda stored: stored.pop("fc/bias"), NotFoundError),
        (lambda stored: stored.update(extra=torch.zeros(1)), InvalidArgumentError),
        (lambda stored: stored.update({"fc/bias": torch.zeros(7)}), InvalidArgumentError),
        (None, tfckpt.DataLossError),
    ],
    ids=["missing", "unexpected", "mismatched", "damaged"],
)
@pytest.mark.parametrize("assign", [False, True])
def test_a_failed_load_changes_nothing(
    tmp_path: Path, model: Small, change: Callable[[dict[str, torch.Tensor]], object] | None, error: Any, assign: bool
) -> None:
    """Not one bit, nor which tensors there are, even where the last byte of the file is wrong."""
    stored = small_in_tensorflow()
    if change is not None:
        change(stored)
    tfckpt.save_file(stored, tmp_path / "m")
    if change is None:
        data = tmp_path / "m.data-00000-of-00001"
        content = bytearray(data.read_bytes())
        content[-1] ^= 1
        data.write_bytes(content)
    before, objects = bits(model), [id(p) for p in (*model.parameters(), *model.buffers())]
    with pytest.raises(error):
        load_model(model, tmp_path / "m", assign=assign)
    assert bits(model) == before and [id(p) for p in (*model.parameters(), *model.buffers())] == objects


def test_batch_counts_are_missing_from_torch_s_own_files_only(tmp_path: Path) -> None:
    """Where running_mean came under torch's name, num_batches_tracked should have come too."""
    model = nn.Sequential(nn.BatchNorm1d(2))
    stored = {name: value for name, value in model.state_dict().items() if not name.endswith("tracked")}
    tfckpt.save_file(stored, tmp_path / "m")
    assert load_model(model, tmp_path / "m", strict=False).missing == ["0.num_batches_tracked"]
    rules = {key: name for key, name in zip("abcd", ["weight", "bias", "running_mean", "running_var"], strict=True)}
    tfckpt.save_file({key: numbered(2) for key in rules}, tmp_path / "m")
    assert load_model(model, tmp_path / "m", mapper={key: f"0.{name}" for key, name in rules.items()}).missing == []


def test_wrong_arguments(tmp_path: Path, model: Small) -> None:
    """They are refused before anything is opened."""
    wrong: list[Any] = ["all", 1.5, 1, None, []]
    for strict in wrong:
        with pytest.raises(
            InvalidArgumentError, match=r'strict=.*: pass True, False, "names", "shapes" or "semantics"'
        ):
            load_model(model, tmp_path / "m", strict=strict)
    with pytest.raises(InvalidArgumentError, match="ema='both': pass"):
        load_model(model, tmp_path / "m", ema="both")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="prefix=3: pass a string"):
        load_model(model, tmp_path / "m", prefix=3)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="KeyMapper: 3 is not a set of rules"):
        load_model(model, tmp_path / "m", mapper=3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the model is a dict\. Pass a torch.nn.Module"):
        load_model({}, tmp_path / "m")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the optimizer is a str\. Pass a torch.optim.Optimizer"):
        load_model(model, tmp_path / "m", optimizer="adam")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="assign=True replaces the parameters"):
        load_model(model, tmp_path / "m", assign=True, optimizer=torch.optim.Adam(model.parameters()))
    with pytest.raises(NotFoundError):
        load_model(model, tmp_path / "m")


def test_version_1_files_and_partitioned_tensors(tmp_path: Path) -> None:
    """Any checkpoint that the reader reads: version 1, and slices of one tensor."""
    infos = [tfckpt.SaveSliceInfo("emb/embeddings", [4, 3], [start, 0], [rows, 3]) for start, rows in ((0, 1), (1, 3))]
    parts = [
        tfckpt.Variable(part.clone(), "emb/embeddings", info)
        for part, info in zip((numbered(4, 3)[:1], numbered(4, 3)[1:]), infos, strict=True)
    ]
    model = nn.Sequential(OrderedDict(emb=nn.Embedding(4, 3)))
    for version in (tfckpt.SaverDef.V1, tfckpt.SaverDef.V2):
        path = tfckpt.Saver(parts, write_version=version).save(tmp_path / f"v{version}")
        assert path is not None
        nn.init.zeros_(model.get_parameter("emb.weight"))
        load_model(model, path)
        assert torch.equal(model.state_dict()["emb.weight"], numbered(4, 3))


class Unrolled(nn.Module):
    """The module whose twin corpus/cosmostat-mri is: ten convolutions in a list."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, *[32] * 9, 1]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3) for i, o in pairwise(widths))


def test_a_real_model_of_keras_2_with_its_adam(corpus: Path) -> None:
    """Object-based: a list of layers, slot variables, and iter; each tensor is the stored one, transposed."""
    prefix = corpus / "cosmostat-mri" / "mri_recon_tuto"
    model = Unrolled()
    optimizer = torch.optim.Adam(model.parameters())
    report = load_model(model, prefix, optimizer=optimizer)
    assert (len(report.sources), len(report.slots), report.unexpected) == (20, 20, [])
    stored = tfckpt.load_file(prefix)
    kernel, moment = "convs/3/kernel/.ATTRIBUTES/VARIABLE_VALUE", "convs/3/kernel/.OPTIMIZER_SLOT/optimizer/m"
    weight = model.get_parameter("convs.3.weight")
    assert torch.equal(weight[5, 7], torch.as_tensor(stored[kernel])[:, :, 7, 5])
    exp_avg = optimizer.state[weight]["exp_avg"]
    assert torch.equal(exp_avg[5, 7], torch.as_tensor(stored[f"{moment}/.ATTRIBUTES/VARIABLE_VALUE"])[:, :, 7, 5])
    assert optimizer.state[weight]["step"] == stored["optimizer/iter/.ATTRIBUTES/VARIABLE_VALUE"]


def test_real_weights_of_keras_s_save_weights(corpus: Path) -> None:
    """Keras 2's TF-format weights, which Keras 3 no longer reads."""
    layers = {"dense_1": nn.Linear(784, 64), "dense_2": nn.Linear(64, 64), "pred_layer": nn.Linear(64, 10)}
    model = nn.ModuleDict(layers)
    load_model(model, corpus / "tslnihao-weights" / "my_model_weights")
    stored = tfckpt.load_file(corpus / "tslnihao-weights" / "my_model_weights")
    for name, layer in layers.items():
        kernel = stored[f"{name}/kernel/.ATTRIBUTES/VARIABLE_VALUE"]
        assert torch.equal(layer.weight, torch.as_tensor(kernel).t())


def test_a_real_model_by_names(golden: Path) -> None:
    """A TensorFlow 1 checkpoint with slots, powers and global_step: none of these is unexpected."""
    model = nn.ModuleDict({
        "conv2d": nn.Conv2d(1, 8, 3), "conv2d_1": nn.Conv2d(8, 16, 3),
        "dense": nn.Linear(64, 32), "dense_1": nn.Linear(32, 10),
    })  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters())
    report = load_model(model, golden / "digits-cnn" / "model.ckpt-216", optimizer=optimizer)
    assert (len(report.sources), len(report.slots), report.prefix) == (8, 8, "")


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(small_in_tensorflow())), st.sampled_from(["drop", "shape", "dtype", "byte"]), st.booleans()
)
def test_no_single_fault_changes_a_bit(
    tmp_path_factory: pytest.TempPathFactory, name: str, fault: str, assign: bool
) -> None:
    """Whichever tensor is missing, of another shape or dtype, or damaged: the module stays as it was, bit for bit.

    A missing gamma or beta is filled, and reported.
    """
    prefix = tmp_path_factory.mktemp("m") / "m"
    stored = small_in_tensorflow()
    if fault == "drop":
        del stored[name]
    elif fault == "shape":
        stored[name] = stored[name][:-1]
    elif fault == "dtype":
        stored[name] = stored[name].to(torch.int32)
    tfckpt.save_file(stored, prefix)
    if fault == "byte":
        data = prefix.with_name("m.data-00000-of-00001")
        content = bytearray(data.read_bytes())
        at = sum(value.nbytes for key, value in sorted(stored.items()) if key < name)
        content[at] ^= 1
        data.write_bytes(content)
    model = Small()
    before = bits(model)
    if fault == "drop" and name in ("bn/gamma", "bn/beta"):
        # TensorFlow does not store them for a layer with scale=False or center=False.
        assert len(load_model(model, prefix, assign=assign).filled) == 1
        return
    with pytest.raises(CheckpointError):
        load_model(model, prefix, assign=assign)
    assert bits(model) == before


def test_advice_on_prefixes_and_averages(tmp_path: Path, model: Small, caplog: pytest.LogCaptureFixture) -> None:
    """The error and the report name what to pass; that nothing was loaded is logged if it is tolerated."""
    stored = small_in_tensorflow()
    tfckpt.save_file({f"net/{name}": stored[name] for name in ("fc/kernel", "fc/bias")}, tmp_path / "part")
    text = '2 of 9 tensors are below "net/"; pass prefix="net/"'
    with pytest.raises(NotFoundError, match=text):
        load_model(model, tmp_path / "part")
    assert not caplog.records
    report = load_model(model, tmp_path / "part", strict=False)
    assert report.remarks == [text] and text in str(report) and "no tensor of the Small was loaded" in caplog.text
    caplog.clear()
    assert len(load_model(model, tmp_path / "part", strict=False, prefix="net/").sources) == 2
    assert not caplog.records
    averages = {f"net/{name}/ExponentialMovingAverage": value for name, value in stored.items()}
    tfckpt.save_file(averages, tmp_path / "averages")
    with pytest.raises(NotFoundError, match='moving averages of 9 missing tensors are stored: pass ema="prefer"'):
        load_model(model, tmp_path / "averages")
    model.bn.eps = 1e-3  # so that there is nothing to remark on it
    assert load_model(model, tmp_path / "averages", ema="prefer").remarks == []
    rules = {"net/fc/kernel": "weight", "net/fc/bias": "bias"}
    report = load_model(nn.Linear(3, 8), tmp_path / "averages", mapper=rules, strict=False)
    assert report.remarks == ['moving averages of 2 missing tensors are stored: pass ema="prefer"']


def test_rules_that_match_nothing(tmp_path: Path, model: Small) -> None:
    """They are reported as they were written, and are not an error by themselves."""
    tfckpt.save_file(small_in_tensorflow(), tmp_path / "m")
    rules: Any = [("fc/(bias)", r"fc.\1"), (r"cnv/(.*)", r"conv.\1"), ("head", None)]
    report = load_model(model, tmp_path / "m", mapper=rules)
    assert report.unused_rules == ["cnv/(.*)", "head"] and 'Rules that match nothing: "cnv/' in str(report)
    with pytest.raises(NotFoundError, match='Rules that match nothing: "x"'):
        load_model(model, tmp_path / "m", mapper={"x": None, "fc/bias": None})


def test_recurrent_layers_under_torchs_names(tmp_path: Path) -> None:
    """A bias of a GRU has one row per gate in torch and in Keras's other formula; the name tells them apart."""
    for kind in (nn.GRU, nn.LSTM, nn.RNN):
        stored, model = (nn.ModuleDict({"rnn": kind(3, 4, bidirectional=True)}) for _ in range(2))
        path = tfckpt.save_model(stored, tmp_path / kind.__name__)
        assert tfckpt.load_model(model, path).mismatched == []
        assert all(torch.equal(value, stored.state_dict()[name]) for name, value in model.state_dict().items())
