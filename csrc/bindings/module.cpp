// The Python module vapo_fast._native; vapo_fast/core/extension.py loads it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "simd/instruction_set.h"

namespace py = pybind11;

namespace {

std::string compiler() {
#if defined(__clang__)
    return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
    return std::string("gcc ") + __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " + std::to_string(_MSC_FULL_VER);
#else
    return "unknown";
#endif
}

// The value of __cplusplus, e.g. 201703.
long cpp_standard() {
#if defined(_MSVC_LANG)  // msvc leaves __cplusplus at 199711 unless asked
    return _MSVC_LANG;
#else
    return __cplusplus;
#endif
}

// Of the build.
std::string architecture() {
#if defined(__x86_64__) || defined(_M_X64)
    return "x86_64";
#elif defined(__aarch64__) || defined(_M_ARM64)
    return "aarch64";
#else
    return "other";
#endif
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = compiler();
    info["cpp_standard"] = cpp_standard();
    info["architecture"] = architecture();
    info["instruction_sets"] = vapo_fast::processor_features();
    return info;
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const vapo_fast::InstructionSet each : vapo_fast::usable_instruction_sets())
        names.push_back(vapo_fast::name(each));
    return names;
}

}  // namespace

PYBIND11_MODULE(_native, m) {
    m.doc() = "Native parts of vapo_fast; use them through vapo_fast.core.extension and vapo_fast.engines.";
    m.def("build_info", &build_info, "Compiler, C++ standard, architecture, and instruction sets of this processor.");
    m.def(
        "chosen_instruction_set", [] { return vapo_fast::name(vapo_fast::chosen_instruction_set()); },
        "The kernels that are used unless told otherwise; ValueError if VAPO_FAST_INSTRUCTION_SET names none.");
    m.def("instruction_sets", &instruction_sets,
          "Builds of the vector kernels that this processor runs, least to most capable.");
    vapo_fast::bind_draws(m);
    vapo_fast::bind_graph(m);
    vapo_fast::bind_mlp(m);
    vapo_fast::bind_pointwise(m);
    vapo_fast::bind_winograd(m);
}
