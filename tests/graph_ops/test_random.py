"""Random numbers have TensorFlow's dtypes, shapes and distributions; stateless ones are TensorFlow's numbers."""

from itertools import product

import numpy as np
import pytest
import torch
from op_inputs import Array, Inputs, Results, int32, int64
from op_rows import Row, check, operations, row

from torch_tfckpt.graph_ops import random
from torch_tfckpt.graph_ops.stateless_random import normal, truncated_normal, uniform

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
SHAPES = [(), (3,), (2, 5), (0, 3), (7, 3, 2), (1000,)]
INPUTS = Inputs(9)


def unsigned(*values: int) -> Array:
    return np.array(values, dtype=np.uint64)


def stateless_rows() -> list[Row]:
    rows = []
    seeds = [int64([0, 0]), int64([17, -3]), int32([5, -1]), int64([2**62 + 3, -(2**40)])]
    for seed, shape in product(seeds, SHAPES):
        for name, dtype in product(["Uniform", "Normal"], FLOATS):
            # bfloat16 of TensorFlow's normal numbers may differ in the last bit.
            tolerance = 1e-5 if dtype in (torch.float32, torch.float64) else 4e-3
            rows.append(row(f"StatelessRandom{name}", int32(shape), seed, dtype=dtype, tolerance=tolerance))
        for dtype in [torch.int32, torch.int64, torch.uint32, torch.uint64]:
            rows.append(row("StatelessRandomUniformFullInt", int32(shape), seed, dtype=dtype))
        rows.append(row("StatelessRandomUniformInt", int32(shape), seed, int32(-7), int32(12)))
        rows.append(row("StatelessTruncatedNormal", int32(shape), seed))
    for seed in seeds:
        rows.append(row("StatelessRandomGetKeyCounter", seed))
        rows.append(row("StatelessRandomGetKeyCounterAlg", seed))
        for low, high in [(-(2**62), 2**62), (-5, 9), (-(2**63), 2**63 - 1), (0, 2**40)]:
            limits = int64(low), int64(high)
            rows.append(row("StatelessRandomUniformInt", int32([9]), seed, *limits))
        rows.append(row("StatelessTruncatedNormal", int32([201]), seed, dtype=torch.float64))
        rows.append(row("StatelessTruncatedNormal", int32([201]), seed, dtype=torch.float16, tolerance=2e-3))
    rows.append(row("StatelessRandomGetAlg"))
    for key, counter in [
        (unsigned(0), unsigned(0, 0)),
        (unsigned(2**63 + 5), unsigned(2**64 - 2, 3)),
        (unsigned(7), unsigned(2**64 - 1, 2**64 - 1)),
    ]:
        state = key, counter, int32(1)
        rows += [
            row("StatelessRandomUniformV2", int32([3, 5]), *state),
            row("StatelessRandomUniformV2", int32([3, 5]), *state, dtype=torch.float64),
            row("StatelessRandomNormalV2", int64([3, 5]), *state),
            row("StatelessTruncatedNormalV2", int32([30, 5]), *state),
            row("StatelessRandomUniformFullIntV2", int32([3, 5]), *state, dtype=torch.int32),
            row("StatelessRandomUniformFullIntV2", int32([3, 5]), *state),
            row("StatelessRandomUniformIntV2", int32([9]), *state, int32(0), int32(10)),
            row("StatelessRandomUniformIntV2", int32([9]), *state, int64(-(2**40)), int64(10)),
        ]
    seed = seeds[0]
    rows += [
        row("StatelessRandomUniform", int32([-1]), seed),
        row("StatelessRandomUniform", int32([2]), int64([1, 2, 3])),
        row("StatelessRandomUniformInt", int32([2]), seed, int32(5), int32(5)),
        row("StatelessRandomUniformV2", int32([2]), unsigned(1, 2), unsigned(0, 0), int32(1)),
    ]
    return [each._replace(gradients=False) for each in rows]


ROWS = stateless_rows()


@pytest.mark.parametrize("name", operations(ROWS))
def test_operation(name: str, results: Results) -> None:
    """Every row of the table."""
    check(name, results)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (40, 50)], ids=str)
def test_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """The shape is an input, the dtype an attribute."""
    for function in (random.random_uniform, random.random_standard_normal, random.truncated_normal):
        found = function(shape, dtype=dtype)
        assert (tuple(found.shape), found.dtype) == (shape, dtype)


def test_distributions() -> None:
    """Uniform from 0 to 1, normal, normal between -2 and 2, integers without the upper limit."""
    torch.manual_seed(0)
    uniform_numbers = random.random_uniform((20_000,), dtype=torch.float32)
    assert float(uniform_numbers.min()) >= 0
    assert float(uniform_numbers.max()) < 1
    assert abs(float(uniform_numbers.mean()) - 0.5) < 0.02
    normal_numbers = random.random_standard_normal((20_000,), dtype=torch.float32)
    assert abs(float(normal_numbers.mean())) < 0.05
    assert abs(float(normal_numbers.std()) - 1) < 0.05
    truncated = random.truncated_normal((20_000,), dtype=torch.float32)
    assert float(truncated.abs().max()) <= 2
    assert abs(float(truncated.std()) - 0.8796) < 0.02  # of a normal distribution cut at two deviations
    integers = random.random_uniform_int((2000,), -3, 4, Tout=torch.int64)
    assert sorted(set(integers.tolist())) == list(range(-3, 4))
    assert random.random_uniform_int((2,), 0, 1, Tout=torch.int32).dtype == torch.int32


def test_generator_of_torch() -> None:
    """torch.manual_seed makes the numbers repeatable; without it they differ from call to call."""
    torch.manual_seed(3)
    first, second = (random.random_uniform((5,), dtype=torch.float32) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(random.random_uniform((5,), dtype=torch.float32), first)
    assert not torch.equal(first, second)


def test_multinomial() -> None:
    """Classes are drawn by their probabilities; one of probability zero never."""
    torch.manual_seed(0)
    logits = torch.tensor([[0.0, -float("inf"), 2.0], [5.0, -50.0, -50.0]])
    found = random.multinomial(logits, 3000, output_dtype=torch.int32)
    assert (found.dtype, tuple(found.shape)) == (torch.int32, (2, 3000))
    counts = torch.bincount(found[0].long(), minlength=3)
    assert counts[1] == 0
    assert abs(float(counts[2]) / 3000 - 0.88) < 0.03
    assert set(found[1].tolist()) == {0}
    assert random.multinomial(logits, 0).shape == (2, 0)


def test_shuffle() -> None:
    """Rows stay together."""
    torch.manual_seed(0)
    x = torch.arange(40).reshape(20, 2)
    found = random.random_shuffle(x)
    assert not torch.equal(found, x)
    assert torch.equal(found.sort(0).values, x)


def test_bad_ranges_and_sizes() -> None:
    """Shapes and numbers of samples are numbers of the file."""
    with pytest.raises(ValueError, match="must be less than maxval"):
        random.random_uniform_int((2,), 4, 4, Tout=torch.int32)
    for function in (random.random_uniform, random.random_standard_normal, random.truncated_normal):
        with pytest.raises(ValueError, match="limit"):
            function((1 << 20, 1 << 20), dtype=torch.float32)
    for stateless in (uniform, normal, truncated_normal):
        with pytest.raises(ValueError, match="limit"):
            stateless((1 << 20, 1 << 20), (0, 0))
    with pytest.raises(ValueError, match="limit"):
        random.multinomial(torch.zeros(1, 2), 1 << 40)
