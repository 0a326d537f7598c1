// The Python module vapo_fast._native; vapo_fast/native.py and vapo_fast/engines/native.py are what uses it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings/bindings.h"
#include "bindings/build_info.h"
#include "simd/instruction_set.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
    py::dict info;
    info["compiler"] = vapo_fast::compiler();
    info["cpp_standard"] = vapo_fast::cpp_standard();
    info["architecture"] = vapo_fast::architecture();
    info["instruction_sets"] = vapo_fast::processor_features();
    return info;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native parts of vapo_fast; use them through vapo_fast.native and vapo_fast.engines.";
    m.def("build_info", &build_info, "Compiler, C++ standard, architecture, and instruction sets of this processor.");
    m.def("chosen_instruction_set", [] { return vapo_fast::name(vapo_fast::chosen_instruction_set()); },
          "The kernels that are used unless told otherwise; ValueError if VAPO_FAST_INSTRUCTION_SET names none.");
    bind_draws(m);
    bind_math(m);
    vapo_fast::bind_mlp(m);
    vapo_fast::bind_control(m);
    vapo_fast::bind_pointwise(m);
    vapo_fast::bind_rates(m);
    vapo_fast::bind_winograd(m);
    vapo_fast::bind_graph(m);
}
