"""Data sets: real images, users' files, and two-dimensional sets with known formulas. Start with `load`."""

from vapo_fast.data.base import (
    ArrayDataset,
    DataFormatError,
    DataNotFoundError,
    Dataset,
    Mirrored,
    Subset,
    of_classes,
)
from vapo_fast.data.images import ImageFolder
from vapo_fast.data.registry import ROOT_VARIABLE, load, names
from vapo_fast.data.toy import EIGHT_GAUSSIANS_SD, Mixture, Toy, eight_gaussians_mixture

__all__ = [
    "EIGHT_GAUSSIANS_SD",
    "ROOT_VARIABLE",
    "ArrayDataset",
    "DataFormatError",
    "DataNotFoundError",
    "Dataset",
    "ImageFolder",
    "Mirrored",
    "Mixture",
    "Subset",
    "Toy",
    "eight_gaussians_mixture",
    "load",
    "names",
    "of_classes",
]
