"""An optional package that is installed and broken is a reason, and no error of what works without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CODE = """
import json, torch, vapo_fast as vf
model = vf.MLPPotential((2,), vf.DataHomotopy(), widths=(8,))
if {trains}:  # with some of these, PyTorch's own optimisers do not import
    vf.train(model, torch.randn(16, 2), 2, batch_size=8)
x = vf.sample(model, 3, rtol=1e-3)
print(json.dumps(dict(engines=vf.engines(), finite=bool(torch.isfinite(x).all()))))
"""


def run(folder: Path, trains: bool) -> dict[str, Any]:
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{CODE.format(trains=trains)}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("broken", ["raise ImportError('libcuda.so.1: no such file')", "1 / 0", "x = 1"])
def test_a_broken_triton_is_a_reason(broken: str, tmp_path: Path) -> None:
    (tmp_path / "triton.py").write_text(broken)
    told = run(tmp_path, trains="ImportError" in broken)
    assert told["finite"]
    assert told["engines"]["reference"] == "usable"
    assert "triton is installed and cannot be imported" in told["engines"]["triton"]


def test_other_broken_packages_do_not_stop_training_and_sampling(tmp_path: Path) -> None:
    for package in ("matplotlib", "sklearn", "rich", "scipy", "PIL", "tensorboard"):
        (tmp_path / f"{package}.py").write_text("raise RuntimeError('broken')")
    assert run(tmp_path, trains=True)["finite"]
