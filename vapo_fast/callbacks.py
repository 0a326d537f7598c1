"""Callbacks of training, under their public name; see `vapo_fast.training.callbacks`."""

from vapo_fast.training.callbacks import (
    Callback,
    Checkpointer,
    CSVLogger,
    Metrics,
    ProgressBar,
    SampleGrid,
    TensorBoardLogger,
)

__all__ = ["CSVLogger", "Callback", "Checkpointer", "Metrics", "ProgressBar", "SampleGrid", "TensorBoardLogger"]
