"""Numbers of buckets for strings, by hash functions.

    StringToHashBucketFast     Fingerprint64 of FarmHash
    StringToHashBucketStrong   SipHash-2-4 with a key
    StringToHashBucket         MurmurHash64A with the seed 0xDECAFCAFFE

All are functions of 64-bit numbers that are read from the bytes in little-endian order; additions and multiplications
are modulo 2^64.

Source: https://github.com/google/farmhash (namespace farmhashna); J.-P. Aumasson, D. J. Bernstein, "SipHash: a fast
short-input PRF"; tsl/platform/hash.cc.
"""

from collections.abc import Callable
from typing import Final

import torch

from torch_tfckpt.errors import InvalidArgumentError
from torch_tfckpt.graph_ops.registry import op
from torch_tfckpt.graph_ops.text_arrays import elements
from torch_tfckpt.graph_ops.values import Ints, Strings, Tensor

_MASK: Final = (1 << 64) - 1
_K0: Final = 0xC3A5C85C97CB3127
_K1: Final = 0xB492B66FBE98F273
_K2: Final = 0x9AE16A3B2F90404F


@op("StringToHashBucketFast")
def string_to_hash_bucket_fast(input: Strings, *, num_buckets: int) -> Tensor:
    return _buckets(input, num_buckets, fingerprint64)


@op("StringToHashBucketStrong")
def string_to_hash_bucket_strong(input: Strings, *, num_buckets: int, key: Ints) -> Tensor:
    if len(key) != 2:
        raise InvalidArgumentError(f"key has {len(key)} numbers, expected 2")
    return _buckets(input, num_buckets, lambda text: sip_hash(text, key[0] & _MASK, key[1] & _MASK))


@op("StringToHashBucket")
def string_to_hash_bucket(string_tensor: Strings, *, num_buckets: int) -> Tensor:
    return _buckets(string_tensor, num_buckets, murmur_hash)


def _buckets(strings: Strings, count: int, function: Callable[[bytes], int]) -> Tensor:
    if count < 1:
        raise InvalidArgumentError(f"num_buckets is {count}, expected at least 1")
    found = [function(text) % count for text in elements(strings)]
    return torch.tensor(found, dtype=torch.int64).reshape(strings.shape)


def fingerprint64(text: bytes) -> int:
    """Return FarmHash's Fingerprint64."""
    size = len(text)
    if size <= 16:
        return _up_to_16(text, size)
    if size <= 32:
        return _up_to_32(text, size)
    if size <= 64:
        return _up_to_64(text, size)
    return _long(text, size)


def _up_to_16(text: bytes, size: int) -> int:
    factor = _K2 + size * 2
    if size >= 8:
        a, b = _word(text, 0) + _K2, _word(text, size - 8)
        c = _rotated(b, 37) * factor + a
        d = (_rotated(a, 25) + b) * factor
        return _mixed(c, d, factor)
    if size >= 4:
        return _mixed(size + (_half(text, 0) << 3), _half(text, size - 4), factor)
    if not size:
        return _K2
    y = text[0] + (text[size >> 1] << 8)
    z = size + (text[-1] << 2)
    return _shifted((y * _K2 & _MASK) ^ (z * _K0 & _MASK)) * _K2 & _MASK


def _up_to_32(text: bytes, size: int) -> int:
    factor = _K2 + size * 2
    a, b = _word(text, 0) * _K1, _word(text, 8)
    c, d = _word(text, size - 8) * factor, _word(text, size - 16) * _K2
    return _mixed(_rotated(a + b, 43) + _rotated(c, 30) + d, a + _rotated(b + _K2, 18) + c, factor)


def _up_to_64(text: bytes, size: int) -> int:
    factor = _K2 + size * 2
    a, b = _word(text, 0) * _K2, _word(text, 8)
    c, d = _word(text, size - 8) * factor, _word(text, size - 16) * _K2
    y = _rotated(a + b, 43) + _rotated(c, 30) + d
    z = _mixed(y, a + _rotated(b + _K2, 18) + c, factor)
    e, f = _word(text, 16) * factor, _word(text, 24)
    g, h = (y + _word(text, size - 32)) * factor, (z + _word(text, size - 24)) * factor
    return _mixed(_rotated(e + f, 43) + _rotated(g, 30) + h, e + _rotated(f + a, 18) + g, factor)


def _long(text: bytes, size: int) -> int:
    x = 81 * _K2 + _word(text, 0)
    y = 81 * _K1 + 113 & _MASK
    z = _shifted(y * _K2 + 113 & _MASK) * _K2 & _MASK
    v, w = (0, 0), (0, 0)
    for at in range(0, (size - 1) // 64 * 64, 64):
        x = _rotated(x + y + v[0] + _word(text, at + 8), 37) * _K1 & _MASK
        y = _rotated(y + v[1] + _word(text, at + 48), 42) * _K1 & _MASK
        x ^= w[1]
        y = y + v[0] + _word(text, at + 40) & _MASK
        z = _rotated(z + w[0], 33) * _K1 & _MASK
        v = _pair(text, at, v[1] * _K1, x + w[0])
        w = _pair(text, at + 32, z + w[1], y + _word(text, at + 16))
        z, x = x, z
    factor = _K1 + ((z & 0xFF) << 1)
    at = size - 64
    first = w[0] + (size - 1 & 63)
    second = v[0] + first
    v, w = (second & _MASK, v[1]), (first + second & _MASK, w[1])
    x = _rotated(x + y + v[0] + _word(text, at + 8), 37) * factor & _MASK
    y = _rotated(y + v[1] + _word(text, at + 48), 42) * factor & _MASK
    x ^= w[1] * 9 & _MASK
    y = y + v[0] * 9 + _word(text, at + 40) & _MASK
    z = _rotated(z + w[0], 33) * factor & _MASK
    v = _pair(text, at, v[1] * factor, x + w[0])
    w = _pair(text, at + 32, z + w[1], y + _word(text, at + 16))
    z, x = x, z
    return _mixed(
        _mixed(v[0], w[0], factor) + _shifted(y) * _K0 + z,
        _mixed(v[1], w[1], factor) + x,
        factor,
    )


def _pair(text: bytes, at: int, a: int, b: int) -> tuple[int, int]:
    """Mix 32 bytes into two numbers."""
    a += _word(text, at)
    b = _rotated(b + a + _word(text, at + 24), 21)
    c = a
    a += _word(text, at + 8) + _word(text, at + 16)
    b += _rotated(a, 44)
    return a + _word(text, at + 24) & _MASK, b + c & _MASK


def _mixed(first: int, second: int, factor: int) -> int:
    first, second = first & _MASK, second & _MASK
    a = _shifted((first ^ second) * factor & _MASK)
    return _shifted((second ^ a) * factor & _MASK) * factor & _MASK


def _shifted(value: int) -> int:
    value &= _MASK
    return value ^ value >> 47


def _rotated(value: int, bits: int) -> int:
    value &= _MASK
    return (value >> bits | value << 64 - bits) & _MASK


def _word(text: bytes, at: int) -> int:
    return int.from_bytes(text[at : at + 8], "little")


def _half(text: bytes, at: int) -> int:
    return int.from_bytes(text[at : at + 4], "little")


def sip_hash(text: bytes, first: int, second: int) -> int:
    """Return SipHash-2-4 for the key of two numbers."""
    state = [first ^ 0x736F6D6570736575, second ^ 0x646F72616E646F6D]
    state += [first ^ 0x6C7967656E657261, second ^ 0x7465646279746573]
    padded = text + bytes(-(len(text) + 1) % 8) + bytes([len(text) & 0xFF])
    for at in range(0, len(padded), 8):
        word = _word(padded, at)
        state[3] ^= word
        _sip_rounds(state, 2)
        state[0] ^= word
    state[2] ^= 0xFF
    _sip_rounds(state, 4)
    return state[0] ^ state[1] ^ state[2] ^ state[3]


def _sip_rounds(state: list[int], count: int) -> None:
    a, b, c, d = state
    for _ in range(count):
        a, c = a + b & _MASK, c + d & _MASK
        b, d = _rotated(b, 51) ^ a, _rotated(d, 48) ^ c
        a = _rotated(a, 32)
        c, a = c + b & _MASK, a + d & _MASK
        b, d = _rotated(b, 47) ^ c, _rotated(d, 43) ^ a
        c = _rotated(c, 32)
    state[:] = a, b, c, d


def murmur_hash(text: bytes, seed: int = 0xDECAFCAFFE) -> int:
    """Return MurmurHash64A."""
    factor, size = 0xC6A4A7935BD1E995, len(text)
    found = seed ^ size * factor & _MASK
    whole = size // 8 * 8
    for at in range(0, whole, 8):
        word = _word(text, at) * factor & _MASK
        found = (found ^ (word ^ word >> 47) * factor & _MASK) * factor & _MASK
    if size > whole:
        found = (found ^ int.from_bytes(text[whole:], "little")) * factor & _MASK
    found = _shifted(found) * factor & _MASK
    return _shifted(found)
