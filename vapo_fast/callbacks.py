"""Callbacks of training, under their public name; see `vapo_fast.training.callbacks`."""

from vapo_fast.training.callbacks import Checkpointer, CSVLogger, ProgressBar, SampleGrid, TensorBoardLogger
from vapo_fast.training.run import Callback, Metrics

__all__ = ["CSVLogger", "Callback", "Checkpointer", "Metrics", "ProgressBar", "SampleGrid", "TensorBoardLogger"]
