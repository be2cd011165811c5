"""Coverage-guided fuzzing with atheris (`pip install -e .[fuzz]`).

    python tests/fuzz/fuzz_decoders.py block -max_total_time=60        one target; further arguments go to libFuzzer
    python tests/fuzz/fuzz_decoders.py -max_total_time=600             all targets, the time divided between them
    python tests/fuzz/fuzz_decoders.py block crash-0123abcd            one input again

The targets are in tests/support/fuzz_targets.py. A finding is any exception except CheckpointError, an input that takes
more than 5 seconds, or more than 2 GiB of memory. Findings are written to tests/fuzz/findings/.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch  # noqa: F401  imported before the instrumentation: a fuzzer has nothing to find in it

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

FINDINGS = Path(__file__).resolve().parent / "findings"
LIMITS = ("-timeout=5", "-rss_limit_mb=2048", "-max_len=16384", "-print_final_stats=1")


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris  # type: ignore[import-untyped, unused-ignore]  # it has no stubs

    with atheris.instrument_imports(include=["torch_tfckpt"]):
        from fuzz_targets import TARGETS, run, seeds

    target = TARGETS[name]
    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(name)):
            Path(corpus, f"seed-{number:04d}").write_bytes(seed)
        inputs = [argument for argument in arguments if not argument.startswith("-")]
        places = inputs or [corpus]
        FINDINGS.mkdir(exist_ok=True)
        artifacts = f"-artifact_prefix={FINDINGS}/{name}-"
        options = [argument for argument in arguments if argument.startswith("-")]
        atheris.Setup([sys.argv[0], *LIMITS, artifacts, *options, *places], lambda data: run(target, data))
        atheris.Fuzz()


def fuzz_all(arguments: list[str]) -> int:
    """Fuzz every target in its own process; print results; return the number of targets with findings."""
    from fuzz_targets import TARGETS

    total = next((int(a.split("=")[1]) for a in arguments if a.startswith("-max_total_time=")), 600)
    rest = [argument for argument in arguments if not argument.startswith("-max_total_time=")]
    each = max(1, total // len(TARGETS))
    executions = found = 0
    for name in TARGETS:
        command = [sys.executable, __file__, name, f"-max_total_time={each}", *rest]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        counted = re.search(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)
        covered = re.findall(r"cov: (\d+)", done.stderr)
        executions += int(counted[1]) if counted else 0
        found += done.returncode != 0
        verdict = "ok" if not done.returncode else f"FINDING (exit status {done.returncode})"
        runs = counted[1] if counted else "?"
        print(f"{name:16} {runs:>10} executions, {covered[-1] if covered else '?':>5} edges   {verdict}", flush=True)
        if done.returncode:
            print("\n".join((done.stdout + done.stderr).splitlines()[-40:]), flush=True)
    print(f"{executions} executions in {total} seconds, findings in {found} of {len(TARGETS)} targets")
    return found


def main() -> None:
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-"):
        fuzz(arguments[0], arguments[1:])
    else:
        sys.exit(1 if fuzz_all(arguments) else 0)


if __name__ == "__main__":
    main()
