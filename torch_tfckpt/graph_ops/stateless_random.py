"""Random numbers that follow from a seed among the inputs: the same ones as TensorFlow's.

TensorFlow's algorithm is Philox 4x32 with ten rounds:

    counter of block n   (c0, c1, c2, c3) + n, as one number of 128 bits
    a round              hi0, lo0 = 0xD2511F53 * c0; hi2, lo2 = 0xCD9E8D57 * c2
                         (hi2 ^ c1 ^ k0, lo2, hi0 ^ c3 ^ k1, lo0); then k0 += 0x9E3779B9, k1 += 0xBB67AE85

A block is four words of 32 bits. Types of 64 bits take two words, the first of which is the lower one of an integer
and the upper one of a float. Uniform floats are the lowest bits of a word as mantissa; normal ones follow from pairs of
uniform ones by the Box-Muller transform.

Source: tensorflow/core/lib/random/philox_random.h, random_distributions.h; J. Salmon et al., "Parallel Random Numbers:
As Easy as 1, 2, 3", 2011.
"""

import math
from typing import Final, NamedTuple

import torch

from torch_tfckpt.errors import InvalidArgumentError, UnimplementedError
from torch_tfckpt.graph_ops.limits import check_size
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.values import Ints, Tensor

PHILOX: Final = 1
_AUTOMATIC: Final = 3  # Philox on CPUs
_MASK: Final = 0xFFFFFFFF
_ROUNDS: Final = 10
# Bits of the mantissa.
_BITS: Final = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}
_WIDE: Final = (torch.float64, torch.int64, torch.uint64)
# TruncatedNormal keeps this many blocks for each element of a group, and uses the first few.
_RESERVED: Final = 256
_USED: Final = 8


@op("StatelessRandomGetAlg")
def get_alg() -> Tensor:
    return torch.tensor(PHILOX, dtype=torch.int32)


@op("StatelessRandomGetKeyCounter", outputs=("key", "counter"))
def get_key_counter(seed: Ints) -> tuple[Tensor, Tensor]:
    stream = _PhiloxStream.of_seed(seed)
    key, counter = (
        [low | high << 32 for low, high in zip(words[::2], words[1::2], strict=True)]
        for words in (stream.key, stream.counter)
    )
    return torch.tensor(key, dtype=torch.uint64), torch.tensor(counter, dtype=torch.uint64)


@op("StatelessRandomGetKeyCounterAlg", outputs=("key", "counter", "alg"))
def get_key_counter_alg(seed: Ints) -> tuple[Tensor, Tensor, Tensor]:
    return (*get_key_counter(seed), get_alg())


@op("StatelessRandomUniform")
def uniform(shape: Ints, seed: Ints, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return _uniform(shape, _PhiloxStream.of_seed(seed), dtype)


@op("StatelessRandomUniformV2")
def uniform_v2(shape: Ints, key: Ints, counter: Ints, alg: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return _uniform(shape, _PhiloxStream.of_key(key, counter, alg), dtype)


@op("StatelessRandomNormal")
def normal(shape: Ints, seed: Ints, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return _normal(shape, _PhiloxStream.of_seed(seed), dtype)


@op("StatelessRandomNormalV2")
def normal_v2(shape: Ints, key: Ints, counter: Ints, alg: int, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return _normal(shape, _PhiloxStream.of_key(key, counter, alg), dtype)


@op("StatelessTruncatedNormal")
def truncated_normal(shape: Ints, seed: Ints, *, dtype: torch.dtype = torch.float32) -> Tensor:
    return _truncated_normal(shape, _PhiloxStream.of_seed(seed), dtype)


@op("StatelessTruncatedNormalV2")
def truncated_normal_v2(
    shape: Ints, key: Ints, counter: Ints, alg: int, *, dtype: torch.dtype = torch.float32
) -> Tensor:
    return _truncated_normal(shape, _PhiloxStream.of_key(key, counter, alg), dtype)


@op("StatelessRandomUniformInt")
def uniform_int(shape: Ints, seed: Ints, minval: Tensor, maxval: Tensor) -> Tensor:
    return _uniform_int(shape, _PhiloxStream.of_seed(seed), minval, maxval)


@op("StatelessRandomUniformIntV2")
def uniform_int_v2(shape: Ints, key: Ints, counter: Ints, alg: int, minval: Tensor, maxval: Tensor) -> Tensor:
    return _uniform_int(shape, _PhiloxStream.of_key(key, counter, alg), minval, maxval)


@op("StatelessRandomUniformFullInt")
def full_int(shape: Ints, seed: Ints, *, dtype: torch.dtype = torch.uint64) -> Tensor:
    return _full_int(shape, _PhiloxStream.of_seed(seed), dtype)


@op("StatelessRandomUniformFullIntV2")
def full_int_v2(shape: Ints, key: Ints, counter: Ints, alg: int, *, dtype: torch.dtype = torch.uint64) -> Tensor:
    return _full_int(shape, _PhiloxStream.of_key(key, counter, alg), dtype)


class _PhiloxStream(NamedTuple):
    """The words that follow from a key and a counter."""

    key: tuple[int, ...]
    counter: tuple[int, ...]

    @classmethod
    def of_seed(cls, seed: Ints) -> "_PhiloxStream":
        """Mix the bits of a seed, so that similar seeds give different numbers."""
        if len(seed) != 2:
            raise InvalidArgumentError(f"seed must have two numbers, found {list(seed)}")
        mixer = cls((0x3EC8F720, 0x02461E29), (*_words(seed[0]), *_words(seed[1])))
        mixed = mixer.blocks(torch.zeros(1, dtype=torch.int64))[0].tolist()
        return cls((mixed[0], mixed[1]), (0, 0, mixed[2], mixed[3]))

    @classmethod
    def of_key(cls, key: Ints, counter: Ints, alg: int) -> "_PhiloxStream":
        if alg not in (PHILOX, _AUTOMATIC):
            raise UnimplementedError(f"the algorithm of random numbers is {alg}, expected {PHILOX}, which is Philox")
        if len(key) != 1 or len(counter) < 2:
            raise InvalidArgumentError(
                f"key must have one number and counter two, found {list(key)} and {list(counter)}"
            )
        return cls(_words(key[0]), (*_words(counter[0]), *_words(counter[1])))

    def blocks(self, numbers: Tensor) -> Tensor:
        """Return the blocks with these numbers, as [..., 4] of int64."""
        c = []
        carry = numbers
        for word in self.counter:
            total = carry + word
            c.append(total & _MASK)
            carry = total >> 32
        k0, k1 = self.key
        for _ in range(_ROUNDS):
            # The product may exceed int64; its bits are right all the same.
            first, second = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
            c = [
                (second >> 32 & _MASK) ^ c[1] ^ k0,
                second & _MASK,
                (first >> 32 & _MASK) ^ c[3] ^ k1,
                first & _MASK,
            ]
            k0, k1 = k0 + 0x9E3779B9 & _MASK, k1 + 0xBB67AE85 & _MASK
        return torch.stack(c, -1)

    def words(self, count: int) -> Tensor:
        """Return the first words."""
        return self.blocks(torch.arange(-(-count // 4))).flatten()[:count]


def _words(number: int) -> tuple[int, int]:
    """Lower and upper half of 64 bits."""
    return number & _MASK, number >> 32 & _MASK


def _floats(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn words into uniform numbers from 0 to 1, without 1; two words give one float64."""
    bits = _BITS[dtype]
    if dtype == torch.float64:
        mantissa = (words[..., ::2] & (1 << bits - 32) - 1) << 32 | words[..., 1::2]
    else:
        mantissa = words & (1 << bits) - 1
    return mantissa.to(torch.float64 if dtype == torch.float64 else torch.float32) / (1 << bits)


def _box_muller(words: Tensor, dtype: torch.dtype) -> Tensor:
    """Turn words into normal numbers: half precision is computed in float32."""
    uniform = _floats(words, torch.float64 if dtype == torch.float64 else torch.float32)
    radius = torch.sqrt(-2 * torch.log(torch.clamp(uniform[..., ::2], min=1e-7)))
    angle = 2 * math.pi * uniform[..., 1::2]
    return torch.stack([torch.sin(angle) * radius, torch.cos(angle) * radius], -1).flatten(-2)


def _count(shape: Ints, dtype: torch.dtype) -> int:
    """Return how many words the elements take."""
    check_size(shape)
    return math.prod(shape) * (2 if dtype in _WIDE else 1)


def _uniform(shape: Ints, stream: _PhiloxStream, dtype: torch.dtype) -> Tensor:
    return _floats(stream.words(_count(shape, dtype)), dtype).to(dtype).reshape(shape)


def _normal(shape: Ints, stream: _PhiloxStream, dtype: torch.dtype) -> Tensor:
    count = _count(shape, dtype)
    found = _box_muller(stream.words(-(-count // 4) * 4), dtype)
    return found[: math.prod(shape)].to(dtype).reshape(shape)


def _truncated_normal(shape: Ints, stream: _PhiloxStream, dtype: torch.dtype) -> Tensor:
    """Take the first numbers between -2 and 2 of each group of blocks."""
    check_size(shape)
    each = 2 if dtype == torch.float64 else 4
    groups = torch.arange(-(-math.prod(shape) // each)).unsqueeze(1) * (each * _RESERVED // 4)
    found = _box_muller(stream.blocks(groups + torch.arange(_USED)).flatten(1), dtype)
    order = torch.argsort((found.abs() >= 2).int(), dim=1, stable=True)[:, :each]
    return found.gather(1, order).flatten()[: math.prod(shape)].to(dtype).reshape(shape)


def _full_int(shape: Ints, stream: _PhiloxStream, dtype: torch.dtype) -> Tensor:
    words = stream.words(_count(shape, dtype))
    if dtype in _WIDE:
        words = words[::2] | words[1::2] << 32
    return words.to(dtype).reshape(shape)


def _uniform_int(shape: Ints, stream: _PhiloxStream, minval: Tensor, maxval: Tensor) -> Tensor:
    low, high, dtype = int(minval), int(maxval), minval.dtype
    if low >= high:
        raise InvalidArgumentError(f"minval is {low}, which must be less than maxval, {high}")
    words = _full_int(shape, stream, torch.int64 if dtype in _WIDE else torch.uint32).to(torch.int64)
    return (_remainder(words, high - low) + _signed(low)).to(dtype)


def _remainder(words: Tensor, divisor: int) -> Tensor:
    """Divide numbers of 64 bits without sign, which are stored as int64."""
    signed = _signed(divisor)
    if signed < 0:  # from 2^63: the quotient is 0 or 1
        return torch.where((words < 0) & (words >= signed), words - signed, words)
    quotient = torch.div(words >> 1 & (1 << 63) - 1, signed, rounding_mode="floor") * 2
    left = words - quotient * signed
    return torch.where((left < 0) | (left >= signed), left - signed, left)


def _signed(number: int) -> int:
    """The number of int64 with the same bits."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
