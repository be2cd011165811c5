#!/usr/bin/env python3
"""Generate torch_tfckpt/_proto/ from protos/.

    python scripts/gen_protos.py            write the modules
    python scripts/gen_protos.py --check    exit 1 if the tree differs from what would be written

protoc comes from the grpcio-tools wheel of the 6.31 line, so that the result works with protobuf 6.31 to 7.x. That
wheel conflicts with protobuf 7, so it has its own virtual environment (.venv-protoc, created on first use).
"""

import argparse
import filecmp
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "protos"
GENERATED = ROOT / "torch_tfckpt" / "_proto"
PROTOC_VENV = ROOT / ".venv-protoc"
# 1.75.1 contains protoc 31.1, i.e. Python protobuf 6.31.1.
PROTOC_PACKAGE = "grpcio-tools==1.75.1"
# grpc_tools imports pkg_resources, which setuptools removed after version 81.
PROTOC_REQUIREMENTS = (PROTOC_PACKAGE, "setuptools<81")

INIT = '"""Generated from protos/ by scripts/gen_protos.py. Never edited by hand."""\n'


def protoc_python() -> Path:
    """Return the interpreter that has grpc_tools; install it on first use."""
    python = PROTOC_VENV / "bin" / "python"
    stamp = PROTOC_VENV / "installed"
    if not stamp.exists() or stamp.read_text() != PROTOC_PACKAGE:
        venv.create(PROTOC_VENV, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *PROTOC_REQUIREMENTS], check=True)
        stamp.write_text(PROTOC_PACKAGE)
    return python


def generate(destination: Path) -> Path:
    """Write the modules below `destination` and return their folder."""
    # The virtual path registers the files as torch_tfckpt/_proto/*.proto in the descriptor pool: TensorFlow's own paths
    # and package would clash in a process that imports both.
    virtual = "torch_tfckpt/_proto"
    names = [f"{virtual}/{source.name}" for source in sorted(SOURCES.glob("*.proto"))]
    arguments = [f"-I{virtual}={SOURCES}", f"--python_out={destination}", f"--pyi_out={destination}", *names]
    subprocess.run([protoc_python(), "-W", "ignore", "-m", "grpc_tools.protoc", *arguments], check=True)
    folder = destination / virtual
    (folder / "__init__.py").write_text(INIT)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 on a difference")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as temporary:
        fresh = generate(Path(temporary))
        names = {path.name for folder in (fresh, GENERATED) for path in folder.glob("*.py*") if path.is_file()}
        _, changed, missing = filecmp.cmpfiles(fresh, GENERATED, sorted(names), shallow=False)
        if check:
            for name in (*changed, *missing):
                print(f"torch_tfckpt/_proto/{name} differs from what protos/ generates; run scripts/gen_protos.py")
            return 1 if changed or missing else 0
        GENERATED.mkdir(parents=True, exist_ok=True)
        for name in names:
            (GENERATED / name).unlink(missing_ok=True)
            if (fresh / name).exists():
                (GENERATED / name).write_bytes((fresh / name).read_bytes())
    return 0


if __name__ == "__main__":
    sys.exit(main())
