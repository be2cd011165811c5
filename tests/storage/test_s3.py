"""Checkpoints on S3, through s3fs and a local server (moto): the storage, the savers, and the command line."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from uuid import uuid4

import pytest
import torch
from storage_suite import NOT_UTF8, StorageTests, write

import torch_tfckpt as tfckpt
from torch_tfckpt.cli.main import main
from torch_tfckpt.conversion.verify import verify
from torch_tfckpt.storage.choice import storage_of
from torch_tfckpt.storage.protocol import Storage

pytest.importorskip("s3fs", reason="s3fs is not installed; scripts/install s3 installs it")
pytest.importorskip("moto", reason="moto is not installed; scripts/install s3 installs it")

BUCKET = "s3://checkpoints"
SERVER = """
import sys
import boto3
from moto.server import ThreadedMotoServer

server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
url = "http://%s:%d" % server.get_host_and_port()
boto3.client("s3", endpoint_url=url).create_bucket(Bucket="checkpoints")
print(url, flush=True)
sys.stdin.read()  # until the tests end
"""
# A training job that saves one name for ever, 12 MiB each time, so that the data is uploaded in several parts.
SAVES_FOREVER = """
import sys, torch, torch_tfckpt as tfckpt
weights = torch.zeros(3, 1 << 20)
saver = tfckpt.Saver({"w": weights})
while True:
    weights += 1
    saver.save(sys.argv[1], write_meta_graph=False)
    print(int(weights[0, 0]), flush=True)
"""


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    """An S3 server of this module, which its tests and their child processes find through the environment."""
    settings = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        command = [sys.executable, "-c", SERVER]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), "the server did not start"
            patch.setenv("AWS_ENDPOINT_URL", url)
            yield
            process.communicate()


@pytest.fixture
def run() -> str:
    """A directory of the bucket, for one test."""
    return f"{BUCKET}/{uuid4().hex}"


def names(directory: str) -> list[str]:
    return storage_of(directory).list(directory)


def value_of(prefix: str) -> int:
    """Return the number that fills the stored tensor `w`; fail if two saves are mixed."""
    numbers = torch.unique(tfckpt.load_file(prefix)["w"]).tolist()
    assert len(numbers) == 1, f"values of several saves: {numbers}"
    return int(numbers[0])


class TestStorage(StorageTests):
    @pytest.fixture
    def storage(self) -> Storage:
        return storage_of(BUCKET)

    @pytest.fixture
    def folder(self, run: str) -> str:
        return run

    def test_a_directory_cannot_be_opened(self, storage: Storage, folder: str) -> None:
        """A directory exists only with a file in it."""
        write(storage, f"{folder}/a", b"x")
        super().test_a_directory_cannot_be_opened(storage, folder)

    def test_names_that_are_not_utf8(self, storage: Storage, folder: str) -> None:
        """Keys are UTF-8; another name is an error that shows it."""
        with pytest.raises(OSError, match=r"\\xff\\xfe"):
            write(storage, f"{folder}/{NOT_UTF8}", b"x")


def test_saves_are_numbered_and_old_ones_deleted(run: str) -> None:
    weights = torch.zeros(2)
    saver = tfckpt.Saver({"w": weights}, max_to_keep=2)
    for step in range(4):
        weights.fill_(step)
        assert saver.save(f"{run}/m", step) == f"{run}/m-{step}"
    kept = [f"m-{step}{ending}" for step in (2, 3) for ending in (".data-00000-of-00001", ".index", ".meta")]
    assert names(run) == ["checkpoint", *kept]
    assert tfckpt.latest_checkpoint(run) == tfckpt.latest_checkpoint(run, valid=True) == f"{run}/m-3"
    saver.restore(f"{run}/m-2")
    assert weights.tolist() == [2.0, 2.0]


def test_asynchronous_saves(run: str) -> None:
    """The values are those at the time of the call; every save ends up in the bucket."""
    weights = torch.zeros(1000)
    with tfckpt.Saver({"w": weights}, max_to_keep=None) as saver:
        for step in range(3):
            weights.fill_(step)
            handle = saver.save_async(f"{run}/m", step)
            handle.staged.wait()
    assert [value_of(f"{run}/m-{step}") for step in range(3)] == [0, 1, 2]


def test_a_manager_continues_a_run(run: str) -> None:
    model = torch.nn.Linear(3, 2)
    manager = tfckpt.CheckpointManager(tfckpt.Checkpoint(model=model), run, max_to_keep=2)
    assert manager.restore_or_initialize() is None
    for _ in range(3):
        manager.save()
    other = torch.nn.Linear(3, 2)
    again = tfckpt.CheckpointManager(tfckpt.Checkpoint(model=other), run, max_to_keep=2)
    assert again.restore_or_initialize() == f"{run}/ckpt-3"
    assert torch.equal(model.weight, other.weight)
    assert again.save() == f"{run}/ckpt-4"
    assert [name for name in names(run) if name.endswith(".index")] == ["ckpt-3.index", "ckpt-4.index"]


def test_an_incomplete_checkpoint_is_skipped(run: str) -> None:
    saver = tfckpt.Saver({"w": torch.zeros(2)})
    for step in (1, 2):
        saver.save(f"{run}/m", step)
    storage_of(run).remove(f"{run}/m-2.data-00000-of-00001")
    assert tfckpt.latest_checkpoint(run, valid=True) == f"{run}/m-1"


def test_overwriting_leaves_one_checkpoint(run: str) -> None:
    """Data files have another name after each overwrite, but the old ones are removed."""
    for number in range(5):
        tfckpt.save_file({"w": torch.full((2,), number)}, f"{run}/m")
        assert value_of(f"{run}/m") == number
    assert len(names(run)) == 2, names(run)


@pytest.mark.thinned(2)
@pytest.mark.parametrize("delay", [0.05, 0.4, 1.0])
def test_a_kill_leaves_the_last_save(run: str, delay: float) -> None:
    """Killed while it overwrites a checkpoint: the last one that was reported, or the next one, is whole."""
    job = [sys.executable, "-c", SAVES_FOREVER, f"{run}/m"]
    with subprocess.Popen(job, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "1\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        rest, _ = process.communicate()
    reported = max([1, *map(int, rest.split())])
    assert value_of(f"{run}/m") in (reported, reported + 1)
    assert not verify(f"{run}/m").damage
    tfckpt.save_file({"w": torch.full((2,), 99)}, f"{run}/m")
    assert value_of(f"{run}/m") == 99 and len(names(run)) <= 3, names(run)


def test_the_command_line(run: str, tmp_path: os.PathLike[str], capsys: pytest.CaptureFixture[str]) -> None:
    tfckpt.save_file({"w": torch.ones(2)}, f"{run}/m")
    target = os.path.join(tmp_path, "m.safetensors")
    assert [main(["ls", f"{run}/m"]), main(["verify", f"{run}/m"]), main(["convert", f"{run}/m", target])] == [0, 0, 0]
    assert main(["diff", f"{run}/m", target]) == 0
    assert os.listdir(tmp_path) == ["m.safetensors"]
    capsys.readouterr()


def test_a_server_that_cannot_be_reached_is_an_error(run: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is never taken for a directory without checkpoints."""
    tfckpt.Saver({"w": torch.ones(2)}).save(f"{run}/m", 1)
    program = (
        "import sys, torch_tfckpt as tfckpt\n"
        "try:\n    print('found', tfckpt.latest_checkpoint(sys.argv[1], valid=sys.argv[2] == 'valid'))\n"
        "except (tfckpt.CheckpointError, OSError) as error:\n    print('refused', type(error).__name__)\n"
    )
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    for which in ("named", "valid"):
        done = subprocess.run([sys.executable, "-c", program, run, which], capture_output=True, text=True, timeout=120)
        assert done.stdout.startswith("refused"), done.stdout + done.stderr
