// The Python module vapo_fast._native_testing: what tests and benchmarks call, and no wheel holds; setup.py says when
// it is built.
#include <pybind11/pybind11.h>

#include "testing/bindings.h"

PYBIND11_MODULE(_native_testing, m) {
    m.doc() = "Hooks of vapo_fast's own tests and benchmarks; not for users.";
    vapo_fast::bind_elementwise(m);
    vapo_fast::bind_solver(m);
    vapo_fast::bind_rates(m);
}
