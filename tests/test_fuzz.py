"""The fuzz targets, driven by hypothesis for a short while: real inputs, mutated. tests/fuzz runs them for longer."""

import functools
import zlib

import pytest
from fuzz import targets
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

INTERESTING = (
    b"\x00", b"\xff", b"\x80", b"\x7f", b"\xff" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80", b"\xff" * 9 + b"\x01",
    b"\x80" * 9 + b"\x01", b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\x0b", b"\x3a\x00", b"\x12\x02\x12\x00", b"\x08",
)  # fmt: skip


@functools.cache
def seeds(name: str) -> list[bytes]:
    return targets.seeds(name)


@st.composite
def mutated(draw: st.DrawFn, name: str) -> bytes:
    """A real input with up to eight changes: bytes flipped, put in, taken out, doubled, swapped between inputs."""
    data = bytearray(draw(st.sampled_from(seeds(name))))
    for _ in range(draw(st.integers(0, 8))):
        at = draw(st.integers(0, len(data)))
        size = draw(st.integers(0, 12))
        match draw(st.integers(0, 6)):
            case 0 if at < len(data):
                data[at] ^= draw(st.integers(1, 255))
            case 1:
                data[at : at + size] = draw(st.binary(max_size=12))
            case 2:
                piece = draw(st.sampled_from(INTERESTING))
                data[at : at + len(piece)] = piece
            case 3:
                data[at:at] = draw(st.sampled_from(INTERESTING))
            case 4:
                del data[at : at + size]
            case 5:
                data[at:at] = data[at : at + size]
            case 6:
                other = draw(st.sampled_from(seeds(name)))
                data[at:] = other[at:]
    return bytes(data)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_there_are_seeds_and_they_are_sound(name: str) -> None:
    """Every target has real inputs to start from; none of them is a finding, and most of them are not refused."""
    assert seeds(name)
    for data in seeds(name):
        targets.run(targets.TARGETS[name], data)


@pytest.mark.parametrize("name", targets.TARGETS)
def test_mutated_input_gives_checkpoint_errors_only(name: str) -> None:
    """Whatever the input: an answer that keeps its promises, or a CheckpointError."""

    @seed(zlib.crc32(name.encode()))
    @settings(max_examples=150, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(data=mutated(name) | st.binary(max_size=200))
    def attempt(data: bytes) -> None:
        targets.run(targets.TARGETS[name], data)

    attempt()
