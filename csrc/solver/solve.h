// Integration of dx/dt = f(x, t) for many samples, each with steps, times and an outcome of its own: the results of
// vapo_fast/ode/solve.py, to the last bit for a field of the same bits.
#pragma once

#include <cstdint>
#include <string>

#include "core/scheduler.h"
#include "solver/field.h"
#include "solver/methods.h"

namespace vapo_fast {

Method method_from_name(const std::string& name);  // std::invalid_argument for another name
bool is_adaptive(Method method);

struct SolveOptions {
    Method method = Method::kDopri5;
    double rtol = 1e-5, atol = 1e-5;  // of an adaptive method
    std::int64_t max_steps = 10'000;  // most tries of an adaptive method per sample
    std::int64_t steps = 0;           // equal steps of a fixed-step method
    bool has_first_step = false;
    double first_step = 0.0;
    double proportional_share = 0.0;  // of the controller of an adaptive method, in [0, 1)
    const double* t_eval = nullptr;   // ordered from t0 to t1
    std::int64_t n_eval = 0;
};

// Where a solve reads and writes, n samples. x may be x0.
template <class T>
struct SolveArrays {
    std::int64_t n;
    const T* x0;                                       // [n][width]
    T* x;                                              // [n][width]
    double* t;                                         // [n]
    std::int64_t *status, *nfe, *accepted, *rejected;  // [n]; status: the numbers of vapo_fast.ode.Status
    T* ys = nullptr;                                   // [n_eval][n][width]: NaN at times that a sample did not reach
};

// Integrates from t0 to t1 on up to `threads` threads, the calling one included. Results do not depend on their number,
// on field.tile(), or on what other samples there are.
//
// Returns false if the monitor stopped it; the arrays then hold the samples that had ended by that time.
// Throws std::invalid_argument for bad options, std::length_error for n >= 2^32, and what the monitor throws.
template <class T>
bool solve(const Field<T>& field, double t0, double t1, const SolveOptions& options, const SolveArrays<T>& arrays,
           int threads, const Monitor& monitor = {});

extern template bool solve<float>(const Field<float>&, double, double, const SolveOptions&, const SolveArrays<float>&,
                                  int, const Monitor&);
extern template bool solve<double>(const Field<double>&, double, double, const SolveOptions&,
                                   const SolveArrays<double>&, int, const Monitor&);

}  // namespace vapo_fast
