"""The saver of a process that has no other.

Source: _get_saver_or_default in tensorflow/python/training/saver.py; spec: SAVER 4.
"""

from torch_tfckpt.errors import FailedPreconditionError
from torch_tfckpt.graph_collections import GraphKeys, add_to_collection, get_collection
from torch_tfckpt.saver import Saver


def get_saver_or_default() -> Saver:
    """The saver in the collection "savers", or a new one of all registered variables, sharded, which is put there.

    Raises:
        FailedPreconditionError (a RuntimeError): the collection holds several.
    """
    savers = get_collection(GraphKeys.SAVERS)
    if len(savers) > 1:
        raise FailedPreconditionError(f"More than one item in collection {GraphKeys.SAVERS}: {len(savers)}. Name yours")
    if savers:
        found = savers[0]
        if not isinstance(found, Saver):
            raise FailedPreconditionError(f"collection {GraphKeys.SAVERS} holds a {type(found).__name__}, no Saver")
        return found
    saver = Saver(sharded=True, allow_empty=True)
    add_to_collection(GraphKeys.SAVERS, saver)
    return saver
