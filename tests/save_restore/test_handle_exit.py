"""Running saves and unreported errors when a program exits or forks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from saver_files import names_in

import torch_tfckpt as tfckpt

PROGRAM = """
import logging, sys, threading
import torch
from torch_tfckpt import Saver, SaverDef
from torch_tfckpt.transfer import transfer

logging.disable()
path, how = sys.argv[1:]
saver = Saver({"v": torch.arange(2_000_000)}, write_version=SaverDef.V1 if how == "no thread" else SaverDef.V2)
write, main = transfer.write_pieces, threading.current_thread()

def failing(*arguments):
    raise OSError(28, "No space left on device")

def late(*arguments):
    main.join()  # until the program has reached its end
    return write(*arguments)

if how in ("fails", "result"):
    transfer.write_pieces = failing
elif how == "in flight":
    transfer.write_pieces = late
elif how == "no thread":
    def refuse(thread):
        raise RuntimeError("can't start new thread")
    threading.Thread.start = refuse
try:
    handle = saver.save_async(path, 1)
    if how == "result":
        handle.result()
except (OSError, RuntimeError) as error:
    print("raised:", error)
print("the end")
"""


def run_program(tmp_path: Path, how: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "m"), how], capture_output=True, text=True, timeout=120
    )


def test_a_save_in_flight_is_completed_at_exit(tmp_path: Path) -> None:
    """The interpreter waits for the save; nothing is printed, and the checkpoint is complete."""
    done = run_program(tmp_path, "in flight")
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")
    assert tfckpt.latest_checkpoint(tmp_path, valid=True) == str(tmp_path / "m-1")
    assert torch.equal(torch.as_tensor(tfckpt.load_variable(tmp_path / "m-1", "v")), torch.arange(2_000_000))


def test_an_unreported_error_is_printed_at_exit(tmp_path: Path) -> None:
    """The error is printed once with its message; no file of the save is left."""
    done = run_program(tmp_path, "fails")
    assert (done.stdout, done.returncode) == ("the end\n", 120)
    assert done.stderr.count("IncompleteSaveError: ") == 1 and "No space left on device" in done.stderr
    assert names_in(tmp_path) == []


@pytest.mark.parametrize("how", ["result", "no thread"])
def test_a_reported_error_is_not_printed_again(tmp_path: Path, how: str) -> None:
    """The program exits, even if the save never started."""
    done = run_program(tmp_path, how)
    assert done.stdout.startswith("raised: ") and done.stdout.endswith("the end\n")
    assert (done.returncode, done.stderr) == (0, "")


FORK = """
import logging, os, sys, warnings
import torch
from torch_tfckpt import Saver
from torch_tfckpt.transfer import transfer
from torch_tfckpt.transfer.pipeline import write_pieces

reading, writing = os.pipe()

def late(*arguments):
    os.read(reading, 1)  # until the child has ended
    return write_pieces(*arguments)

transfer.write_pieces = late
saver = Saver({"v": torch.arange(5)})
handle = saver.save_async(sys.argv[1], 1)
# Python 3.12 warns of every fork of a process with threads; that such a fork works is what is tested.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
child = os.fork()
if child == 0:
    transfer.write_pieces = write_pieces
    saver.sync()
    assert handle.done()
    try:
        handle.result()
    except RuntimeError as error:
        print("child:", error, flush=True)
    saver.save(sys.argv[1], 2)
    sys.exit(7)
print("status:", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os.write(writing, b"x")
print("parent:", handle.result(60))
"""


def test_a_forked_child_does_not_wait(tmp_path: Path) -> None:
    """The saving thread exists only in the parent: the child does not hang and can save by itself."""
    done = subprocess.run(
        [sys.executable, "-c", FORK, str(tmp_path / "m")], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "child: the save continues in the process that started it. Call result() there",
        "status: 7",
        f"parent: {tmp_path}/m-1",
    ]
    assert tfckpt.checkpoint_exists(tmp_path / "m-1") and tfckpt.checkpoint_exists(tmp_path / "m-2")


FAILING = """
import atexit, multiprocessing, os, sys, torch
import torch_tfckpt as tfckpt
from torch_tfckpt.transfer import transfer

def failing(*arguments):
    raise OSError(28, "No space left on device")

def save(path, how):
    transfer.write_pieces = failing
    value = torch.zeros(9)
    options = tfckpt.CheckpointOptions(enable_async=True)
    if how == "checkpoint":
        tfckpt.Checkpoint(v=value).write(path, options)
    elif how == "manager":
        tfckpt.CheckpointManager(tfckpt.Checkpoint(v=value), path, 1).save(options=options)
    else:
        tfckpt.Saver({"v": value}).save_async(path)

path, how = sys.argv[1:]
if how.startswith("child"):
    child = multiprocessing.get_context(how.split()[1]).Process(target=save, args=(path, "saver"))
    child.start()
    child.join()
    print("child:", child.exitcode)
    sys.exit(0)
atexit.register(print, "another atexit function")
save(path, how)
if how == "exception":
    raise ValueError("training failed")
sys.exit(0)
"""


@pytest.mark.thinned(2)
@pytest.mark.parametrize("how", ["saver", "checkpoint", "manager", "exception", "child fork"])
def test_a_failed_last_save_is_an_exit_status(tmp_path: Path, how: str) -> None:
    """Not 0, after all atexit functions; a program that fails by itself keeps its status."""
    program = [sys.executable, "-W", "ignore", "-c", FAILING, str(tmp_path / "m"), how]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    if how.startswith("child"):
        assert done.stdout == "child: 120\n"
    else:
        assert (done.stdout, done.returncode) == ("another atexit function\n", 1 if how == "exception" else 120)
    assert done.stderr.count("IncompleteSaveError: ") == 1


CHILD = """
import multiprocessing, sys, torch
import torch_tfckpt as tfckpt
from torch_tfckpt.transfer import transfer

def failing(*arguments):
    raise OSError(28, "No space left on device")

def save(path):
    transfer.write_pieces = failing
    tfckpt.Saver({"v": torch.zeros(9)}).save_async(path)

if __name__ == "__main__":
    child = multiprocessing.get_context(sys.argv[2]).Process(target=save, args=(sys.argv[1],))
    child.start()
    child.join()
    print("child:", child.exitcode)
"""


@pytest.mark.heavy
@pytest.mark.parametrize("how", ["fork", "spawn", "forkserver"])
def test_every_kind_of_child_has_the_status(tmp_path: Path, how: str) -> None:
    """Children that import the program again, and those whose parent has already imported everything."""
    (tmp_path / "program.py").write_text(CHILD)
    program = [sys.executable, "-W", "ignore", str(tmp_path / "program.py"), str(tmp_path / "m"), how]
    done = subprocess.run(program, capture_output=True, text=True, timeout=120)
    assert done.stdout == "child: 120\n"
    assert done.stderr.count("IncompleteSaveError: ") == 1
