"""Checkpoints as the hub publishes them: load a model, save one, and the names on both sides."""

from vl2.checkpoint.convert import convert_checkpoint
from vl2.checkpoint.errors import CheckpointError
from vl2.checkpoint.layout import Layout, ours, table
from vl2.checkpoint.load import load_model
from vl2.checkpoint.save import save_model
from vl2.model_folder import resolve

__all__ = [
    "CheckpointError",
    "Layout",
    "convert_checkpoint",
    "load_model",
    "ours",
    "resolve",
    "save_model",
    "table",
]
