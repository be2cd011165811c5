"""read_slice(out=) and read_into: parts of stored tensors, straight into tensors with any strides."""

from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

import torch_tfckpt as tfckpt
from torch_tfckpt.bundle import pieces
from torch_tfckpt.bundle.reader import BundleReader
from torch_tfckpt.bundle.writer import BundleWriter
from torch_tfckpt.errors import DataLossError, InvalidArgumentError, NotFoundError
from torch_tfckpt.format.tensor_slice import Extent, TensorSlice
from torch_tfckpt.storage.local import LOCAL

SHAPE = (6, 8)
VALUES = torch.arange(48.0).reshape(SHAPE)
KINDS = ("whole", "rows", "columns", "quarters")


@pytest.fixture(scope="module")
def prefix(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The same values stored whole, in rows, in columns, and in quarters."""
    path = str(tmp_path_factory.mktemp("stored") / "m")
    with BundleWriter(LOCAL, path, num_shards=2) as writer:
        writer.add("whole", VALUES)
        writer.add("words", np.array([b"a", b"b"], dtype=object))
        for kind, cuts in {
            "rows": "0,2:- 2,3:- 5,1:-",
            "columns": "-:0,5 -:5,3",
            "quarters": "0,3:0,4 0,3:4,4 3,3:0,4 3,3:4,4",
        }.items():
            for number, text in enumerate(cuts.split()):
                part = TensorSlice.parse(text)
                writer.add_slice(kind, SHAPE, part, VALUES[part.to_index()], shard=number % 2)
    return path


@st.composite
def parts(draw: Any) -> TensorSlice:
    extents = []
    for size in SHAPE:
        start = draw(st.integers(0, size - 1))
        extents.append(Extent(start, draw(st.integers(1, size - start))))
    return TensorSlice(tuple(extents))


def target(layout: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of this shape that is contiguous, transposed in memory, or a part of a larger one."""
    if layout == "contiguous":
        return torch.full(shape, -1.0)
    if layout == "transposed":
        return torch.full(shape[::-1], -1.0).T
    return torch.full((shape[0] + 2, 2 * shape[1] + 1), -1.0)[1:-1, 1::2]


LAYOUTS = st.sampled_from(["contiguous", "transposed", "part"])


@given(st.lists(st.tuples(st.sampled_from(KINDS), parts(), LAYOUTS), max_size=6), st.booleans())
@settings(max_examples=150, deadline=None)
def test_any_parts_into_any_tensors(prefix: str, wanted: list[tuple[str, TensorSlice, str]], verify: bool) -> None:
    """One plan, one slice at a time, and indexing the values: all equal."""
    with tfckpt.CheckpointReader(prefix, verify=verify) as reader:
        requests = [(name, part, target(layout, part.shape_of(SHAPE))) for name, part, layout in wanted]
        reader.read_into(requests)
        for (name, part, filled), (_, _, layout) in zip(requests, wanted, strict=True):
            assert torch.equal(filled, VALUES[part.to_index()])
            out = target(layout, part.shape_of(SHAPE))
            assert reader.read_slice(name, part, out=out) is out and torch.equal(out, filled)
            assert torch.equal(reader.read_slice(name, part), filled)


def test_whole_tensors_and_gradients(prefix: str) -> None:
    """None is the whole tensor; a parameter is filled in place, and what surrounds a view stays."""
    around = torch.full((8, 10), 7.0)
    parameter = torch.nn.Parameter(torch.zeros(SHAPE))
    with tfckpt.load_checkpoint(prefix) as reader:
        reader.read_into([("rows", None, around[1:7, 1:9]), ("columns", None, parameter)])
    assert torch.equal(around[1:7, 1:9], VALUES) and torch.equal(parameter, VALUES)
    assert int((around == 7.0).sum()) == 80 - 48 + 1


def test_groups_of_staged_pieces(prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """More pieces than are staged at once."""
    monkeypatch.setattr(pieces, "STAGED_BYTES", 40)
    out = [torch.zeros(SHAPE[::-1]).T for _ in KINDS]
    with tfckpt.load_checkpoint(prefix) as reader:
        reader.read_into(list(zip(KINDS, [None] * 4, out, strict=True)))
    assert all(torch.equal(each, VALUES) for each in out)


@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_found(kind: str, layout: str, prefix: str, tmp_path: Path) -> None:
    """Also outside the wanted part of a piece, of which every byte counts."""
    copy = tmp_path / "m"
    for path in Path(prefix).parent.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    with BundleReader(LOCAL, str(copy)) as reader:
        piece = reader.pieces(kind)[0]
        data = reader.files.shard_path(piece.shard)
    with Path(data).open("r+b") as file:
        file.seek(piece.end - 1)
        file.write(b"?")
    with tfckpt.load_checkpoint(copy) as whole:
        part = TensorSlice.parse("0,1:0,2")
        with pytest.raises(
            DataLossError, match=rf'{Path(data).name}, bytes .*tensor "{kind}": Checksum does not match'
        ):
            whole.read_into([(kind, part, target(layout, (1, 2)))])


def test_what_cannot_be_filled(prefix: str) -> None:
    """Another shape or dtype, strings, unknown names, parts outside: nothing is read."""
    part = TensorSlice.parse("0,2:-")
    good = torch.full(SHAPE, -1.0)
    bad: list[tuple[str, TensorSlice | None, torch.Tensor, type[Exception]]] = [
        ("rows", part, torch.zeros(2, 7), InvalidArgumentError),
        ("rows", part, torch.zeros(2, 8, dtype=torch.float64), InvalidArgumentError),
        ("rows", part, torch.zeros(1).expand(2, 8), InvalidArgumentError),
        ("rows", TensorSlice.parse("5,2:-"), torch.zeros(2, 8), InvalidArgumentError),
        ("words", None, torch.zeros(2), InvalidArgumentError),
        ("nothing", None, torch.zeros(2), NotFoundError),
    ]
    with tfckpt.load_checkpoint(prefix) as reader:
        for name, where, out, error in bad:
            with pytest.raises(error):
                reader.read_into([("whole", None, good), (name, where, out)])
            assert good.eq(-1).all()


def test_version_1_and_keras_like_readers(tmp_path: Path) -> None:
    """Every reader fills tensors, with the same checks."""
    path = tfckpt.Saver({"w": VALUES}, write_version=tfckpt.SaverDef.V1).save(str(tmp_path / "one"))
    part = TensorSlice.parse("1,2:3,4")
    with tfckpt.load_checkpoint(path) as reader:
        assert reader.version == 1
        outs = [torch.zeros(4, 2).T, torch.zeros(SHAPE)]
        reader.read_into([("w", part, outs[0]), ("w", None, outs[1])])
        assert torch.equal(outs[0], VALUES[1:3, 3:7]) and torch.equal(outs[1], VALUES)
        with pytest.raises(InvalidArgumentError, match="out"):
            reader.read_slice("w", part, out=torch.zeros(2, 5))


def test_conjugate_and_negated_targets(tmp_path: Path) -> None:
    """The values are stored, whatever flags the target has; whole, in rows, and a part."""
    values = torch.arange(12.0).to(torch.complex64).reshape(4, 3) * (1 + 2j)
    path = str(tmp_path / "m")
    with BundleWriter(LOCAL, path) as writer:
        writer.add("whole", values)
        for start in (0, 2):
            part = TensorSlice.parse(f"{start},2:-")
            writer.add_slice("rows", (4, 3), part, values[part.to_index()])
    with tfckpt.load_checkpoint(path) as reader:
        for name in ("whole", "rows"):
            outs = [torch.zeros(4, 3, dtype=torch.complex64).conj(), torch.zeros(2, 3, dtype=torch.complex64).conj()]
            reader.read_into([(name, None, outs[0]), (name, TensorSlice.parse("1,2:-"), outs[1])])
            assert torch.equal(outs[0], values) and torch.equal(outs[1], values[1:3])
