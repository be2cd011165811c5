"""The threads of torch_tfckpt that run in this process."""

import threading


def own_threads() -> list[threading.Thread]:
    """Return the threads of the package that were started and have not ended.

    A thread whose `start` was interrupted by Ctrl-C may stay in Python's list without ever running; it has no
    identifier.
    """
    return [thread for thread in threading.enumerate() if thread.name.startswith("tfckpt") and thread.ident is not None]


def own_thread_names() -> list[str]:
    return [thread.name for thread in own_threads()]
