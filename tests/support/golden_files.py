"""The golden checkpoints in tests/golden, and what TensorFlow read in them (tests/golden/SOURCES.md); Keras's files."""

import json
from pathlib import Path
from typing import Any, Final

GOLDEN: Final = Path(__file__).resolve().parent.parent / "golden"
KERAS_FILES: Final = GOLDEN.parent / "keras_files" / "golden"
# Every folder that contains a checkpoint, relative to GOLDEN.
FOLDERS: Final = sorted(path.parent.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("expected.json"))


def content_of(folder: Path) -> dict[str, Any]:
    """Return the contents of the folder's expected.json."""
    content: dict[str, Any] = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
    return content


def expected_of(folder: str) -> dict[str, Any]:
    """Return the contents of the expected.json of a folder of GOLDEN."""
    return content_of(GOLDEN / folder)
