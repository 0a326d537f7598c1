// vapo_fast._native_testing.elementwise: the vector functions on NumPy arrays.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <string>
#include <vector>

#include "testing/bindings.h"
#include "testing/elementwise.h"
#include "simd/instruction_set.h"
#include "bindings/interpreter_lock.h"

namespace py = pybind11;

namespace vapo_fast {
namespace {

template <class T>
py::array evaluate(ElementwiseFunction function, const py::array& x, InstructionSet instruction_set) {
    const auto input = py::array_t<T, py::array::c_style>::ensure(x);
    if (!input) throw py::error_already_set();
    py::array_t<T> out(std::vector<py::ssize_t>(x.shape(), x.shape() + x.ndim()));
    const T* from = input.data();
    T* to = out.mutable_data();
    const py::ssize_t size = input.size();
    const WithoutLock release;
    table_for<ElementwiseTable<T>>(instruction_set).apply(function, from, to, size);
    return std::move(out);
}

py::array evaluate_any(const std::string& function, const py::array& x,
                       const std::optional<std::string>& instruction_set) {
    const ElementwiseFunction f = elementwise_function_named(function);
    const InstructionSet isa = instruction_set ? instruction_set_named(*instruction_set) : chosen_instruction_set();
    if (py::isinstance<py::array_t<float>>(x)) return evaluate<float>(f, x, isa);
    if (py::isinstance<py::array_t<double>>(x)) return evaluate<double>(f, x, isa);
    throw py::type_error("x must be an array of float32 or float64, got " + std::string(py::str(x.dtype())));
}

}  // namespace

void bind_elementwise(py::module_& m) {
    m.def("elementwise", &evaluate_any, py::arg("function"), py::arg("x"), py::arg("instruction_set") = py::none(),
          "The kernels' own exp, log, activations, ... of each element; a new array of the same shape and type.");
}

}  // namespace vapo_fast
