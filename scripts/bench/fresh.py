"""Calls of one function in a new Python process, so that memory and threads are those of a program's first call.

Arguments and result travel as JSON. What the function prints before its result is ignored; its stderr is shown.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from timing import WrongResult


def call(function: str, *arguments: Any, environment: Mapping[str, str] | None = None) -> Any:
    """Return the result of "module.function" with `arguments`. Raises WrongResult if the process fails."""
    command = [sys.executable, __file__, function, json.dumps(arguments)]
    done = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        raise WrongResult(f"{function} failed, see above (exit status {done.returncode})")
    return json.loads(done.stdout.splitlines()[-1])


def main(function: str, arguments: str) -> None:
    module, _, name = function.rpartition(".")
    print("\n" + json.dumps(getattr(importlib.import_module(module), name)(*json.loads(arguments))))


if __name__ == "__main__":
    main(*sys.argv[1:])
