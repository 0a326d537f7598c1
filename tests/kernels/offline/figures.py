"""What the compiler made of a kernel: registers, spills, memory, instructions."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton
from vapo_fast.kernels.shapes import Tile

from .cases import Case
from .compiling import compiled


@dataclass(frozen=True)
class Figures:
    """Of one compilation.

    Attributes:
        registers: of a thread. stack: bytes of a thread in local memory, where what has no register goes.
        spills: loads from the stack and stores to it inside the loops over a product's terms.
        shared: bytes of a program.
        narrow: products in 32 bits that a size, a stride or a program's number goes into, and that may overflow.
        matrix, loop: matrix instructions (without tensor cores: multiply-adds) and all instructions in the shortest of
            the loops that have most; warpgroups have equally many in all, and it is the one of block_k columns.
        widest: all instructions in the longest of these loops, that of a product of block_n columns.
        instructions: of the whole kernel.
    """

    registers: int
    stack: int
    spills: int
    shared: int
    narrow: int
    matrix: int
    loop: int
    instructions: int
    widest: int


MARGINS = Figures(registers=8, stack=0, spills=0, shared=0, narrow=0, matrix=0, loop=16, instructions=500, widest=16)
"""By how much a figure may exceed its limit: registers are handed out by eights, and the rest of a kernel may grow."""


def measure(case: Case, tile: Tile | None = None) -> Figures:
    """Compile, and read the machine code."""
    kernel = compiled(case, tile)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        resources = _cuobjdump("-res-usage", file.name)
        assembly = _cuobjdump("-sass", file.name)
    loops = list(_product_loops(assembly))
    most = max(map(_matrix, loops), default=0)
    densest = min((loop for loop in loops if _matrix(loop) == most), key=len, default=[])
    # Where a product has a single step, its loop is the one around, with the activations: less dense.
    density = max((_matrix(loop) / len(loop) for loop in loops), default=0.0)
    widest = max((loop for loop in loops if _matrix(loop) > 0.3 * density * len(loop)), key=len, default=[])
    return Figures(
        registers=int(re.search(r"REG:(\d+)", resources)[1]),
        stack=int(re.search(r"STACK:(\d+)", resources)[1]),
        spills=sum(bool(_LOCAL.match(instruction)) for loop in loops for instruction in loop),
        shared=kernel.metadata.shared,
        narrow=len(narrow_products(kernel.asm["ttir"])),
        matrix=_matrix(densest),
        loop=len(densest),
        widest=len(widest),
        instructions=len(_instructions(assembly)),
    )


def _cuobjdump(*arguments: str) -> str:
    tool = tools()["cuobjdump"]
    return subprocess.run([tool, *arguments], capture_output=True, text=True, check=True).stdout


def tools() -> dict[str, str]:
    """The programs that triton brings along."""
    folder = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    return {name: str(folder / name) for name in ("ptxas", "cuobjdump")}


def narrow_products(ir: str) -> list[str]:
    """Multiplications in 32 bits of what grows with the batch: kernel arguments, program numbers, loops over them."""
    large = set(re.findall(r"(%\w+): i32\b", re.search(r"tt\.func public .*", ir)[0]))
    found = []
    for line in ir.splitlines():
        if loop := re.search(r"scf\.for (%\w+) = (%\w+) to (%\w+)", line):
            if {loop[2], loop[3]} & large:
                large.add(loop[1])
            continue
        operation = re.match(r"\s*(%\w+)(?::\d+)? = \"?([\w.]+)\"?(.*)", line)
        if operation is None:
            continue
        result, name, rest = operation.groups()
        narrow = re.search(r"(?:\bi32|xi32>)(?: loc\(.*\))?$", rest.strip()) is not None
        if name in ("tt.get_program_id", "tt.get_num_programs"):
            large.add(result)
        elif narrow and set(re.findall(r"%\w+", rest)) & large:
            if name == "arith.muli":
                found.append(line.strip())
            elif name in ("tt.splat", "tt.broadcast", "tt.expand_dims", "arith.addi", "arith.subi", "arith.divsi"):
                large.add(result)
    return found


_LINE = re.compile(r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(.*?)\s*;", re.MULTILINE)
_LOCAL = re.compile(r"(LDL|STL)\b")
_TENSOR = re.compile(r"(HMMA|HGMMA|UTC\w*MMA)\b")
_MULTIPLY_ADD = re.compile(r"FFMA2?\b")
# Fewer multiply-adds are not a product without tensor cores.
_LEAST = 32


def _instructions(assembly: str) -> list[tuple[int, str]]:
    return [(int(address, 16), text) for address, text in _LINE.findall(assembly)]


def _matrix(instructions: Sequence[str]) -> int:
    tensor = sum(bool(_TENSOR.match(text)) for text in instructions)
    return tensor or sum(bool(_MULTIPLY_ADD.match(text)) for text in instructions)


def _product_loops(assembly: str) -> Iterator[list[str]]:
    """The innermost loops that make products: from the target of a branch backwards to the branch."""
    instructions = _instructions(assembly)
    loops = []
    for address, text in instructions:
        target = re.match(r"BRA(?:\.\w+)*\s+(?:!?U?P\w+,\s*)?(?:`\(.*\)|0x([0-9a-f]+))", text)
        if target and target[1] and int(target[1], 16) < address:
            loops.append((int(target[1], 16), address))
    for first, last in loops:
        if any(first <= a and b <= last and (a, b) != (first, last) for a, b in loops):
            continue
        body = [text for address, text in instructions if first <= address <= last]
        matrix = _matrix(body)
        if any(_TENSOR.match(text) for text in body) or matrix >= _LEAST:
            yield body
