// Python bindings of the vector functions and of the instruction sets they are built for.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "bindings/bindings.h"
#include "testing/elementwise.h"
#include "simd/instruction_set.h"
#include "bindings/interpreter_lock.h"

namespace py = pybind11;
namespace vf = vapo_fast;

namespace {

template <class T>
py::array evaluate(vf::ElementwiseFunction function, const py::array& x, vf::InstructionSet instruction_set) {
    const auto input = py::array_t<T, py::array::c_style>::ensure(x);
    if (!input) throw py::error_already_set();
    py::array_t<T> out(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
    const T* from = input.data();
    T* to = out.mutable_data();
    const py::ssize_t size = input.size();
    const vapo_fast::WithoutLock release;
    vf::elementwise(function, from, to, size, instruction_set);
    return std::move(out);
}

py::array evaluate_any(const std::string& function, const py::array& x,
                      const std::optional<std::string>& instruction_set) {
    const vf::ElementwiseFunction f = vf::elementwise_function_named(function);
    const vf::InstructionSet isa =
        instruction_set ? vf::instruction_set_named(*instruction_set) : vf::chosen_instruction_set();
    if (py::isinstance<py::array_t<float>>(x)) return evaluate<float>(f, x, isa);
    if (py::isinstance<py::array_t<double>>(x)) return evaluate<double>(f, x, isa);
    throw py::type_error("x must be an array of float32 or float64, got " + std::string(py::str(x.dtype())));
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const vf::InstructionSet each : vf::usable_instruction_sets()) names.push_back(vf::name(each));
    return names;
}

}  // namespace

void bind_math(py::module_& m) {
    m.def("instruction_sets", &instruction_sets,
          "Builds of the vector kernels that this processor runs, least to most capable.");
    m.def("elementwise", &evaluate_any, py::arg("function"), py::arg("x"), py::arg("instruction_set") = py::none(),
          "The kernels' own exp, log, activations, ... of each element; a new array of the same shape and type.");
}
