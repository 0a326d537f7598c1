"""The features whose distances are compared."""

from __future__ import annotations

import os
from pathlib import Path

import torch

import vapo_fast as vf
from benchmarks.studies.quality.settings import Setting
from vapo_fast import data

DEFAULT_CACHE = Path(os.environ.get("VAPO_FAST_CACHE", Path.home() / ".cache" / "vapo_fast")) / "quality"


def feature_extractor(
    setting: Setting, train: data.Dataset, cache: Path, name: str, device: torch.device
) -> vf.metrics.Extractor:
    """The setting's extractor; "cnn" is trained on the data once, and kept in ``cache`` under the set's name."""
    if setting.extractor != "cnn":
        return vf.metrics.extractor(setting.extractor, device)
    path = cache / f"{name}-{len(train)}-{setting.cnn_epochs}.safetensors"
    if path.is_file():
        return vf.metrics.CNNExtractor.load(path, device)
    print(f"training the classifier whose features are compared, into {path}", flush=True)
    trained = vf.metrics.CNNExtractor.train(train, epochs=setting.cnn_epochs, device=device)
    path.parent.mkdir(parents=True, exist_ok=True)
    trained.save(path)
    return trained
