"""What a check at rest found, the same for both versions."""

from typing import NamedTuple

from torch_tfckpt.errors import printable, quoted


class Damage(NamedTuple):
    """One thing that is wrong."""

    name: str  # the tensor; "" where the file as a whole is damaged
    file: str
    start: int  # bytes from the start of the file, inclusive
    end: int  # exclusive
    problem: str
    stored: int | None = None  # masked checksum in the index; None where the damage is none of a checksum
    computed: int | None = None  # masked checksum of the bytes as they are

    def __str__(self) -> str:
        tensor = f"tensor {quoted(self.name)}: " if self.name else ""
        return f"{printable(self.file)}, bytes {self.start}:{self.end}: {tensor}{self.problem}"


class Verification(NamedTuple):
    """The result of reading everything."""

    good: list[str]  # tensors whose every byte was read and agrees with its checksum
    damage: list[Damage]

    @property
    def damaged(self) -> list[str]:
        """Names of the tensors that are not good, in order of appearance."""
        return list(dict.fromkeys(damage.name for damage in self.damage if damage.name))
