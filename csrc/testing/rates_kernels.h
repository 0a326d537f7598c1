// The loops behind rates.h for one instruction set; see isa_begin.h for how it is included.
#pragma once

#include "mlp/sweeps.h"
#include "testing/rates_table.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

// More than the latency of a multiply-add times how many may start in a cycle, and no more than there are registers.
#if defined(VAPO_FAST_ISA_AVX512)
constexpr int multiply_add_chains = 16;
#else
constexpr int multiply_add_chains = 12;
#endif
constexpr int multiply_adds_a_turn = 1000;

// Writes the chains' ends, so that they have to be computed; they tend to 1.
void multiply_adds(std::int64_t turns, float* workspace) {
    using V = Vec<float>;
    const V a = V::broadcast(0.999f), b = V::broadcast(0.001f);
    V chain[multiply_add_chains];
    VAPO_FAST_UNROLL
    for (int i = 0; i < multiply_add_chains; ++i) chain[i] = V::broadcast(static_cast<float>(i));
    for (std::int64_t k = 0; k < turns * multiply_adds_a_turn; ++k) {
        VAPO_FAST_UNROLL
        for (int i = 0; i < multiply_add_chains; ++i) chain[i] = fma(chain[i], a, b);
    }
    VAPO_FAST_UNROLL
    for (int i = 0; i < multiply_add_chains; ++i) chain[i].store(workspace + i * V::lanes);
}

// The workspace holds a tile for the rows that go in and one for those that come out.
void repeat_product(const PackedMlp<float>& mlp, std::int64_t turns, float* workspace) {
    const int in = mlp.stride(mlp.shape().size(0)), out = mlp.stride(mlp.shape().size(1));
    float* y = workspace + std::int64_t{tile_rows} * in;
    for (std::int64_t i = 0; i < turns; ++i)
        product(Product<float>{{workspace, in}, mlp.forward(0), {y, out}}, tile_rows);
}

void repeat_activation(const PackedMlp<float>& mlp, std::int64_t turns, float* workspace) {
    const MlpShape& shape = mlp.shape();
    const int stride = mlp.stride(shape.size(1));
    float* value = workspace + std::int64_t{tile_rows} * stride;
    // What was z is its derivative afterwards, and the next turn's z; the time does not depend on it.
    for (std::int64_t i = 0; i < turns; ++i)
        activate(shape.activation, tile_rows, shape.size(1), stride, workspace, value, stride,
                 static_cast<float*>(nullptr));
}

template <>
struct Fill<RateTable> {
    static constexpr RateTable table() {
        RateTable kernels{};
        kernels.multiply_add_chains = multiply_add_chains;
        kernels.multiply_adds_a_turn = multiply_adds_a_turn;
        kernels.multiply_adds = &multiply_adds;
        kernels.repeat_product = &repeat_product;
        kernels.repeat_activation = &repeat_activation;
        return kernels;
    }
};

template const RateTable& table();

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
