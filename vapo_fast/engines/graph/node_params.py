"""Structures and numbers of the CUDA driver's interface that building a graph takes, as its header cuda.h has them.

Nothing of CUDA is there when this package is built or imported, so they are declared here;
``tests/engines/graph/test_node_params.py`` compares sizes, offsets and values with every cuda.h that it finds.
"""

from __future__ import annotations

import ctypes
from enum import IntEnum


class NodeType(IntEnum):
    """CUgraphNodeType."""

    KERNEL = 0
    MEMCPY = 1
    MEMSET = 2
    HOST = 3
    GRAPH = 4
    EMPTY = 5
    WAIT_EVENT = 6
    EVENT_RECORD = 7
    EXT_SEMAS_SIGNAL = 8
    EXT_SEMAS_WAIT = 9
    MEM_ALLOC = 10
    MEM_FREE = 11
    BATCH_MEM_OP = 12
    CONDITIONAL = 13


class InstantiateResult(IntEnum):
    """CUgraphInstantiateResult."""

    SUCCESS = 0
    ERROR = 1
    INVALID_STRUCTURE = 2
    NODE_OPERATION_NOT_SUPPORTED = 3
    MULTIPLE_CTXS_NOT_SUPPORTED = 4
    CONDITIONAL_HANDLE_UNUSED = 5


WHILE = 1
"""CU_GRAPH_COND_TYPE_WHILE."""
ASSIGN_DEFAULT = 1
"""CU_GRAPH_COND_ASSIGN_DEFAULT: each launch begins with the handle's default value."""
CAPTURE_MODE_RELAXED = 2
"""CU_STREAM_CAPTURE_MODE_RELAXED."""
ERROR_LOG_BUFFER, ERROR_LOG_BUFFER_SIZE_BYTES = 5, 6
"""CU_JIT_ERROR_LOG_BUFFER and its size."""


class KernelParams(ctypes.Structure):
    """CUDA_KERNEL_NODE_PARAMS_v3."""

    _fields_ = (
        ("func", ctypes.c_void_p),
        ("gridDimX", ctypes.c_uint),
        ("gridDimY", ctypes.c_uint),
        ("gridDimZ", ctypes.c_uint),
        ("blockDimX", ctypes.c_uint),
        ("blockDimY", ctypes.c_uint),
        ("blockDimZ", ctypes.c_uint),
        ("sharedMemBytes", ctypes.c_uint),
        ("kernelParams", ctypes.POINTER(ctypes.c_void_p)),
        ("extra", ctypes.c_void_p),
        ("kern", ctypes.c_void_p),
        ("ctx", ctypes.c_void_p),
    )


class ChildGraphParams(ctypes.Structure):
    """CUDA_CHILD_GRAPH_NODE_PARAMS; what later versions added to it is zero: the child is a copy."""

    _fields_ = (("graph", ctypes.c_void_p),)


class ConditionalParams(ctypes.Structure):
    """CUDA_CONDITIONAL_NODE_PARAMS; ``phGraph_out`` is written by the driver."""

    _fields_ = (
        ("handle", ctypes.c_ulonglong),
        ("type", ctypes.c_int),
        ("size", ctypes.c_uint),
        ("phGraph_out", ctypes.POINTER(ctypes.c_void_p)),
        ("ctx", ctypes.c_void_p),
    )


class _OfType(ctypes.Union):
    _fields_ = (
        ("reserved1", ctypes.c_longlong * 29),
        ("kernel", KernelParams),
        ("graph", ChildGraphParams),
        ("conditional", ConditionalParams),
    )


class NodeParams(ctypes.Structure):
    """CUgraphNodeParams."""

    _anonymous_ = ("of_type",)
    _fields_ = (
        ("type", ctypes.c_int),
        ("reserved0", ctypes.c_int * 3),
        ("of_type", _OfType),
        ("reserved2", ctypes.c_longlong),
    )


class InstantiateParams(ctypes.Structure):
    """CUDA_GRAPH_INSTANTIATE_PARAMS."""

    _fields_ = (
        ("flags", ctypes.c_ulonglong),
        ("hUploadStream", ctypes.c_void_p),
        ("hErrNode_out", ctypes.c_void_p),
        ("result_out", ctypes.c_int),
    )
