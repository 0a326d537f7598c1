// The engine's own field in the solver, batches of it, and the loss, without Python: no allocation in the solver's
// loop, and results that depend neither on threads nor on who else calls. Built with the baseline's kernels alone.
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <thread>
#include <vector>

#include "mlp/mlp_field.h"
#include "solver/solve.h"
#include "testing/programs/check.h"
#include "testing/programs/counted_new.h"

namespace vapo_fast {
namespace tests {
namespace {

constexpr InstructionSet kSet = InstructionSet::baseline;
constexpr int kDimension = 3, kProbes = 2;

template <class T>
std::vector<T> numbers(std::int64_t n, double scale, unsigned seed) {
    std::vector<T> values;
    unsigned state = 2463534242u + seed;
    for (std::int64_t i = 0; i < n; ++i) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        values.push_back(static_cast<T>(scale * (static_cast<double>(state) / 2147483648.0 - 1.0)));
    }
    return values;
}

MlpShape shape() {
    MlpShape shape;
    shape.dimension = kDimension;
    shape.features = 2;
    shape.widths = {16, 20};
    shape.log_beta_last = -4.0;
    return shape;
}

template <class T>
std::shared_ptr<const PackedMlp<T>> network() {
    const MlpShape of = shape();
    std::vector<std::vector<T>> held;
    MlpWeights<T> weights;
    const auto draw = [&](std::int64_t n, double scale) {
        held.push_back(numbers<T>(n, scale, static_cast<unsigned>(held.size())));
        return held.back().data();
    };
    for (int l = 0; l < of.layers(); ++l) {
        weights.weight.push_back(draw(std::int64_t{of.size(l)} * of.size(l + 1), 0.7));
        weights.bias.push_back(draw(of.size(l + 1), 0.5));
    }
    weights.output = draw(of.size(of.layers()), 1.0);
    weights.frequencies = draw(std::int64_t{of.features} * of.inputs(), 0.3);
    return std::make_shared<const PackedMlp<T>>(of, weights, table_for<Kernels<T>>(kSet).lanes);
}

// How the solver is given the network: without the Laplacian, with the exact one, or with estimates of it.
template <class T>
struct Traces {
    explicit Traces(std::int64_t n) : probes(numbers<T>(n * kProbes * kDimension, 1.0, 7)) {
        fields.push_back(std::make_unique<MlpField<T>>(network<T>(), kSet, Trace<T>{}));
        fields.push_back(std::make_unique<MlpField<T>>(network<T>(), kSet, Trace<T>{kDimension, nullptr}));
        fields.push_back(std::make_unique<MlpField<T>>(network<T>(), kSet, Trace<T>{kProbes, probes.data()}));
    }
    std::vector<T> probes;
    std::vector<std::unique_ptr<MlpField<T>>> fields;
};

template <class T>
struct Solved {
    Solved(std::int64_t n, int width)
        : x0(numbers<T>(n * width, 1.0, 3)), x(x0.size()), t(static_cast<std::size_t>(n)), counts(4 * t.size()) {}
    SolveArrays<T> arrays() {
        const std::size_t n = t.size();
        SolveArrays<T> arrays;
        arrays.n = static_cast<std::int64_t>(n);
        arrays.x0 = x0.data();
        arrays.x = x.data();
        arrays.t = t.data();
        arrays.status = counts.data();
        arrays.nfe = counts.data() + n;
        arrays.accepted = counts.data() + 2 * n;
        arrays.rejected = counts.data() + 3 * n;
        return arrays;
    }
    bool operator==(const Solved& other) const {
        return x.size() == other.x.size() && std::memcmp(x.data(), other.x.data(), x.size() * sizeof(T)) == 0 &&
               t == other.t && counts == other.counts;
    }
    std::vector<T> x0, x;
    std::vector<double> t;
    std::vector<std::int64_t> counts;  // status, nfe, accepted, rejected
};

// The number of allocations of a solve depends on its threads alone, not on its samples or steps.
void the_loop_allocates_nothing_with_a_network() {
    const auto count = [](std::size_t kind, std::int64_t n, double tolerance, int threads) {
        const Traces<float> traces(n);
        const MlpField<float>& field = *traces.fields[kind];
        SolveOptions options;
        options.rtol = options.atol = tolerance;
        Solved<float> solved(n, field.width());
        const SolveArrays<float> arrays = solved.arrays();
        const std::int64_t before = allocations();
        CHECK(solve<float>(field, 0.0, 4.0, options, arrays, threads));
        const std::int64_t after = allocations();
        for (std::size_t i = 0; i < static_cast<std::size_t>(n); ++i) CHECK(solved.counts[i] == 0);
        return after - before;
    };
    for (std::size_t kind = 0; kind < 3; ++kind) {
        const std::int64_t base = count(kind, 40, 1e-3, 1);
        CHECK(base > 0);
        CHECK(count(kind, 500, 1e-3, 1) == base && count(kind, 300, 1e-5, 1) == base);
        count(kind, 300, 1e-3, 3);  // starts the pool's threads
        // A helper that wakes too late allocates nothing, so a bound is all there is.
        CHECK(count(kind, 1000, 1e-4, 3) <= 3 * base);
    }
}

template <class T>
void solves_do_not_depend_on_threads_with(std::int64_t n) {
    const Traces<T> traces(n);
    for (const auto& field : traces.fields) {
        const SolveOptions options;
        Solved<T> one(n, field->width());
        CHECK(solve<T>(*field, 0.0, 4.0, options, one.arrays(), 1));
        for (const int threads : {2, 4}) {
            Solved<T> several(n, field->width());
            CHECK(solve<T>(*field, 0.0, 4.0, options, several.arrays(), threads));
            CHECK(several == one);
        }
    }
}

void solves_do_not_depend_on_threads() {
    solves_do_not_depend_on_threads_with<float>(150);
    solves_do_not_depend_on_threads_with<double>(90);
}

template <class T>
struct FieldBatch {
    explicit FieldBatch(std::int64_t n)
        : x(numbers<T>(n * kDimension, 2.0, 11)),
          t(numbers<T>(n, 1.0, 12)),
          derivative(x.size(), T(-1)),
          value(static_cast<std::size_t>(n), T(-1)) {
        for (T& time : t) time = T(2) + time;
    }
    FieldRows<T> rows() {
        FieldRows<T> rows;
        rows.rows = static_cast<std::int64_t>(t.size());
        rows.state = x.data();
        rows.t = t.data();
        rows.derivative = derivative.data();
        rows.value = value.data();
        return rows;
    }
    std::vector<T> x, t, derivative, value;
};

void fields_of_batches_do_not_depend_on_threads() {
    const std::int64_t n = 999;
    const MlpField<float> field(network<float>(), kSet, Trace<float>{});
    FieldBatch<float> one(n);
    CHECK(evaluate_batch<float>(field, one.rows(), 1));
    for (const int threads : {2, 3, 8}) {
        FieldBatch<float> several(n);
        CHECK(evaluate_batch<float>(field, several.rows(), threads));
        CHECK(several.derivative == one.derivative && several.value == one.value);
    }
}

// A training batch, and where its gradients go.
template <class T>
struct Training {
    explicit Training(std::int64_t n)
        : x_data(numbers<T>(n * kDimension, 1.0, 21)),
          t(numbers<T>(n, 1.0, 22)),
          noise(numbers<T>(n * kDimension, 2.0, 23)) {
        for (T& time : t) time = T(2) + time;
        const MlpShape of = shape();
        for (int l = 0; l < of.layers(); ++l) {
            weight.emplace_back(static_cast<std::size_t>(of.size(l) * of.size(l + 1)), T(-7));
            bias.emplace_back(static_cast<std::size_t>(of.size(l + 1)), T(-7));
        }
        output.assign(static_cast<std::size_t>(of.size(of.layers())), T(-7));
        for (auto& values : weight) result.weight.push_back(values.data());
        for (auto& values : bias) result.bias.push_back(values.data());
        result.output = output.data();
    }
    bool run(int threads, LossMemory<T>& memory, const Monitor& monitor = {}) {
        LossBatch<T> batch{};
        batch.rows = static_cast<std::int64_t>(t.size());
        batch.x_data = x_data.data();
        batch.t = t.data();
        batch.noise = noise.data();
        batch.inverse_variance = true;
        return loss_and_gradient<T>(*mlp, kSet, batch, result, threads, memory, monitor);
    }
    bool operator==(const Training& other) const {
        return weight == other.weight && bias == other.bias && output == other.output &&
               result.linear == other.result.linear && result.quadratic == other.result.quadratic;
    }
    std::shared_ptr<const PackedMlp<T>> mlp = network<T>();
    std::vector<T> x_data, t, noise, output;
    std::vector<std::vector<T>> weight, bias;
    LossResult<T> result;
};

template <class T>
void losses_do_not_depend_on_threads_or_memory_in() {
    Training<T> one(700);
    LossMemory<T> memory;
    CHECK(one.run(1, memory));
    CHECK(one.result.quadratic > 0.0);
    for (const auto& values : one.weight) {
        for (const T value : values) CHECK(value != T(-7));
    }
    for (const int threads : {1, 2, 4}) {
        for (int repeat = 0; repeat < 3; ++repeat) {  // the memory holds what the last one left
            Training<T> several(700);
            CHECK(several.run(threads, memory));
            CHECK(several == one);
        }
    }
}

void losses_do_not_depend_on_threads_or_memory() {
    losses_do_not_depend_on_threads_or_memory_in<float>();
    losses_do_not_depend_on_threads_or_memory_in<double>();
}

void several_callers_at_once() {
    const MlpField<float> field(network<float>(), kSet, Trace<float>{});
    FieldBatch<float> field_alone(400);
    Training<float> loss_alone(300);
    Solved<float> solve_alone(60, kDimension);
    const SolveOptions options;
    LossMemory<float> memory;
    CHECK(evaluate_batch<float>(field, field_alone.rows(), 1) && loss_alone.run(1, memory));
    CHECK(solve<float>(field, 0.0, 4.0, options, solve_alone.arrays(), 1));
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int c = 0; c < 4; ++c) {
        callers.emplace_back([&] {
            LossMemory<float> own;
            for (int repeat = 0; repeat < 5; ++repeat) {
                FieldBatch<float> fields(400);
                Training<float> loss(300);
                Solved<float> solved(60, kDimension);
                if (!evaluate_batch<float>(field, fields.rows(), 3) || fields.derivative != field_alone.derivative)
                    ++wrong;
                if (!loss.run(3, own) || !(loss == loss_alone)) ++wrong;
                if (!solve<float>(field, 0.0, 4.0, options, solved.arrays(), 3) || !(solved == solve_alone)) ++wrong;
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(wrong == 0);
}

void a_monitor_stops_a_field_and_a_loss() {
    const auto stop = [](std::int64_t) { return false; };
    const auto fail = [](std::int64_t) -> bool { throw std::out_of_range("monitor"); };
    const std::int64_t rows = 1'000'000;
    const MlpField<float> field(network<float>(), kSet, Trace<float>{});
    FieldBatch<float> fields(rows);
    Training<float> loss(rows);
    LossMemory<float> memory;
    for (const int threads : {1, 3}) {
        const auto start = std::chrono::steady_clock::now();
        CHECK(!evaluate_batch<float>(field, fields.rows(), threads, stop));
        CHECK(!loss.run(threads, memory, stop));
        int thrown = 0;
        for (int kind = 0; kind < 2; ++kind) {
            try {
                if (kind == 0) {
                    evaluate_batch<float>(field, fields.rows(), threads, fail);
                } else {
                    loss.run(threads, memory, fail);
                }
            } catch (const std::out_of_range&) {
                ++thrown;
            }
        }
        CHECK(thrown == 2);
        CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(20));
    }
    // What is stopped leaves nothing behind that the next would see.
    Training<float> after(300), alone(300);
    LossMemory<float> fresh;
    CHECK(after.run(3, memory) && alone.run(1, fresh) && after == alone);
}

}  // namespace
}  // namespace tests
}  // namespace vapo_fast

int main() {
    using namespace vapo_fast::tests;
    const Test tests[] = {
        {"the loop allocates nothing with a network", the_loop_allocates_nothing_with_a_network},
        {"solves do not depend on threads", solves_do_not_depend_on_threads},
        {"fields of batches do not depend on threads", fields_of_batches_do_not_depend_on_threads},
        {"losses do not depend on threads or memory", losses_do_not_depend_on_threads_or_memory},
        {"several callers at once", several_callers_at_once},
        {"a monitor stops a field and a loss", a_monitor_stops_a_field_and_a_loss},
    };
    return run_all(tests);
}
