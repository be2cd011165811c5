"""`Saver.save_on_signal`: save when a signal arrives."""

from collections.abc import Iterable
from typing import TypeVar

from torch_tfckpt.save_restore.handle import MaybeNone, SaveHandle
from torch_tfckpt.save_restore.on_signal import SaveOnSignal
from torch_tfckpt.saver.request import checkpoint_filename
from torch_tfckpt.storage.names import AnyPath, fspath

Saved = TypeVar("Saved", bound=SaveHandle | str | None)


class SavesOnSignal:
    """Base of Saver: a save at the next safe point after a signal."""

    _pad: bool
    _on_signal: tuple[SaveOnSignal, ...] = ()

    def save(
        self,
        save_path: AnyPath,
        global_step: object = None,
        latest_filename: str | None = None,
        *,
        write_meta_graph: bool = True,
    ) -> str | MaybeNone:
        """Save everything as one checkpoint; see Saver."""
        raise NotImplementedError

    def sync(self) -> None:
        """Wait until no save is in flight; see TracksCheckpoints."""
        raise NotImplementedError

    def save_on_signal(
        self,
        signals: int | Iterable[int],
        save_path: AnyPath,
        global_step: object = None,
        latest_filename: str | None = None,
        *,
        write_meta_graph: bool = True,
        exit: bool = False,
    ) -> SaveOnSignal:
        """Save at the next safe point after a signal, such as a scheduler's notice that it will end the job.

        Args:
            signals: `signal.SIGTERM`, or several signals.
            save_path: As for `save`.
            global_step: As for `save`, or a function that returns the current step.
            latest_filename: As for `save`.
            write_meta_graph: As for `save`.
            exit: End the program after the save, with status 128 plus the signal's number.

        Returns:
            An object with `should_stop()`, to be called once per training step, and `close()`, which restores the
            earlier signal handlers. It is also a context manager.

        Raises:
            FailedPreconditionError: called from a thread other than the main thread.
            InvalidArgumentError: a signal that cannot be handled, such as SIGKILL; or an invalid path or step.

        The handler only notes the signal: a checkpoint written when it arrives could contain half of an
        optimizer step. Safe points are `should_stop()`, leaving the `with` block, and every `save` and `save_async` of
        this saver. If a save is in flight, the safe point first waits for it. A second signal has its usual effect.
        """

        def step() -> object:
            return global_step() if callable(global_step) else global_step

        def save() -> str | MaybeNone:
            return self.save(save_path, step(), latest_filename, write_meta_graph=write_meta_graph)

        def target() -> str:
            return checkpoint_filename(fspath(save_path), step(), pad=self._pad)

        target()  # raises for invalid arguments now rather than when the signal arrives
        self._on_signal = (
            *(each for each in self._on_signal if each.is_open),
            SaveOnSignal(signals, save, self.sync, exit=exit, target=target),
        )
        return self._on_signal[-1]

    def _at_safe_point(self, target: str, saved: Saved) -> Saved:
        """Save once more if a signal has arrived, unless this would save `target` again, which was just saved."""
        for each in self._on_signal:
            each.at_safe_point(target, saved)
        return saved
