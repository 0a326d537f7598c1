"""Structures and numbers that building graphs takes, against every real cuda.h that is here."""

import ctypes
import subprocess

import pytest

from tests.engines.graph import cuda_headers
from vapo_fast.engines.graph import node_params
from vapo_fast.engines.graph.node_params import InstantiateResult, NodeType

pytestmark = pytest.mark.skipif(cuda_headers.missing() is not None, reason=str(cuda_headers.missing()))

STRUCTURES = {
    node_params.NodeParams: "CUgraphNodeParams",
    node_params.KernelParams: "CUDA_KERNEL_NODE_PARAMS_v3",
    node_params.ConditionalParams: "CUDA_CONDITIONAL_NODE_PARAMS",
    node_params.InstantiateParams: "CUDA_GRAPH_INSTANTIATE_PARAMS",
}
MEMBERS = {node_params.NodeParams: ("type", "reserved0", "kernel", "graph", "conditional", "reserved2")}
VALUES = {
    "CU_GRAPH_COND_TYPE_WHILE": node_params.WHILE,
    "CU_GRAPH_COND_ASSIGN_DEFAULT": node_params.ASSIGN_DEFAULT,
    "CU_STREAM_CAPTURE_MODE_RELAXED": node_params.CAPTURE_MODE_RELAXED,
    "CU_JIT_ERROR_LOG_BUFFER": node_params.ERROR_LOG_BUFFER,
    "CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES": node_params.ERROR_LOG_BUFFER_SIZE_BYTES,
    **{f"CU_GRAPH_NODE_TYPE_{one.name}": int(one) for one in NodeType},
    **{f"CUDA_GRAPH_INSTANTIATE_{one.name}": int(one) for one in InstantiateResult},
}


def ours():
    said = {f"sizeof({name})": ctypes.sizeof(structure) for structure, name in STRUCTURES.items()}
    for structure, name in STRUCTURES.items():
        for member in MEMBERS.get(structure, [field[0] for field in structure._fields_]):
            said[f"offsetof({name}, {member})"] = getattr(structure, member).offset
    said["offsetof(CUDA_CHILD_GRAPH_NODE_PARAMS, graph)"] = node_params.ChildGraphParams.graph.offset
    return said | VALUES


@pytest.mark.parametrize("folder", cuda_headers.folders(), ids=str)
def test_as_the_header_has_them(folder, tmp_path):
    expected = ours()
    source = tmp_path / "layout.cpp"
    lines = [f'    std::printf("%lld\\n", static_cast<long long>({expression}));' for expression in expected]
    source.write_text(
        "\n".join(["#include <cstddef>", "#include <cstdio>", "#include <cuda.h>", "int main() {", *lines, "}", ""])
    )
    program = tmp_path / "layout"
    subprocess.run([cuda_headers.COMPILER, "-I", folder, "-o", program, source], check=True, capture_output=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout.split()
    assert dict(zip(expected, map(int, printed), strict=True)) == expected
