// Python bindings. Pointers arrive as integers (Tensor.data_ptr()) so that the extension depends on no version of torch;
// vapo_fast/native.py checks dtype, device, contiguity and sizes before it calls anything here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <limits>
#include <stdexcept>

#include "build_info.h"
#include "philox.h"

namespace py = pybind11;

namespace {

void philox_words(std::uint64_t seed, std::uintptr_t index, std::int64_t n, std::int64_t blocks, std::uint32_t stream,
                  std::uintptr_t out) {
    if (n < 0) throw py::value_error("n must be >= 0");
    if (blocks < 0 || blocks > std::numeric_limits<std::uint32_t>::max())
        throw py::value_error("blocks must be in [0, 2^32)");
    if (n == 0 || blocks == 0) return;
    if (index == 0 || out == 0) throw py::value_error("index and out must not be null");
    if (index % alignof(std::int64_t) != 0 || out % alignof(std::uint32_t) != 0)
        throw py::value_error("index must be aligned to 8 bytes and out to 4");
    py::gil_scoped_release release;
    vapo_fast::philox_words(seed, reinterpret_cast<const std::int64_t*>(index), n, static_cast<std::uint32_t>(blocks),
                            stream, reinterpret_cast<std::uint32_t*>(out));
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = vapo_fast::compiler();
    info["cpp_standard"] = vapo_fast::cpp_standard();
    info["architecture"] = vapo_fast::architecture();
    info["instruction_sets"] = vapo_fast::instruction_sets();
    return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native parts of vapo_fast; use them through vapo_fast.native.";
    m.def("philox_words", &philox_words, py::arg("seed"), py::arg("index_ptr"), py::arg("n"), py::arg("blocks"),
          py::arg("stream"), py::arg("out_ptr"),
          "Philox4x32-10 words (n, blocks, 4) of uint32 into out_ptr for int64 sample indices at index_ptr.");
    m.def("build_info", &build_info, "Compiler, C++ standard, architecture, and instruction sets of this processor.");
}
