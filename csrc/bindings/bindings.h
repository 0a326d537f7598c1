// The parts of the Python module vapo_fast._native; each adds its functions to it.
#pragma once

#include <pybind11/pybind11.h>

namespace vapo_fast {

void bind_draws(pybind11::module_& m);
void bind_graph(pybind11::module_& m);
void bind_mlp(pybind11::module_& m);
void bind_pointwise(pybind11::module_& m);
void bind_winograd(pybind11::module_& m);

}  // namespace vapo_fast
