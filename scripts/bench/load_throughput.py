#!/usr/bin/env python3
"""How fast is a checkpoint loaded and verified? How fast is it verified without loading?

Setup:    1 GiB in 64 float32 tensors, one shard, in the page cache.
Floor:    preadv of the same bytes into one buffer, same chunks and threads: into memory that is in use already, and
          into new memory, which every loader needs; crc32c over memory, one thread per core.
Compare:  TensorFlow's RestoreV2 (verifies); safetensors load_file (nothing to verify), with and without reading its
          pages; torch.load (weights_only), and with mmap; this package verifying, not verifying, and mapping.
Reports:  median and spread of 7 interleaved rounds after a warm-up; GB/s; ratios within a round. Loaded values are
          compared with the saved ones before a time counts.
"""

import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

import safetensors.torch
import torch
from peers import TensorFlow, check_equal, checksum_floor, has_tensorflow, read_floor
from timing import Comparison, Contender, Report, WrongResult, parser, scratch, timed
from workload import large

import torch_tfckpt as tfckpt
from torch_tfckpt.transfer.host_bytes import byte_view
from torch_tfckpt.values import Value

Load = Callable[[], Mapping[str, Value]]

OURS, UNVERIFIED = "tfckpt.load_file (verified)", "tfckpt.load_file(verify=False)"
TENSORFLOW, SAFETENSORS, TORCH = "TensorFlow RestoreV2", "safetensors load_file, all pages touched", "torch.load"
FRESH_FLOOR, FLOOR = "floor: preadv into fresh memory", "floor: preadv into memory in use"
LOAD_COMPARISONS = (
    Comparison(OURS, TENSORFLOW, at_least=3),
    Comparison(OURS, TORCH, at_least=2),
    Comparison(OURS, SAFETENSORS),
    Comparison(UNVERIFIED, TENSORFLOW),
    Comparison(UNVERIFIED, TORCH),
    Comparison(OURS, FRESH_FLOOR),
    Comparison(UNVERIFIED, FRESH_FLOOR),
)
LAZY, LAZY_SAFETENSORS, LAZY_TORCH = (
    "tfckpt.load_file(mmap=True, verify=False)",
    "safetensors load_file",
    "torch.load(mmap)",
)
LAZY_COMPARISONS = (Comparison(LAZY, LAZY_SAFETENSORS, at_least=1), Comparison(LAZY, LAZY_TORCH))
CHECK, CHECKSUM = "reader.check()", "floor: crc32c over memory, all cores"
CHECK_COMPARISONS = (Comparison(CHECK, CHECKSUM, at_least=0.7),)


def touch(tensors: Mapping[str, Value]) -> Mapping[str, Value]:
    """Read one element of every page: the cost of a mapped tensor before its first use."""
    for tensor in tensors.values():
        tensor.reshape(-1)[::1024].sum()
    return tensors


def main(arguments: list[str] | None = None) -> int:
    options = parser(__doc__)
    options.add_argument("--mib", type=int, default=1024)
    options.add_argument("--tensors", type=int, default=64)
    given = options.parse_args(arguments)
    tensors = {n: torch.from_numpy(array) for n, array in large(given.mib, given.tensors, given.seed).items()}
    size = sum(tensor.nbytes for tensor in tensors.values())
    report = Report("load_throughput", given)
    with scratch(given.dir) as folder, ExitStack() as stack:
        bundle, st, pt = folder / "x.ckpt", folder / "x.safetensors", folder / "x.pt"
        tfckpt.save_file(tensors, bundle)
        safetensors.torch.save_file(tensors, st)
        torch.save(tensors, pt)
        work = f"{given.mib} MiB in {given.tensors} tensors"
        contenders = _loaders(tensors, size, bundle, st, pt)
        if has_tensorflow():
            tensorflow = stack.enter_context(TensorFlow("large", given.mib, given.tensors, given.seed))
            contenders.insert(2, Contender(TENSORFLOW, lambda: tensorflow.call("restore", str(bundle)), size))
        report.run(f"load {work}", contenders, LOAD_COMPARISONS)
        report.run(f"load {work} lazily, use one", _lazy_loaders(tensors, bundle, st, pt), LAZY_COMPARISONS)
        report.run(f"check {work} at rest", _checkers(tensors, size, bundle), CHECK_COMPARISONS)
    report.write()
    return 0


def _loaders(tensors: dict[str, torch.Tensor], size: int, bundle: Path, st: Path, pt: Path) -> list[Contender]:
    data = bundle.with_name(f"{bundle.name}.data-00000-of-00001")
    in_use = torch.ones(size, dtype=torch.uint8)

    def loader(name: str, load: Load) -> Contender:
        def measure() -> float:
            seconds, values = timed(load)
            check_equal(values, tensors)
            return seconds

        return Contender(name, measure, size)

    def floor(name: str, make: Callable[[], torch.Tensor]) -> Contender:
        def work() -> torch.Tensor:
            target = make()
            read_floor(data, byte_view(target))
            return target

        def measure() -> float:
            seconds, target = timed(work)
            expected = torch.cat([tensor.reshape(-1) for tensor in tensors.values()])
            if not torch.equal(target, expected.view(torch.uint8)):
                raise WrongResult(name)
            return seconds

        return Contender(name, measure, size)

    return [
        loader(OURS, lambda: tfckpt.load_file(bundle)),
        loader(UNVERIFIED, lambda: tfckpt.load_file(bundle, verify=False)),
        loader(TORCH, lambda: torch.load(pt, weights_only=True)),
        loader(SAFETENSORS, lambda: touch(safetensors.torch.load_file(st))),
        floor(FRESH_FLOOR, lambda: torch.empty(size, dtype=torch.uint8)),
        floor(FLOOR, lambda: in_use),
    ]


def _lazy_loaders(tensors: dict[str, torch.Tensor], bundle: Path, st: Path, pt: Path) -> list[Contender]:
    """Return loaders that each load all names and copy one tensor."""
    used = sorted(tensors)[len(tensors) // 2]

    def loader(name: str, load: Load) -> Contender:
        def work() -> torch.Tensor:
            value = load()[used]
            assert isinstance(value, torch.Tensor)
            return value.clone()

        def measure() -> float:
            seconds, value = timed(work)
            if not torch.equal(value, tensors[used]):
                raise WrongResult(name)
            return seconds

        return Contender(name, measure)

    return [
        loader(LAZY, lambda: tfckpt.load_file(bundle, mmap=True, verify=False)),
        loader(LAZY_SAFETENSORS, lambda: safetensors.torch.load_file(st)),
        loader(LAZY_TORCH, lambda: torch.load(pt, weights_only=True, mmap=True)),
    ]


def _checkers(tensors: dict[str, torch.Tensor], size: int, bundle: Path) -> list[Contender]:
    def check() -> float:
        def work() -> tuple[int, int]:
            with tfckpt.load_checkpoint(bundle) as reader:
                found = reader.check()
                return len(found.good), len(found.damage)

        seconds, counts = timed(work)
        if counts != (len(tensors), 0):
            raise WrongResult(f"(good, damaged): {counts}")
        return seconds

    return [
        Contender(CHECK, check, size),
        Contender(CHECKSUM, lambda: timed(lambda: checksum_floor(tensors.values()))[0], size),
    ]


if __name__ == "__main__":
    sys.exit(main())
