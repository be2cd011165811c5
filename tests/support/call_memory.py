"""Peak memory of a call, in a process of its own, since the peak of a process never falls."""

import subprocess
import sys

import pytest

needs_proc = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")

_PROGRAM = """
import sys
{imports}
def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))
baseline = status("VmRSS")
{call}
print(status("VmHWM") - baseline)
"""


def peak_memory(imports: str, call: str, *arguments: str, timeout: float) -> int:
    """Return how many bytes a process takes for a call, in addition to what its imports take.

    Args:
        imports: Statements that run before the baseline is taken.
        call: Statements whose memory is measured; `sys.argv[1:]` are the arguments.
        timeout: In seconds.
    """
    program = _PROGRAM.format(imports=imports, call=call)
    command = [sys.executable, "-c", program, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    assert run.returncode == 0, run.stderr
    return int(run.stdout)
