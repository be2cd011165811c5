"""How fast is a checkpoint loaded and verified? How fast is it verified without loading?

Setup:    1 GiB in 64 float32 tensors, one shard, in the page cache. "In a new process" each load is the first work of
          a process that has imported what it needs: its memory is new and its threads are not started yet.
Floor:    preadv of the same bytes into new memory, same chunks and threads; to verify, preadv and CRC-32C through
          buffers that stay in the cores' caches.
Compare:  TensorFlow's RestoreV2 (verifies); torch.load (weights_only); safetensors load_file (nothing to verify) with
          all pages read, which are then pages of the file, not new memory; this package verifying, not verifying, and
          mapping.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import fresh
import safetensors.torch
import torch
from contenders import check_equal
from floors import checked_read_floor, checksum_floor
from loaders import FLOOR, LOADERS, OURS, SAFETENSORS, TORCH, UNVERIFIED, Files
from peers import ENVIRONMENT
from settings import Bench
from timing import Comparison, Contender, WrongResult, timed
from workload import checksum, large_names

import torch_tfckpt as tfckpt
from torch_tfckpt.format import crc32c
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.transfer.pipeline import CHUNK_BYTES

TENSORFLOW: Final = "TensorFlow RestoreV2"
FRESH_COMPARISONS: Final = (
    Comparison(OURS, TORCH, at_least=1.5, floor=FLOOR),
    Comparison(OURS, TENSORFLOW, at_least=2, floor=FLOOR),
    Comparison(OURS, FLOOR, at_least=0.9),
    Comparison(OURS, SAFETENSORS, floor=FLOOR),
)
WARM_COMPARISONS: Final = (
    Comparison(OURS, TORCH, floor=FLOOR),
    Comparison(OURS, TENSORFLOW, floor=FLOOR),
    Comparison(OURS, FLOOR),
    Comparison(UNVERIFIED, TORCH, floor=FLOOR),
)
LAZY, LAZY_SAFETENSORS = "load_file(mmap=True, verify=False)", "safetensors load_file"
LAZY_TORCH: Final = "torch.load(mmap=True)"
LAZY_COMPARISONS: Final = (Comparison(LAZY, LAZY_SAFETENSORS, at_least=1), Comparison(LAZY, LAZY_TORCH))
CHECK, CHECK_FLOOR = "reader.check()", "bare preadv and CRC-32C"
CHECKSUM: Final = "CRC-32C of memory, all cores"
CHECK_COMPARISONS: Final = (Comparison(CHECK, CHECK_FLOOR, at_least=0.95), Comparison(CHECK, CHECKSUM))


def in_new_process(bench: Bench) -> None:
    """Row "load": each load in a process of its own."""
    tensors = bench.large()
    expected = checksum({name: tensor.numpy() for name, tensor in tensors.items()})
    size = sum(tensor.nbytes for tensor in tensors.values())
    with bench.scratch() as folder:
        files = Files.write(folder, tensors)
        del tensors
        paths = [str(path) for path in files]

        def contender(name: str, function: str, *arguments: object, environment: dict[str, str]) -> Contender:
            def measure() -> float:
                seconds, found = fresh.call(function, *arguments, environment=environment)
                if found != expected:
                    raise WrongResult(f"{name}: the values differ")
                return float(seconds)

            return Contender(name, measure, size)

        contenders = [
            contender(name, "loaders.fresh_load", name, paths, environment={}) for name in LOADERS if name != UNVERIFIED
        ]
        if bench.has_tensorflow:
            arguments = str(files.bundle), large_names(bench.sizes.tensors)
            contenders.append(
                contender(TENSORFLOW, "tensorflow_peer.fresh_restore", *arguments, environment=ENVIRONMENT)
            )
        # No warm-up: every process is new. Writing the files has put them into the page cache.
        bench.report.race(f"load {bench.describe()} in a new process", contenders, FRESH_COMPARISONS, warmups=0)


def in_this_process(bench: Bench) -> None:
    """Row "load-warm": repeated loads in one process."""
    tensors = bench.large()
    expected = checksum({name: tensor.numpy() for name, tensor in tensors.items()})
    size = sum(tensor.nbytes for tensor in tensors.values())
    with (
        bench.scratch() as folder,
        bench.tensorflow("large", bench.sizes.mib, bench.sizes.tensors, bench.seed) as tensorflow,
    ):
        files = Files.write(folder, tensors)

        def contender(name: str) -> Contender:
            def measure() -> float:
                seconds, values = timed(lambda: LOADERS[name](files))
                if checksum({key: value.numpy() for key, value in values.items()}) != expected:
                    raise WrongResult(f"{name}: the values differ")
                return seconds

            return Contender(name, measure, size)

        contenders = [contender(name) for name in LOADERS if name != SAFETENSORS]
        if tensorflow is not None:
            contenders.append(Contender(TENSORFLOW, lambda: tensorflow.call("restore", str(files.bundle)), size))
        rounds = bench.sizes.few_rounds
        bench.report.race(f"load {bench.describe()} again and again", contenders, WARM_COMPARISONS, rounds=rounds)


def lazily(bench: Bench) -> None:
    """Row "lazy": load all names and copy one tensor."""
    tensors = bench.large()
    used = sorted(tensors)[len(tensors) // 2]
    with bench.scratch() as folder:
        files = Files.write(folder, tensors)
        loads: dict[str, Callable[[], Mapping[str, Any]]] = {
            LAZY: lambda: tfckpt.load_file(files.bundle, mmap=True, verify=False),
            LAZY_SAFETENSORS: lambda: safetensors.torch.load_file(files.safetensors),
            LAZY_TORCH: lambda: torch.load(files.pt, weights_only=True, mmap=True),
        }

        def contender(name: str) -> Contender:
            def work() -> torch.Tensor:
                value = loads[name]()[used]
                assert isinstance(value, torch.Tensor)
                return value.clone()

            def measure() -> float:
                seconds, value = timed(work)
                check_equal({used: value}, {used: tensors[used]})
                return seconds

            return Contender(name, measure)

        # Milliseconds each: many rounds cost nothing.
        rounds = 2 * bench.sizes.rounds + 1
        work = f"load {bench.describe()} lazily and use one"
        bench.report.race(work, [contender(name) for name in loads], LAZY_COMPARISONS, rounds=rounds)


def at_rest(bench: Bench) -> None:
    """Row "verify": check a checkpoint without keeping its values."""
    tensors = bench.large()
    size = sum(tensor.nbytes for tensor in tensors.values())
    with bench.scratch() as folder:
        tfckpt.save_file(tensors, folder / "x")
        data = folder / "x.data-00000-of-00001"
        expected = _checksums_of_chunks(data)

        def check() -> float:
            def work() -> tuple[int, int]:
                with tfckpt.load_checkpoint(folder / "x") as reader:
                    found = reader.check()
                    return len(found.good), len(found.damage)

            seconds, counts = timed(work)
            if counts != (len(tensors), 0):
                raise WrongResult(f"(good, damaged): {counts}")
            return seconds

        def floor() -> float:
            seconds, found = timed(lambda: checked_read_floor(data))
            if found != expected:
                raise WrongResult(f"{CHECK_FLOOR}: the checksums differ")
            return seconds

        contenders = [
            Contender(CHECK, check, size),
            Contender(CHECK_FLOOR, floor, size),
            Contender(CHECKSUM, lambda: timed(lambda: checksum_floor(tensors.values()))[0], size),
        ]
        bench.report.race(f"verify {bench.describe()} at rest", contenders, CHECK_COMPARISONS)


def _checksums_of_chunks(data: Path) -> list[int]:
    stored = byte_view(torch.from_file(str(data), size=data.stat().st_size, dtype=torch.uint8))
    return [crc32c.value(stored[begin : begin + CHUNK_BYTES]) for begin in range(0, len(stored), CHUNK_BYTES)]
