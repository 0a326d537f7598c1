// Hooks for tests of the solver: tableaus, the step controller, and solves of fields given by a formula.
// Arguments are converted and copied; nothing here is fast or for users.
#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "testing/analytic_field.h"
#include "testing/bindings.h"
#include "bindings/solve_results.h"
#include "solver/controller.h"
#include "bindings/interpreter_lock.h"
#include "solver/solve.h"
#include "solver/methods.h"

namespace py = pybind11;

namespace vapo_fast {
namespace {

using Numbers = std::vector<double>;

template <int S>
py::dict describe(const Tableau<S>& tableau) {
    std::vector<Numbers> a, dense;
    for (int i = 1; i < S; ++i) a.emplace_back(tableau.a[i], tableau.a[i] + i);
    for (int i = 0; i < S; ++i) dense.emplace_back(tableau.dense[i], tableau.dense[i] + tableau.dense_terms);
    py::dict fields;
    fields["name"] = tableau.name;
    fields["a"] = a;
    fields["b"] = Numbers(tableau.b, tableau.b + S);
    fields["c"] = Numbers(tableau.c, tableau.c + S);
    fields["error"] = tableau.adaptive ? Numbers(tableau.error, tableau.error + S) : Numbers();
    fields["dense"] = dense;
    fields["order"] = tableau.order;
    fields["error_order"] = tableau.error_order;
    fields["dense_order"] = tableau.dense_order;
    fields["fsal"] = tableau.fsal;
    return fields;
}

template <const auto&... tableaus>
py::list described(TableauList<tableaus...>) {
    py::list all;
    (all.append(describe(tableaus)), ...);
    return all;
}

py::list tableaus() { return described(Methods{}); }

Numbers map(const Numbers& x, double (*function)(double)) {
    Numbers result;
    for (const double value : x) result.push_back(function(value));
    return result;
}

// (factor, remembered ratio, accepted) of one try.
py::tuple step_factor(double ratio, double previous_ratio, bool after_rejection, int error_order,
                      double proportional_share) {
    return py::make_tuple(PiController(error_order, proportional_share).factor(ratio, previous_ratio, after_rejection),
                          PiController::remember(ratio, previous_ratio), PiController::accepts(ratio));
}

// The tries of one sample whose error ratios are given: (size, t, next size, accepted, rejected, status) after each,
// status -1 while it goes on.
py::list control_script(const Numbers& ratios, double t0, double t1, double first_step, int error_order,
                        double proportional_share, std::int64_t max_steps) {
    const Interval interval(t0, t1);
    const PiController controller(error_order, proportional_share);
    Progress progress{t0, std::min(first_step, interval.span), 1.0, false, 0, 0};
    py::list tries;
    for (const double ratio : ratios) {
        const Attempt attempt = next_attempt(progress, interval);
        const Outcome outcome = finish_attempt(progress, attempt, ratio, controller, interval, max_steps);
        tries.append(py::make_tuple(attempt.h, progress.t, progress.h, progress.accepted, progress.rejected,
                                    outcome.ended ? static_cast<int>(outcome.status) : -1));
        if (outcome.ended) break;
    }
    return tries;
}

template <class T>
py::dict solve_formula(const std::string& formula, const py::array_t<T, py::array::c_style>& x0, double t0, double t1,
                       const std::string& method, double rtol, double atol, std::int64_t max_steps, std::int64_t steps,
                       std::optional<double> first_step, double proportional_share, const Numbers& t_eval, int tile,
                       int threads, const std::function<bool(std::int64_t)>& progress) {
    if (x0.ndim() != 2 || x0.shape(1) < 1 || tile < 1) throw std::invalid_argument("x0 must be (n, d) and tile >= 1");
    SolveOptions options;
    options.method = method_from_name(method);
    options.rtol = rtol;
    options.atol = atol;
    options.max_steps = max_steps;
    options.steps = steps;
    options.has_first_step = first_step.has_value();
    options.first_step = first_step.value_or(0.0);
    options.proportional_share = proportional_share;
    options.t_eval = t_eval.data();
    options.n_eval = static_cast<std::int64_t>(t_eval.size());
    SolveResults<T> results(x0.shape(0), x0.shape(1), options.n_eval);
    const SolveArrays<T> arrays = results.arrays(x0.data());
    const AnalyticField<T> field(formula_from_name(formula), static_cast<int>(x0.shape(1)), tile);
    Monitor monitor;
    if (progress) {
        monitor = [&](std::int64_t done) {
            const WithLock gil;
            return progress(done);
        };
    }
    bool finished;
    {
        const WithoutLock release;
        finished = solve(field, t0, t1, options, arrays, threads, monitor);
    }
    py::dict result = results.dict();
    result["finished"] = finished;
    return result;
}

}  // namespace

void bind_solver(py::module_& m) {
    m.def("tableaus", &tableaus, "Every method's coefficients.");
    m.def("log", [](const Numbers& x) { return map(x, portable_log); }, py::arg("x"));
    m.def("exp", [](const Numbers& x) { return map(x, portable_exp); }, py::arg("x"));
    m.def("step_factor", &step_factor, py::arg("ratio"), py::arg("previous_ratio"), py::arg("after_rejection"),
          py::arg("error_order"), py::arg("proportional_share"), "(factor, remembered ratio, accepted) after one try.");
    m.def("trial_step", &control::trial_step, py::arg("state_norm"), py::arg("field_norm"), py::arg("span"));
    m.def("initial_step", &control::initial_step, py::arg("field_norm"), py::arg("change_norm"), py::arg("trial"),
          py::arg("span"), py::arg("error_order"));
    m.def("control", &control_script, py::arg("ratios"), py::arg("t0"), py::arg("t1"), py::arg("first_step"),
          py::arg("error_order"), py::arg("proportional_share"), py::arg("max_steps"),
          "Tries (size, t, next size, accepted, rejected, status) of a sample whose error ratios are given.");
    const auto bind_solve = [&m](auto function) {
        m.def("solve", function, py::arg("field"), py::arg("x0").noconvert(), py::arg("t0"), py::arg("t1"),
              py::kw_only(), py::arg("method") = "dopri5", py::arg("rtol") = 1e-5, py::arg("atol") = 1e-5,
              py::arg("max_steps") = 10'000, py::arg("steps") = 0, py::arg("first_step") = py::none(),
              py::arg("proportional_share") = 0.0, py::arg("t_eval") = Numbers(), py::arg("tile") = 16,
              py::arg("threads") = 1, py::arg("progress") = Monitor(),
              "Integrates a field given by the name of a formula; see analytic_field.h.");
    };
    bind_solve(&solve_formula<float>);
    bind_solve(&solve_formula<double>);
}

}  // namespace vapo_fast
