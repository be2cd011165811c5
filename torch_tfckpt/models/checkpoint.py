"""Checkpoint with all its namings: importing this module makes naming="keras" known to it."""

from torch_tfckpt.models.keras_objects import KerasModule
from torch_tfckpt.objects.checkpoint import Checkpoint
from torch_tfckpt.objects.naming import MODULES

MODULES["keras"] = KerasModule

__all__ = ["Checkpoint"]
