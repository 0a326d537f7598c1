"""The accumulators of the matrix products stay in registers: read off the assembly that the build's flags give.

A compiler that spills them stores and reloads every one of them in every turn of the inner loop. Results stay right and
the products take twice as long, which no other test would notice.
"""

import ast
import os
import platform
import re
import shlex
import shutil
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMPILER = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
# Rows and registers of the tall block, csrc/mlp/product.h, and the vector registers that there are.
BLOCKS = {"avx2": (6, 2), "avx512": (8, 3)}

_LABEL = re.compile(r"^([.\w$]+):")
_JUMP = re.compile(r"^\s+j\w+\s+([.\w$]+)\s*$")
_VECTOR_STORE = re.compile(r"^\s+v?mov\w*\s+%[xyz]mm\d+,\s*(?P<memory>[-\w.]*\([^)]*\))")
_STACK = re.compile(r"\(%r[sb]p[,)]")
_MULTIPLY_ADD = re.compile(r"^\s+vfmadd\d+(?P<kind>[ps][sd])\s+(?P<operands>.*)$")
_NOT_CONSTANT = r"[-\w.]*\((?!%rip)[^)]*\)"
# One number of memory for all lanes: an instruction of its own, or part of a multiply-add. Constants lie at %rip.
_BROADCAST = re.compile(
    rf"^\s+((vbroadcasts[sd]|vmovddup)\s+{_NOT_CONSTANT}|vfmadd\d+p[sd]\s+{_NOT_CONSTANT}\{{1to\d+\}})"
)

needs_compiler = pytest.mark.skipif(
    COMPILER is None or os.name == "nt" or platform.machine() not in ("x86_64", "AMD64"),
    reason="needs g++ or clang++ for x86-64",
)


def flags() -> list[str]:
    """Those of setup.py after those of the interpreter's own build, as an extension gets them."""
    text = (ROOT / "setup.py").read_text(encoding="utf-8")
    (ours,) = re.findall(r"^    compile_args = (\[\"-O.*\])$", text, re.MULTILINE)
    python = shlex.split(f"{sysconfig.get_config_var('CFLAGS') or ''} {sysconfig.get_config_var('CCSHARED') or ''}")
    kept = [flag for flag in python if flag.startswith(("-O", "-f", "-D")) and "lto" not in flag]
    return [*kept, "-std=c++17", "-fvisibility=hidden", "-g0", *ast.literal_eval(ours)]


def innermost_loops(assembly: str) -> list[list[str]]:
    """The instructions of every loop without a loop in it: from a label to a jump back to it."""
    lines = assembly.splitlines()
    labels: dict[str, int] = {}
    loops = []
    for i, line in enumerate(lines):
        if label := _LABEL.match(line):
            labels[label[1]] = i
        elif (jump := _JUMP.match(line)) and jump[1] in labels:
            loops.append((labels[jump[1]], i))
    inner = [a for a in loops if not any(a != b and a[0] <= b[0] and b[1] <= a[1] for b in loops)]
    return [[line for line in lines[begin : end + 1] if line.startswith("\t")] for begin, end in inner]


def product_loops(assembly: str, rows: int, panels: int) -> list[list[str]]:
    """The loops over the inner index of the tall block: a broadcast for each row, and that times as many multiply-adds
    as there are panels. (Activations have multiply-adds too, with constants.)"""
    found = []
    for loop in innermost_loops(assembly):
        broadcasts = sum(map(bool, map(_BROADCAST.match, loop)))
        if broadcasts >= rows and sum(map(bool, map(_MULTIPLY_ADD.match, loop))) >= rows * panels:
            found.append(loop)
    return found


def spills(loop: list[str]) -> list[str]:
    """Vector stores of a loop, of which a product's has none, and whatever else of vectors it does with the stack."""
    return [line.strip() for line in loop if _VECTOR_STORE.match(line) or (_STACK.search(line) and "mm" in line)]


def assemble(kernels: str, *more: str) -> str:
    command = [str(COMPILER), *flags(), *more, "-S", f"-I{ROOT / 'csrc'}", str(ROOT / "csrc" / kernels), "-o", "-"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def assemblies() -> dict[str, str]:
    with ThreadPoolExecutor() as pool:
        return dict(zip(BLOCKS, pool.map(assemble, [f"simd/{name}.cpp" for name in BLOCKS]), strict=True))


@needs_compiler
@pytest.mark.parametrize("name", BLOCKS)
def test_products_keep_their_sums_in_registers(assemblies: dict[str, str], name: str):
    loops = product_loops(assemblies[name], *BLOCKS[name])
    kinds = {match["kind"] for loop in loops for match in map(_MULTIPLY_ADD.match, loop) if match}
    # Both number types, in the products of the sweeps and of convolutions, and in the sums over rows.
    assert len(loops) >= 4
    assert kinds >= {"ps", "pd"}
    assert [spilled for loop in loops if (spilled := spills(loop))] == []


LOOP = """
f:
.L2:
\tvmovaps\t%ymm9, (%rdi)
.L3:
\tvmovups\t(%rsi), %ymm0
\tvbroadcastss\t(%rdx), %ymm1
\tvfmadd231ps\t%ymm0, %ymm1, %ymm2
\tvbroadcastss\t4(%rdx,%rax), %ymm1
\tvfmadd231ps\t%ymm0, %ymm1, %ymm3
{more}
\tcmpq\t%rsi, %rcx
\tjne\t.L3
\tvmovaps\t%ymm2, -32(%rsp)
\tjne\t.L2
\tjmp\t.L4
.L4:
\tret
"""


@pytest.mark.parametrize(
    ("more", "count"),
    [
        ("", 0),
        ("\tmovq\t%rax, -8(%rsp)", 0),  # an address may be spilled
        ("\tvmovaps\t%ymm2, -32(%rsp)", 1),
        ("\tvmovups\t%ymm2, 64(%rax,%r8,4)", 1),
        ("\tvmovaps\t-32(%rsp), %ymm2", 1),
        ("\tvfmadd231ps\t-96(%rbp), %ymm1, %ymm4", 1),
    ],
)
def test_spills_are_found_in_the_inner_loop_alone(more: str, count: int):
    (loop,) = product_loops(LOOP.format(more=more), 2, 1)
    assert len(spills(loop)) == count
    assert product_loops(LOOP.format(more=more), 3, 1) == []


def test_multiply_adds_with_constants_are_no_product():
    constants = LOOP.replace("(%rdx)", ".LC1(%rip)").replace("4(%rdx,%rax)", ".LC2(%rip)")
    assert product_loops(constants.format(more=""), 2, 1) == []
    embedded = "\tvfmadd231ps\t(%rdx){1to16}, %zmm0, %zmm1"
    assert len(product_loops(LOOP.format(more=embedded), 3, 1)) == 1
