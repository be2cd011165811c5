#!/usr/bin/env python3
"""Write tests/golden with TensorFlow: checkpoints, their values, and outputs of trained models.

    python scripts/make_golden.py                   write all folders
    python scripts/make_golden.py digits-cnn ...    write only these folders
    python scripts/make_golden.py --check           exit 1 if the tree differs from what would be written
    python scripts/make_golden.py --check --fixed   the same, without the trained models

Needs the extra `golden` (`interop` is enough for `--fixed`). Folders of fixed values have the same bytes each time and
on each machine; trained models have the same files, names, dtypes, shapes and graphs, but other values. `--check`
compares them accordingly.

Each folder has an expected.json: name -> dtype, shape and the sha256 of the value's C-contiguous little-endian bytes
(strings: per element an 8-byte little-endian length and the bytes). The hashes are of the values that TensorFlow read
back. If it cannot read what it wrote, they are of the values that were passed to it, and `special` mentions it. A
tensor that cannot be read has TensorFlow's error instead of a hash.
"""

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

from golden.compare import differing_bytes, differing_structure  # noqa: E402
from golden.composed import COMPOSED  # noqa: E402
from golden.fixed import FIXED  # noqa: E402
from golden.recipe import Recipe, make, remove  # noqa: E402
from golden.trained import TRAINED  # noqa: E402
from tensorflow_process import TensorFlowProcess  # noqa: E402  (found through sys.path above)


def write(root: Path, fixed: list[Recipe], trained: list[Recipe]) -> None:
    """Write folders below `root`, replacing existing ones."""
    for recipe in (*fixed, *trained):
        remove(recipe, root)
    with TensorFlowProcess() as tensorflow:
        for recipe in fixed:
            make(recipe, root, tensorflow)
    for recipe in trained:
        # One process each: names of functions and layers contain counters of everything the process has created.
        with TensorFlowProcess(timeout=600) as tensorflow:
            make(recipe, root, tensorflow)


def check(fixed: list[Recipe], trained: list[Recipe]) -> list[str]:
    """Return the differences between the tree and what would be written now."""
    with tempfile.TemporaryDirectory() as temporary:
        fresh = Path(temporary)
        write(fresh, fixed, trained)
        found = [problem for recipe in fixed for problem in differing_bytes(recipe, GOLDEN, fresh)]
        with TensorFlowProcess() as tensorflow:
            for recipe in trained:
                found += differing_structure(recipe, GOLDEN, fresh, tensorflow)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", help="folders of tests/golden; all if none is named")
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 on a difference")
    parser.add_argument("--fixed", action="store_true", help="leave out the trained models")
    given = parser.parse_args()
    fixed, trained = [*FIXED, *COMPOSED], [] if given.fixed else list(TRAINED)
    if given.folders:
        unknown = set(given.folders) - {recipe.name for recipe in (*fixed, *trained)}
        if unknown:
            parser.error(f"no such folders: {', '.join(sorted(unknown))}")
        fixed, trained = ([each for each in recipes if each.name in given.folders] for recipes in (fixed, trained))
    missing = [name for name in ("sklearn", "tf_keras") if trained and importlib.util.find_spec(name) is None]
    if missing:
        parser.error(
            f"trained models need {' and '.join(missing)}. Run `pip install -e .[golden] -c scripts/constraints.txt`, "
            "or pass --fixed to leave them out"
        )
    if not given.check:
        write(GOLDEN, fixed, trained)
        return 0
    problems = check(fixed, trained)
    for problem in problems:
        print(f"tests/golden/{problem}; run scripts/make_golden.py")
    return 1 if problems else 0


# The child process imports this module again to unpickle from it.
if __name__ == "__main__":
    sys.exit(main())
