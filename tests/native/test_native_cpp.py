"""The C++ programs of csrc/testing/programs: scheduler, solver, field and loss of an MLP, convolutions; no Python.

VAPO_FAST_SANITIZE=thread (or address,undefined) builds them with that sanitizer; `make sanitize` runs both.
"""

import os
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
PROGRAMS = {
    "test_scheduler": ["core/scheduler.cpp", "testing/programs/test_scheduler.cpp"],
    "test_solve": [
        "core/scheduler.cpp",
        "solver/solve.cpp",
        "testing/programs/test_solve.cpp",
        "testing/programs/counted_new.cpp",
    ],
    "test_mlp": [
        "core/scheduler.cpp",
        "solver/solve.cpp",
        "mlp/mlp.cpp",
        "mlp/mlp_field.cpp",
        "simd/baseline.cpp",
        "simd/instruction_set.cpp",
        "testing/programs/test_mlp.cpp",
        "testing/programs/counted_new.cpp",
    ],
    "test_winograd": [
        "core/scheduler.cpp",
        "core/shared_threads.cpp",
        "image/winograd.cpp",
        "simd/baseline.cpp",
        "simd/instruction_set.cpp",
        "testing/programs/test_winograd.cpp",
    ],
}
FEWEST_TESTS = {"test_scheduler": 7, "test_solve": 8, "test_mlp": 6, "test_winograd": 4}

pytestmark = pytest.mark.skipif(COMPILER is None or os.name == "nt", reason="needs g++ or clang++ on a POSIX system")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Compiles all programs at once; maps each name to its path, or to the compiler's complaint."""
    folder = tmp_path_factory.mktemp("programs")
    generate = runpy.run_path(str(CSRC / "solver" / "generate_methods.py"))["generate"]
    generate(folder / "solver" / "methods.h")
    flags = [
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
        "-DVAPO_FAST_BASELINE_ONLY",
        f"-I{CSRC}",
        f"-I{folder}",
    ]
    if sanitizer := os.environ.get("VAPO_FAST_SANITIZE"):
        flags += [f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all", "-g"]

    def compile_one(name):
        sources = [str(CSRC / source) for source in PROGRAMS[name]]
        libraries = ["-ldl"] if sys.platform == "linux" else []
        command = [COMPILER, *flags, *sources, "-o", str(folder / name), *libraries]
        return subprocess.run(command, capture_output=True, text=True).stderr or folder / name

    with ThreadPoolExecutor() as pool:
        return dict(zip(PROGRAMS, pool.map(compile_one, PROGRAMS), strict=True))


@pytest.mark.parametrize("name", PROGRAMS)
def test_program(programs, name):
    assert isinstance(programs[name], Path), programs[name]
    done = subprocess.run([programs[name]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "FAILED" not in done.stdout
    assert done.stdout.count("ok  ") >= FEWEST_TESTS[name]
