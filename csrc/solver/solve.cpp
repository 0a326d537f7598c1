#include "solver/solve.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "solver/methods.h"
#include "solver/worker.h"

namespace vapo_fast {
namespace {

[[noreturn]] void refuse(const std::string& what) { throw std::invalid_argument(what); }

void check(double t0, double t1, const SolveOptions& options) {
    if (!std::isfinite(t0)) refuse("t0 must be finite, got " + std::to_string(t0));
    if (!std::isfinite(t1)) refuse("t1 must be finite, got " + std::to_string(t1));
    if (options.n_eval < 0) refuse("n_eval must be >= 0, got " + std::to_string(options.n_eval));
    for (std::int64_t i = 0; i < options.n_eval; ++i) {
        const double before = i == 0 ? t0 : options.t_eval[i - 1], time = options.t_eval[i];
        const bool ordered = t1 >= t0 ? before <= time && time <= t1 : before >= time && time >= t1;
        if (!ordered)
            refuse("t_eval must be ordered from t0 to t1 and stay between them, got " + std::to_string(time) +
                   " at position " + std::to_string(i));
    }
    if (!is_adaptive(options.method)) {
        if (options.steps < 1) refuse("steps must be >= 1, got " + std::to_string(options.steps));
        return;
    }
    if (options.max_steps < 1) refuse("max_steps must be >= 1, got " + std::to_string(options.max_steps));
    if (!(options.rtol > 0.0) || !std::isfinite(options.rtol))
        refuse("rtol must be positive and finite, got " + std::to_string(options.rtol));
    if (!(options.atol >= 0.0) || !std::isfinite(options.atol))
        refuse("atol must be finite and not negative, got " + std::to_string(options.atol));
    if (options.has_first_step && (!(options.first_step > 0.0) || !std::isfinite(options.first_step)))
        refuse("first_step must be positive and finite, got " + std::to_string(options.first_step));
    if (!(options.proportional_share >= 0.0 && options.proportional_share < 1.0))
        refuse("proportional_share must be at least 0 and below 1, got " + std::to_string(options.proportional_share));
}

template <class T, const auto& tableau>
void solve_with(const Field<T>& field, const Interval& interval, const SolveOptions& options,
                const SolveArrays<T>& arrays, int threads, CallState& state) {
    using OneWorker = Worker<T, tableau>;
    const std::int64_t most = std::min(threads, kMaxThreads), worthwhile = arrays.n / Exchange<OneWorker>::kWorthwhile;
    const int team = static_cast<int>(std::clamp<std::int64_t>(worthwhile, 1, most));
    const int lanes = static_cast<int>(std::min<std::int64_t>(field.tile(), (arrays.n + team - 1) / team));
    SharedSolve<T, OneWorker> shared{
        field, options, arrays, interval, lanes, team, state, SampleRanges(arrays.n, team), Exchange<OneWorker>(team)};
    run_team(team, state, [&](int thread) { OneWorker(shared, thread).run(); });
}

// solve() by one method.
template <class T>
using SolveWith = void (*)(const Field<T>&, const Interval&, const SolveOptions&, const SolveArrays<T>&, int,
                           CallState&);

template <class T, const auto&... tableaus>
SolveWith<T> solver_of(Method method, TableauList<tableaus...>) {
    static constexpr SolveWith<T> solvers[] = {&solve_with<T, tableaus>...};
    return solvers[static_cast<int>(method)];
}

template <const auto&... tableaus>
Method find_method(const std::string& name, TableauList<tableaus...>) {
    constexpr int count = sizeof...(tableaus);
    constexpr const char* names[] = {tableaus.name...};
    std::string known;
    for (int i = 0; i < count; ++i) {
        if (name == names[i]) return static_cast<Method>(i);
        known += (i == 0 ? "" : i + 1 == count ? " or " : ", ") + std::string(names[i]);
    }
    refuse("method must be " + known + ", got '" + name + "'");
}

template <const auto&... tableaus>
bool has_error_estimate(Method method, TableauList<tableaus...>) {
    static constexpr bool adaptive[] = {tableaus.adaptive...};
    return adaptive[static_cast<int>(method)];
}

}  // namespace

Method method_from_name(const std::string& name) { return find_method(name, Methods{}); }

bool is_adaptive(Method method) { return has_error_estimate(method, Methods{}); }

template <class T>
bool solve(const Field<T>& field, double t0, double t1, const SolveOptions& options, const SolveArrays<T>& arrays,
           int threads, const Monitor& monitor) {
    check(t0, t1, options);
    if (arrays.n < 0) refuse("n must be >= 0, got " + std::to_string(arrays.n));
    if (threads < 1) refuse("threads must be >= 1, got " + std::to_string(threads));
    if (arrays.n == 0) return true;
    CallState state(monitor);
    const Interval interval(t0, t1);
    solver_of<T>(options.method, Methods{})(field, interval, options, arrays, threads, state);
    return !state.stopped();
}

template bool solve<float>(const Field<float>&, double, double, const SolveOptions&, const SolveArrays<float>&, int,
                           const Monitor&);
template bool solve<double>(const Field<double>&, double, double, const SolveOptions&, const SolveArrays<double>&, int,
                            const Monitor&);

}  // namespace vapo_fast
