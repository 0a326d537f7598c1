"""What is installed: public names documented, the build with and without a compiler, pins, examples that start."""

import ast
import importlib
import inspect
import json
import math
import os
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import vapo_fast

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def public_modules() -> list[str]:
    found = [m.name for m in pkgutil.walk_packages(vapo_fast.__path__, "vapo_fast.")]
    return [name for name in found if not any(part.startswith("_") for part in name.split(".")[1:])]


@pytest.mark.parametrize("name", public_modules())
def test_every_public_name_is_documented(name):
    """The linter sees functions and classes; a method may inherit its docstring, which only Python itself can tell."""
    module = importlib.import_module(name)
    undocumented = []
    for key, value in vars(module).items():
        if key.startswith("_") or getattr(value, "__module__", None) != name:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            undocumented += [] if inspect.getdoc(value) else [key]
        if inspect.isclass(value):
            for method, member in vars(value).items():
                # A dataclass's or named tuple's generated methods have no source here.
                if method.startswith("_") or not inspect.isfunction(member) or member.__module__ != name:
                    continue
                undocumented += [] if inspect.getdoc(getattr(value, method)) else [f"{key}.{method}"]
    assert undocumented == []


def test_the_version_is_one():
    assert vapo_fast.__version__ == PYPROJECT["project"]["version"]


def test_everything_in_all_exists():
    assert [name for name in vapo_fast.__all__ if not hasattr(vapo_fast, name)] == []


def test_importing_the_package_needs_no_extra():
    """matplotlib, scikit-learn, rich, typer, triton and the extension are imported when they are used, not before."""
    code = (
        "import sys, vapo_fast\n"
        "names = ('matplotlib', 'sklearn', 'scipy', 'ot', 'typer', 'triton', 'PIL', 'tensorboard')\n"
        "print([name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"


def test_requirements_are_pinned():
    """Every requirement of the package and of its build has a version in constraints.txt."""
    pinned = {
        re.split("==", line)[0].lower().replace("_", "-")
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    }
    project = PYPROJECT["project"]
    extras = [name for group in project["optional-dependencies"].values() for name in group]
    wanted = [*project["dependencies"], *extras, *PYPROJECT["build-system"]["requires"]]
    names = {re.split(r"[<>=!\[; ]", requirement)[0].lower().replace("_", "-") for requirement in wanted}
    assert names - pinned == {"vapo-fast"}


def build(tmp_path: Path, **environment: str) -> tuple[Path, subprocess.CompletedProcess[str]]:
    target = tmp_path / "lib"
    pytest.importorskip("pybind11")
    command = [sys.executable, "setup.py", "-q", "build", f"--build-base={tmp_path / 'b'}", f"--build-lib={target}"]
    variables = {**os.environ, "VAPO_FAST_REQUIRE_NATIVE": "0", "VAPO_FAST_BUILD_TESTING": "0", **environment}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=variables)
    return target / "vapo_fast", done


def test_a_build_without_a_compiler_installs_and_says_why(tmp_path):
    package, done = build(tmp_path, CC="/none/cc", CXX="/none/c++")
    assert done.returncode == 0, done.stderr
    assert not list(package.glob("_native.*.so"))
    record = json.loads((package / "_native_build.json").read_text())
    assert record["built"] is False
    assert "/none/c" in record["error"]
    assert (package / "kernels" / "__init__.py").is_file()
    assert (package / "py.typed").is_file()
    assert "installed without its native extension" in done.stderr
    assert_everything_runs_without_the_extension(package, record["error"].splitlines()[0])


# An editable install finds the tree's extension for a package that has none.
NOT_EDITABLE = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder).lower()]
"""
WITHOUT_EXTENSION = """
import json, torch
import vapo_fast as vf
from vapo_fast.engines import UnsupportedJobError

torch.manual_seed(0)
model = vf.MLPPotential(event_shape=(2,), homotopy=vf.DataHomotopy(), widths=(8,))
trainer = vf.Trainer(model, batch_size=16)
trainer.fit(torch.randn(64, 2), steps=2)
x = vf.sample(trainer.ema_model, 5, rtol=1e-3)
likelihood = vf.log_likelihood(trainer.ema_model, x, rtol=1e-3)
try:
    vf.sample(model, 1, engine="native")
    refused = ""
except UnsupportedJobError as error:
    refused = str(error)
told = {"file": vf.__file__, "engines": vf.engines(), "refused": refused}
told |= {"steps": trainer.step, "engine": trainer.engine.name}
told["finite"] = bool(torch.isfinite(x).all() and torch.isfinite(likelihood).all())
json.dump(told, sys.stdout)
"""


def assert_everything_runs_without_the_extension(package: Path, error: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(package.parent), "OMP_NUM_THREADS": "1"}
    environment.pop("VAPO_FAST_ENGINE", None)

    def run(code: str) -> str:
        # From elsewhere and with -P, so that the tree cannot stand in for what was built.
        command = [sys.executable, "-P", "-c", NOT_EDITABLE + code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=package.parent, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    told = json.loads(run(WITHOUT_EXTENSION))
    assert Path(told["file"]).parent == package
    assert told["engines"]["reference"] == "usable"
    assert error in told["engines"]["native"]
    assert (told["steps"], told["engine"], told["finite"]) == (2, "reference", True)
    assert error in told["refused"]
    info = run("import runpy; sys.argv = ['vapo-fast', 'info']; runpy.run_module('vapo_fast', run_name='__main__')")
    assert error in " ".join(info.split())
    assert "usable" in info


def test_the_extension_can_be_left_out(tmp_path):
    package, done = build(tmp_path, VAPO_FAST_NO_NATIVE="1")
    assert done.returncode == 0, done.stderr
    assert "VAPO_FAST_NO_NATIVE=1" in json.loads((package / "_native_build.json").read_text())["error"]


def test_a_required_extension_that_cannot_be_built_is_an_error(tmp_path):
    _, done = build(tmp_path, CC="/none/cc", CXX="/none/c++", VAPO_FAST_REQUIRE_NATIVE="1")
    assert done.returncode != 0


def test_kernels_are_importable_where_the_package_is_installed():
    if importlib.util.find_spec("vapo_fast.kernels") is None:
        pytest.skip("the package runs from its folder without being installed")
    assert importlib.import_module("vapo_fast.kernels").__doc__


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.name)
def test_examples_use_names_that_exist(path):
    """Running them takes minutes; a renamed function would be found here."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    missing = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vapo_fast"):
            module = importlib.import_module(node.module)
            missing += [
                a.name
                for a in node.names
                if not hasattr(module, a.name) and not importlib.util.find_spec(f"{node.module}.{a.name}")
            ]
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vf":
            missing += [] if hasattr(vapo_fast, node.attr) else [node.attr]
    assert missing == []


def run_demo(name: str, out: Path) -> None:
    """Three training steps of an example."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "examples" / name), "--steps", "3", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr


def test_the_eight_gaussians_demo_runs(tmp_path):
    """Both files are written, and the engine is compared with the reference if it is another."""
    run_demo("eight_gaussians_demo.py", tmp_path)
    assert (tmp_path / "eight_gaussians.png").stat().st_size > 0
    report = json.loads((tmp_path / "eight_gaussians.json").read_text())
    assert len(report["mode_shares"]) == 8
    assert all(math.isfinite(span) and span >= 0 for span in report["span_over_modes_in_nats"].values())
    assert ("reference_over_engine" in report) == (report["engine"] != "reference")


def test_the_digits_demo_runs(tmp_path):
    """Every file is written, and the tables parse."""
    run_demo("digits_demo.py", tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names >= {"samples.png", "training.png", "training.csv", "scores.md", "scores.json", "model.safetensors"}
    report = json.loads((tmp_path / "scores.json").read_text())
    assert len(report["class_shares"]) == 10
