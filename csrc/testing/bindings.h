// The parts of the Python module vapo_fast._native_testing; each adds its functions to it.
#pragma once

#include <pybind11/pybind11.h>

namespace vapo_fast {

void bind_elementwise(pybind11::module_& m);
void bind_rates(pybind11::module_& parent);
void bind_solver(pybind11::module_& m);

}  // namespace vapo_fast
