"""How reports word numbers."""

from typing import Final

_UNITS: Final = ("B", "kB", "MB", "GB", "TB", "PB")


def counted(count: int, noun: str) -> str:
    """1 tensor, 2 tensors, 2 entries, 1,670 tensors."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{count:,} {noun if count == 1 else plural}"


def byte_text(count: int) -> str:
    """1670432 as "1.67 MB"; decimal units, as disks and Hugging Face count."""
    size = float(count)
    for unit in _UNITS:
        if size < 999.5 or unit == _UNITS[-1]:
            break
        size /= 1000
    return f"{size:.3g} {unit}" if unit != "B" else f"{count} B"
