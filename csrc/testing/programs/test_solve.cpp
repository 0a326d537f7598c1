// The solver without Python: closed forms, independence of threads and tile, stopping, and no allocation in its loop.
#include "solver/solve.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "testing/analytic_field.h"
#include "testing/programs/check.h"
#include "testing/programs/counted_new.h"

namespace vapo_fast {
namespace tests {
namespace {

// x' = -rate(sample) x, with every promise of the contract checked on every call.
template <class T>
class CheckedDecay : public Field<T> {
public:
    CheckedDecay(int width, int tile, std::vector<T> rates, int threads = 1)
        : width_(width), tile_(tile), threads_(threads), rates_(std::move(rates)), seen_(rates_.size()) {}
    int dimension() const override { return width_; }
    int width() const override { return width_; }
    int tile() const override { return tile_; }
    std::size_t workspace_size() const override { return 37; }

    void evaluate(const FieldRows<T>& rows, T* workspace) const override {
        evaluations.fetch_add(rows.rows);
        // Each thread may have been stopped with a tile of samples that it has taken and not begun; as long as more
        // than these are left, there is one to take.
        if (begun.load() + threads_ * tile_ < static_cast<std::int64_t>(rates_.size())) {
            early_calls.fetch_add(1);
            early_rows.fetch_add(rows.rows);
        }
        if (rows.rows < 1 || rows.rows > tile_ || rows.sample == nullptr) broken = true;
        if (reinterpret_cast<std::uintptr_t>(workspace) % 64 != 0) broken = true;
        const T mark = static_cast<T>(rows.sample[0]);
        std::fill_n(workspace, 37, mark);  // a second user of this workspace would be seen below
        for (std::int64_t i = 0; i < rows.rows; ++i) {
            const std::int64_t sample = rows.sample[i];
            if (sample < 0 || sample >= static_cast<std::int64_t>(rates_.size())) {
                broken = true;
                continue;
            }
            if (!seen_[static_cast<std::size_t>(sample)].exchange(true)) begun.fetch_add(1);
            const T rate = rates_[static_cast<std::size_t>(sample)];
            for (int j = 0; j < width_; ++j) rows.derivative[i * width_ + j] = -rate * rows.state[i * width_ + j];
        }
        if (!std::all_of(workspace, workspace + 37, [&](T value) { return value == mark; })) broken = true;
    }

    mutable std::atomic<bool> broken{false};
    mutable std::atomic<std::int64_t> evaluations{0}, begun{0}, early_calls{0}, early_rows{0};

private:
    const int width_, tile_, threads_;
    const std::vector<T> rates_;
    mutable std::vector<std::atomic<bool>> seen_;
};

template <class T>
struct Solved {
    Solved(std::int64_t n, int width, std::int64_t outputs)
        : x(static_cast<std::size_t>(n * width)),
          ys(static_cast<std::size_t>(outputs * n * width)),
          t(static_cast<std::size_t>(n)),
          status(t.size()),
          nfe(t.size()),
          accepted(t.size()),
          rejected(t.size()) {}
    SolveArrays<T> arrays(const std::vector<T>& x0) {
        SolveArrays<T> arrays;
        arrays.n = static_cast<std::int64_t>(t.size());
        arrays.x0 = x0.data();
        arrays.x = x.data();
        arrays.t = t.data();
        arrays.status = status.data();
        arrays.nfe = nfe.data();
        arrays.accepted = accepted.data();
        arrays.rejected = rejected.data();
        arrays.ys = ys.data();
        return arrays;
    }
    bool operator==(const Solved& other) const {
        const auto same = [](const auto& a, const auto& b) {
            const std::size_t bytes = a.size() * sizeof(a[0]);
            return a.size() == b.size() && (bytes == 0 || std::memcmp(a.data(), b.data(), bytes) == 0);
        };
        return same(x, other.x) && same(ys, other.ys) && same(t, other.t) && same(status, other.status) &&
               same(nfe, other.nfe) && same(accepted, other.accepted) && same(rejected, other.rejected);
    }
    std::vector<T> x, ys;
    std::vector<double> t;
    std::vector<std::int64_t> status, nfe, accepted, rejected;
};

// One sample in twenty needs ten times the steps of the others.
template <class T>
std::vector<T> uneven_rates(std::int64_t n) {
    std::vector<T> rates;
    for (std::int64_t i = 0; i < n; ++i) rates.push_back(i % 20 == 7 ? T(300) : T(1) + T(i % 13) / T(13));
    return rates;
}

template <class T>
std::vector<T> starts(std::int64_t n, int width) {
    std::vector<T> x0;
    for (std::int64_t i = 0; i < n * width; ++i) x0.push_back(T(1) + T(i % 7) / T(7));
    return x0;
}

template <class T>
void states_agree_with_closed_forms(Method method, double tolerance) {
    const std::int64_t n = 150;
    const int width = 3;
    std::vector<T> rates;
    for (std::int64_t i = 0; i < n; ++i) rates.push_back(T(0.1) + T(i) / T(50));
    const CheckedDecay<T> field(width, 16, rates);
    const std::vector<T> x0 = starts<T>(n, width);
    const double times[] = {0.0, 0.25, 1.0, 1.5};
    SolveOptions options;
    options.method = method;
    options.rtol = options.atol = 1e-5;
    options.steps = 400;
    options.t_eval = times;
    options.n_eval = 4;
    Solved<T> solved(n, width, 4);
    CHECK(solve(field, 0.0, 1.5, options, solved.arrays(x0), 2));
    CHECK(!field.broken);
    std::int64_t evaluations = 0;
    for (const std::int64_t count : solved.nfe) evaluations += count;
    CHECK(evaluations == field.evaluations);
    for (std::int64_t i = 0; i < n * width; ++i) {
        const std::size_t at = static_cast<std::size_t>(i), sample = static_cast<std::size_t>(i / width);
        for (std::size_t k = 0; k < 4; ++k) {
            const double exact = double(x0[at]) * std::exp(-double(rates[sample]) * times[k]);
            CHECK(std::fabs(double(solved.ys[k * x0.size() + at]) - exact) < tolerance);
        }
        CHECK(solved.x[at] == solved.ys[3 * x0.size() + at]);
        CHECK(solved.status[sample] == 0 && solved.t[sample] == 1.5);
    }
}

void states_agree_with_closed_forms_by_every_method() {
    for (const Method method : {Method::kDopri5, Method::kTsit5, Method::kBosh3, Method::kRk4}) {
        states_agree_with_closed_forms<float>(method, 1e-4);
        states_agree_with_closed_forms<double>(method, 5e-5);
    }
    states_agree_with_closed_forms<double>(Method::kHeun, 1e-4);
    states_agree_with_closed_forms<double>(Method::kEuler, 2e-2);
}

template <class T>
void results_do_not_depend_on_threads_or_tile_in() {
    const std::int64_t n = 1013;
    const int width = 2;
    const std::vector<T> x0 = starts<T>(n, width);
    const double times[] = {0.3, 0.9};
    SolveOptions options;
    options.rtol = options.atol = 1e-4;
    options.max_steps = 200;
    options.t_eval = times;
    options.n_eval = 2;
    Solved<T> first(n, width, 2);
    const CheckedDecay<T> whole(width, static_cast<int>(n), uneven_rates<T>(n));
    CHECK(solve(whole, 0.0, 1.0, options, first.arrays(x0), 1));
    CHECK(*std::max_element(first.accepted.begin(), first.accepted.end()) >
          5 * *std::min_element(first.accepted.begin(), first.accepted.end()));
    for (const int threads : {1, 2, 4}) {
        for (const int tile : {1, 7, 16, 64, 512}) {
            for (int repeat = 0; repeat < 3; ++repeat) {
                const CheckedDecay<T> field(width, tile, uneven_rates<T>(n));
                Solved<T> solved(n, width, 2);
                CHECK(solve(field, 0.0, 1.0, options, solved.arrays(x0), threads));
                CHECK(!field.broken);
                CHECK(solved == first);
            }
        }
    }
    std::vector<T> in_place = x0;
    Solved<T> solved(n, width, 2);
    SolveArrays<T> arrays = solved.arrays(in_place);
    arrays.x = in_place.data();
    CHECK(solve(whole, 0.0, 1.0, options, arrays, 2));
    CHECK(in_place == first.x);
}

void results_do_not_depend_on_threads_or_tile() {
    results_do_not_depend_on_threads_or_tile_in<float>();
    results_do_not_depend_on_threads_or_tile_in<double>();
}

// Finished samples make room for waiting ones at once: as long as there are any, tiles are full.
void no_lane_idles_while_samples_wait() {
    for (const int threads : {1, 2, 4}) {
        for (const int tile : {8, 32}) {
            const std::int64_t n = 16000;
            const CheckedDecay<double> field(2, tile, uneven_rates<double>(n), threads);
            const std::vector<double> x0 = starts<double>(n, 2);
            SolveOptions options;
            options.rtol = options.atol = 1e-4;
            Solved<double> solved(n, 2, 0);
            CHECK(solve(field, 0.0, 1.0, options, solved.arrays(x0), threads));
            CHECK(!field.broken && field.begun == n && field.early_calls > 0);
            const double share = double(field.early_rows) / (double(field.early_calls) * tile);
            std::printf("        %d threads, tiles of %d rows: %.1f %% of the lanes at work\n", threads, tile,
                        100.0 * share);
            CHECK(share >= 0.9);
        }
    }
}

void samples_that_fail_end_alone() {
    const std::int64_t n = 200;
    std::vector<double> x0 = starts<double>(n, 2);
    x0[2 * 11] = std::numeric_limits<double>::quiet_NaN();
    const AnalyticField<double> field(Formula::kTroubled, 2, 9);
    SolveOptions options;
    Solved<double> one(n, 2, 0), four(n, 2, 0);
    CHECK(solve(field, 0.0, 2.0, options, one.arrays(x0), 1));
    CHECK(solve(field, 0.0, 2.0, options, four.arrays(x0), 4));
    CHECK(one == four);
    for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) {
        CHECK((one.status[i] == 0) == (i % 5 == 0 && i != 11));
        CHECK(i == 11 || (std::isfinite(one.x[2 * i]) && std::isfinite(one.x[2 * i + 1])));
    }
    CHECK(one.status[11] == 3 && one.nfe[11] == 0);
}

// The number of allocations of a call depends on its threads alone, not on its samples or steps.
void the_loop_allocates_nothing() {
    const auto count = [](std::int64_t n, double tolerance, int threads) {
        const CheckedDecay<float> field(2, 16, uneven_rates<float>(n));
        const std::vector<float> x0 = starts<float>(n, 2);
        const double times[] = {0.1, 0.9};
        SolveOptions options;
        options.rtol = options.atol = tolerance;
        options.t_eval = times;
        options.n_eval = 2;
        Solved<float> solved(n, 2, 2);
        const SolveArrays<float> arrays = solved.arrays(x0);
        const std::int64_t before = allocations();
        CHECK(solve(field, 0.0, 1.0, options, arrays, threads));
        return allocations() - before;
    };
    const std::int64_t base = count(100, 1e-3, 1);
    CHECK(base > 0);
    CHECK(count(3000, 1e-3, 1) == base && count(3000, 1e-6, 1) == base);
    count(3000, 1e-3, 3);  // starts the pool's threads
    // A helper that wakes too late allocates nothing, so a bound is all there is.
    CHECK(count(20000, 1e-5, 3) <= 3 * base);
}

void a_monitor_stops_a_solve() {
    for (const int threads : {1, 2, 4}) {
        const CheckedDecay<double> field(2, 16, std::vector<double>(512, 50.0));
        const std::vector<double> x0 = starts<double>(512, 2);
        SolveOptions options;
        options.max_steps = std::numeric_limits<std::int64_t>::max();
        Solved<double> solved(512, 2, 0);
        int calls = 0;
        const auto start = std::chrono::steady_clock::now();
        CHECK(!solve(field, 0.0, 1e12, options, solved.arrays(x0), threads,
                     [&](std::int64_t done) { return done != 0 || ++calls < 2; }));
        CHECK(calls == 2);
        bool thrown = false;
        try {
            solve(field, 0.0, 1e12, options, solved.arrays(x0), threads,
                  [](std::int64_t) -> bool { throw std::out_of_range("monitor"); });
        } catch (const std::out_of_range&) {
            thrown = true;
        }
        CHECK(thrown);
        CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
    }
}

void solves_from_several_threads_at_once() {
    const std::int64_t n = 400;
    const CheckedDecay<double> field(2, 16, uneven_rates<double>(n));
    const std::vector<double> x0 = starts<double>(n, 2);
    const SolveOptions options;
    Solved<double> first(n, 2, 0);
    CHECK(solve(field, 0.0, 1.0, options, first.arrays(x0), 1));
    std::vector<Solved<double>> results(4, Solved<double>(n, 2, 0));
    std::vector<std::thread> callers;
    for (Solved<double>& result : results)
        callers.emplace_back([&] { solve(field, 0.0, 1.0, options, result.arrays(x0), 3); });
    for (std::thread& caller : callers) caller.join();
    for (const Solved<double>& result : results) CHECK(result == first);
    CHECK(!field.broken);
}

void nothing_to_do_is_done() {
    const CheckedDecay<float> field(2, 16, {});
    const std::vector<float> x0;
    Solved<float> solved(0, 2, 0);
    CHECK(solve(field, 0.0, 1.0, SolveOptions{}, solved.arrays(x0), 4));
    CHECK(field.evaluations == 0);
}

}  // namespace
}  // namespace tests
}  // namespace vapo_fast

int main() {
    using namespace vapo_fast::tests;
    const Test tests[] = {
        {"states agree with closed forms by every method", states_agree_with_closed_forms_by_every_method},
        {"results do not depend on threads or tile", results_do_not_depend_on_threads_or_tile},
        {"no lane idles while samples wait", no_lane_idles_while_samples_wait},
        {"samples that fail end alone", samples_that_fail_end_alone},
        {"the loop allocates nothing", the_loop_allocates_nothing},
        {"a monitor stops a solve", a_monitor_stops_a_solve},
        {"solves from several threads at once", solves_from_several_threads_at_once},
        {"nothing to do is done", nothing_to_do_is_done},
    };
    return run_all(tests);
}
