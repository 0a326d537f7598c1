"""The condition kernels' PTX, made by nvcc: ``python tests/engines/graph/condition_ptx.py --write``.

nvcc names the version of PTX that it speaks, which only drivers as new as itself understand. The instructions here are
all of the oldest version that has the target, so that version is named instead: any driver with WHILE nodes takes it.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[3] / "vapo_fast" / "engines" / "graph"
SOURCE, PTX = FOLDER / "condition.cu", FOLDER / "condition.ptx"
TARGET, VERSION = 75, "6.3"


def compiler() -> str | None:
    """nvcc, or None."""
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def compiled(nvcc: str) -> str:
    """The text that condition.ptx should be."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "condition.ptx"
        command = [nvcc, f"-arch=compute_{TARGET}", "-ptx", "-o", str(output), str(SOURCE)]
        subprocess.run(command, check=True, capture_output=True)
        text = output.read_text(encoding="utf-8")
    by = subprocess.run([nvcc, "--version"], check=True, capture_output=True, text=True).stdout
    release = re.search(r"release ([\d.]+)", by)
    assert release is not None, by
    lines = [f"// Of condition.cu, by nvcc {release[1]} and tests/engines/graph/condition_ptx.py.", *instructions(text)]
    return "\n".join(lines) + "\n"


def instructions(text: str) -> list[str]:
    """The lines of PTX, without comments and empty lines, for the oldest version that has them."""
    lines = [line.split("//")[0].rstrip() for line in text.splitlines()]
    return [re.sub(r"^\.version .*", f".version {VERSION}", line) for line in lines if line.strip()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write condition.ptx instead of printing it")
    write = parser.parse_args().write
    nvcc = compiler()
    if nvcc is None:
        parser.exit(1, "nvcc is not on the PATH, nor in /usr/local/cuda/bin\n")
    text = compiled(nvcc)
    if write:
        PTX.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
