// Minimal filtering without Python: against the definition, with tiles that reach out of the image and odd channel
// counts, from many threads, and in memory that others have used. Built with the baseline's kernels alone.
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <thread>
#include <vector>

#include "image/winograd.h"
#include "testing/programs/check.h"

namespace vapo_fast {
namespace tests {
namespace {

std::vector<float> numbers(std::int64_t n, unsigned seed) {
    std::vector<float> values;
    unsigned state = 2463534242u + seed;
    for (std::int64_t i = 0; i < n; ++i) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        values.push_back(static_cast<float>(static_cast<double>(state) / 2147483648.0 - 1.0));
    }
    return values;
}

struct Case {
    ImageShape shape;
    int inputs, outputs, tile;
    bool transposed;

    std::vector<float> weight() const { return numbers(std::int64_t{9} * inputs * outputs, 1); }
    std::vector<float> x() const {
        return numbers(shape.rows * shape.height * shape.width * (transposed ? outputs : inputs), 2);
    }
    std::int64_t result_size() const {
        return shape.rows * shape.height * shape.width * (transposed ? inputs : outputs);
    }
    std::vector<float> run(int threads) const {
        const WinogradConvolution convolution(weight().data(), outputs, inputs, transposed, tile,
                                              InstructionSet::baseline, threads);
        std::vector<float> y(static_cast<std::size_t>(result_size()), std::numeric_limits<float>::quiet_NaN());
        convolution.apply(x().data(), y.data(), shape, threads);
        return y;
    }
};

const Case kCases[] = {
    {{1, 1, 1}, 1, 1, 2, false},  {{2, 5, 3}, 3, 7, 4, false},  {{3, 7, 7}, 13, 9, 4, true},
    {{2, 4, 8}, 16, 20, 2, true}, {{70, 2, 3}, 5, 4, 4, false}, {{1, 14, 9}, 33, 18, 2, false},
};

double at(const Case& c, const std::vector<float>& weight, int output, int row, int column, int input) {
    return weight[static_cast<std::size_t>(((output * 3 + row) * 3 + column) * c.inputs + input)];
}

void every_output_is_the_definitions() {
    for (const Case& c : kCases) {
        const std::vector<float> weight = c.weight(), x = c.x(), y = c.run(2);
        const int from = c.transposed ? c.outputs : c.inputs, to = c.transposed ? c.inputs : c.outputs;
        const auto [rows, height, width] = c.shape;
        std::size_t i = 0;
        for (std::int64_t n = 0; n < rows; ++n)
            for (std::int64_t v = 0; v < height; ++v)
                for (std::int64_t u = 0; u < width; ++u)
                    for (int k = 0; k < to; ++k, ++i) {
                        double exact = 0.0;
                        for (int r = 0; r < 3; ++r)
                            for (int s = 0; s < 3; ++s) {
                                const std::int64_t p = v + r - 1, q = u + s - 1;
                                if (p < 0 || p >= height || q < 0 || q >= width) continue;
                                const float* pixel = x.data() + ((n * height + p) * width + q) * from;
                                for (int j = 0; j < from; ++j)
                                    exact += pixel[j] * (c.transposed ? at(c, weight, j, 2 - r, 2 - s, k)
                                                                      : at(c, weight, k, r, s, j));
                            }
                        CHECK(std::abs(y[i] - exact) < 1e-5 * std::sqrt(9.0 * from));
                    }
    }
}

void results_do_not_depend_on_threads_or_memory() {
    for (const Case& c : kCases) {
        const std::vector<float> one = c.run(1);
        for (const int threads : {1, 2, 3, 8}) {
            const std::vector<float> several = c.run(threads);  // the memory holds what other cases left
            CHECK(std::memcmp(one.data(), several.data(), one.size() * sizeof(float)) == 0);
        }
    }
}

void several_callers_of_one() {
    const Case& c = kCases[4];
    const std::vector<float> alone = c.run(1), x = c.x();
    const WinogradConvolution convolution(c.weight().data(), c.outputs, c.inputs, c.transposed, c.tile,
                                          InstructionSet::baseline, 2);
    std::atomic<int> wrong{0};
    std::vector<std::thread> callers;
    for (int caller = 0; caller < 4; ++caller) {
        callers.emplace_back([&] {
            for (int repeat = 0; repeat < 20; ++repeat) {
                std::vector<float> y(alone.size());
                convolution.apply(x.data(), y.data(), c.shape, 3);
                if (y != alone || !convolution.holds(c.weight().data())) ++wrong;
            }
        });
    }
    for (std::thread& caller : callers) caller.join();
    CHECK(wrong == 0);
}

void weights_are_known_by_their_bytes() {
    const Case& c = kCases[1];
    std::vector<float> weight = c.weight();
    weight[5] = std::numeric_limits<float>::quiet_NaN();
    weight[6] = 0.0f;
    const WinogradConvolution convolution(weight.data(), c.outputs, c.inputs, false, 2, InstructionSet::baseline, 1);
    CHECK(convolution.holds(weight.data()));
    weight[6] = -0.0f;
    CHECK(!convolution.holds(weight.data()));
    weight[6] = 0.0f;
    weight.back() += 1.0f;
    CHECK(!convolution.holds(weight.data()));
}

}  // namespace
}  // namespace tests
}  // namespace vapo_fast

int main() {
    using namespace vapo_fast::tests;
    const Test tests[] = {
        {"every output is the definition's", every_output_is_the_definitions},
        {"results do not depend on threads or memory", results_do_not_depend_on_threads_or_memory},
        {"several callers of one", several_callers_of_one},
        {"weights are known by their bytes", weights_are_known_by_their_bytes},
    };
    return run_all(tests);
}
