"""Conversion of a Saver to and from a SaverDef message."""

from typing import Self

from torch_tfckpt._proto.saver_pb2 import SaverDef
from torch_tfckpt.save_restore.saver_def import out_of_scope


class HasSaverDef:
    """Base of Saver: conversion to and from SaverDef."""

    saver_def: SaverDef | None

    def as_saver_def(self) -> SaverDef | None:
        """Return the saver's settings; None if it has nothing to save."""
        return self.saver_def

    def to_proto(self, export_scope: str | None = None) -> SaverDef | None:
        """Return the settings with `export_scope` removed from the names; None if a name is not in this scope."""
        if export_scope is None or self.saver_def is None:
            return self.saver_def
        return out_of_scope(self.saver_def, export_scope)

    @classmethod
    def from_proto(cls, saver_def: SaverDef, import_scope: str | None = None, *, var_list: object = None) -> Self:
        """Create a saver with these settings, for the tensors of `var_list` or of the collections."""
        return cls(var_list, saver_def=saver_def, name=import_scope)  # type: ignore[call-arg]
