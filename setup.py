"""Builds what pyproject.toml cannot say: the optional C++ extension, and kernels/ as ``vapo_fast.kernels``.

There are two extensions. ``vapo_fast._native`` is the engine's. ``vapo_fast._native_testing`` (csrc/testing) holds what
only tests and benchmarks call. It is built for development, and no wheel holds it: an editable install
(``pip install -e .``) or ``build_ext --inplace`` builds it, and so does any build with VAPO_FAST_BUILD_TESTING=1.

VAPO_FAST_NO_NATIVE=1 leaves both out. VAPO_FAST_REQUIRE_NATIVE=1 makes a failed build an error.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import runpy
import sys
import tempfile
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension, build_ext
from setuptools import find_packages, setup

ROOT = Path(__file__).parent
CSRC = ROOT / "csrc"
HEADERS = sorted(path.relative_to(ROOT).as_posix() for path in CSRC.rglob("*.h"))
METHODS = ["csrc/solver/generate_methods.py", "vapo_fast/ode/tableaus.py"]  # what solver/methods.h is made of
BUILD_RECORD = "_native_build.json"
TESTING = "vapo_fast._native_testing"


def sources(*folders: str) -> list[str]:
    """The C++ sources that lie in these folders of csrc/, not below them."""
    found = [path for folder in folders for path in (CSRC / folder).glob("*.cpp")]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


class OptionalBuildExt(build_ext):
    """Builds the extensions if it can; if not, installs the package without them and records why.

    The record goes into the package as ``_native_build.json``, where ``vapo-fast info`` reads it.
    """

    def run(self) -> None:
        error = None
        # setuptools builds in place for an editable install.
        if not self.inplace and os.environ.get("VAPO_FAST_BUILD_TESTING") != "1":
            self.extensions = [extension for extension in self.extensions if extension.name != TESTING]
        if os.environ.get("VAPO_FAST_NO_NATIVE") == "1":
            error = "left out because VAPO_FAST_NO_NATIVE=1 was set when the package was built"
            self._remove_stale()
        else:
            error = self._try_build()
        record = {"built": error is None, "python": platform.python_version(), "machine": platform.machine()}
        if error is not None:
            record["error"] = error
        for target in self._package_directories():
            target.mkdir(parents=True, exist_ok=True)
            (target / BUILD_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    def _try_build(self) -> str | None:
        diagnostics = io.StringIO()
        inplace = self.inplace
        try:
            # The compiler writes to file descriptor 2, past sys.stderr: keep a copy of it for the record.
            with _copy_of_stderr(diagnostics):
                generated = Path(self.build_temp) / "generated"
                generate = runpy.run_path(str(ROOT / METHODS[0]))["generate"]
                generate(generated / "solver" / "methods.h")
                self.include_dirs = [str(CSRC), str(generated), *self.include_dirs]
                super().run()
        except (Exception, SystemExit) as error:
            if os.environ.get("VAPO_FAST_REQUIRE_NATIVE") == "1":
                raise
            self.inplace = inplace  # setuptools clears it while it builds, and does not restore it after a failure
            self._remove_stale()
            # An interpreter without headers or a machine without a compiler fails in many ways, all of them survivable.
            lines = [line for line in diagnostics.getvalue().splitlines() if line.strip()][:12]
            reason = "\n".join([f"{type(error).__name__}: {error}", *lines])
            print(f"warning: vapo_fast is installed without its native extension: {reason}", file=sys.stderr)
            return reason
        return None

    def _remove_stale(self) -> None:
        # An extension left by an earlier build would be imported although it no longer matches its sources.
        for directory in self._package_directories():
            for stale in [*directory.glob("_native*.so"), *directory.glob("_native*.pyd")]:
                stale.unlink()

    def _package_directories(self) -> list[Path]:
        return [ROOT / "vapo_fast" if self.inplace else Path(self.build_lib) / "vapo_fast"]

    def get_outputs(self) -> list[str]:
        outputs = [path for path in super().get_outputs() if Path(path).exists()]
        return [*outputs, *(str(directory / BUILD_RECORD) for directory in self._package_directories())]

    def get_output_mapping(self) -> dict[str, str]:
        # Editable installs ask where each built file belongs in the source tree; a failed build has nothing to place.
        return {built: source for built, source in super().get_output_mapping().items() if Path(built).exists()}


@contextlib.contextmanager
def _copy_of_stderr(into: io.StringIO):
    """Collect what this process and its children write to stderr, and show it afterwards."""
    with tempfile.TemporaryFile(mode="w+", encoding="utf-8", errors="replace") as file:
        sys.stderr.flush()
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            into.write(file.read())
            sys.stderr.write(into.getvalue())


link_args = []
if sys.platform == "win32":
    compile_args = ["/O2", "/fp:precise"]
else:
    # No -march: the build must run on any processor of its architecture; instruction sets are chosen at run time.
    # No contraction into fused multiply-adds, so that every build rounds alike. Nothing reads errno after a square
    # root, and loops that need not set it can be made of vector instructions.
    compile_args = ["-O3", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-pthread"]
    link_args = ["-pthread"]
    if sys.platform == "linux":
        link_args.append("-ldl")  # a part of libc since glibc 2.34, a library of its own before
    if sanitizers := os.environ.get("VAPO_FAST_SANITIZE"):  # for `make sanitize`
        link_args += [f"-fsanitize={sanitizers}"]
        compile_args += [*link_args, "-fno-sanitize-recover=all", "-fno-omit-frame-pointer", "-O1", "-g"]

compiled: set[str] = set()


def first_compilation(object_file: str, source: str) -> bool:
    """Whether this run has not compiled the object yet: the two extensions share most of theirs."""
    known = object_file in compiled
    compiled.add(object_file)
    return not known


def extension(name: str, names_of_sources: list[str]) -> Pybind11Extension:
    return Pybind11Extension(
        name,
        names_of_sources,
        depends=[*HEADERS, *METHODS],
        cxx_std=17,
        extra_compile_args=compile_args,
        extra_link_args=link_args,
    )


NATIVE = extension(
    "vapo_fast._native", sources("core", "simd", "solver", "mlp", "image", "random", "graph", "bindings")
)
NATIVE_TESTING = extension(TESTING, sources("core", "simd", "solver", "mlp", "testing"))

with ParallelCompile("VAPO_FAST_BUILD_JOBS", default=0, needs_recompile=first_compilation):
    setup(
        packages=[*find_packages(include=["vapo_fast", "vapo_fast.*"]), "vapo_fast.kernels"],
        package_dir={"vapo_fast": "vapo_fast", "vapo_fast.kernels": "kernels"},
        package_data={"vapo_fast": ["py.typed", "_native.pyi"]},
        exclude_package_data={"vapo_fast": ["_native_testing.pyi"]},  # setuptools would add every stub file
        ext_modules=[NATIVE, NATIVE_TESTING],
        cmdclass={"build_ext": OptionalBuildExt},
        zip_safe=False,
    )
