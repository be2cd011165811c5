"""Python's garbage collector while hundreds of thousands of small objects are made.

It then runs again and again, and each full run visits all objects of the program: importing torch alone leaves several
hundred thousand. With 100,000 small tensors, a third of the time of a load or a save was spent in it.
"""

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_MANY: Final = 10_000
_BUSY: Final = threading.Lock()


@contextmanager
def new_objects_only(count: int) -> Iterator[None]:
    """During the `with` block, the garbage collector visits only objects that were made since its beginning.

    For blocks that make at least `count` objects, and take seconds at most: garbage made before is collected
    afterwards. Does nothing in another such block, in a program that has called gc.freeze itself, and for few objects:
    the collection of young garbage would be delayed, and no time saved.
    """
    if count < _MANY or not _BUSY.acquire(blocking=False):
        yield
        return
    try:
        if gc.get_freeze_count():
            yield
            return
        gc.freeze()
        try:
            yield
        finally:
            gc.unfreeze()
    finally:
        _BUSY.release()
