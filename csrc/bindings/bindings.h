// The parts of the Python module vapo_fast._native; each adds its functions to it.
#pragma once

#include <pybind11/pybind11.h>

void bind_draws(pybind11::module_& m);
void bind_math(pybind11::module_& m);

namespace vapo_fast {

void bind_control(pybind11::module_& m);
void bind_graph(pybind11::module_& m);
void bind_mlp(pybind11::module_& m);
void bind_pointwise(pybind11::module_& m);
void bind_rates(pybind11::module_& m);
void bind_winograd(pybind11::module_& m);

}  // namespace vapo_fast
