"""What every format offers to whoever writes it, tensor by tensor."""

from collections.abc import Mapping
from typing import Protocol

from torch_tfckpt.exchange.publication import Publication
from torch_tfckpt.exchange.values import TensorInfo, Value


class Sink(Protocol):
    """A target. In order: `refusal` for each tensor, `plan`, `open`, `write` until all are written, `finish`."""

    @property
    def path(self) -> str:
        """What its sidecar is named after: file, prefix, or the file that shards make up."""

    @property
    def format(self) -> str:
        """For people."""

    def refusal(self, name: str, info: TensorInfo) -> str | None:
        """Why this tensor cannot be in there; None where it can."""

    def noted_type(self, info: TensorInfo) -> bool:
        """Whether the tensor is held as plain numbers from which its type cannot be told."""

    def plan(self, tensors: Mapping[str, TensorInfo]) -> list[str]:
        """Decides where everything goes; the order in which values are wanted. Touches no file."""

    def files(self) -> list[str]:
        """What will be published. REQUIRES: planned."""

    def open(self, publication: Publication) -> None:
        """Creates the files under temporary names, and arranges for `publication` to publish them."""

    def write(self, values: Mapping[str, Value]) -> None:
        """Some tensors, in the order of `plan`."""

    def finish(self) -> int:
        """All bytes are written. Returns what `Source.data_bytes` will say."""

    def close(self) -> None:
        """Lets go of the files, also after an error. Publishing is the publication's."""
