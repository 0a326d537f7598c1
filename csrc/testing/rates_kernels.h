// The loops behind rates.h for one instruction set; see isa_begin.h for how it is included.
#pragma once

#include "mlp/sweeps.h"

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
template <class T>
void multiply_adds(std::int64_t turns, T* workspace) {
    using V = Vec<T>;
    const V a = V::broadcast(T(0.999)), b = V::broadcast(T(0.001));
    V chain[multiply_add_chains];
    VAPO_FAST_UNROLL
    for (int i = 0; i < multiply_add_chains; ++i) chain[i] = V::broadcast(T(i));
    for (std::int64_t k = 0; k < turns * multiply_adds_a_turn; ++k) {
        VAPO_FAST_UNROLL
        for (int i = 0; i < multiply_add_chains; ++i) chain[i] = fma(chain[i], a, b);
    }
    VAPO_FAST_UNROLL
    for (int i = 0; i < multiply_add_chains; ++i) chain[i].store(workspace + i * V::lanes);
}

// The workspace holds a tile for the rows that go in and one for those that come out.
template <class T>
void repeat_product(const PackedMlp<T>& mlp, std::int64_t turns, T* workspace) {
    const int in = mlp.stride(mlp.shape().size(0)), out = mlp.stride(mlp.shape().size(1));
    T* y = workspace + std::int64_t{tile_rows} * in;
    for (std::int64_t i = 0; i < turns; ++i)
        product(Product<T>{workspace, in, mlp.forward(0), y, out, nullptr, false, nullptr}, tile_rows);
}

template <class T>
void repeat_activation(const PackedMlp<T>& mlp, std::int64_t turns, T* workspace) {
    const MlpShape& shape = mlp.shape();
    const int stride = mlp.stride(shape.size(1));
    T* value = workspace + std::int64_t{tile_rows} * stride;
    // What was z is its derivative afterwards, and the next turn's z; the time does not depend on it.
    for (std::int64_t i = 0; i < turns; ++i)
        activate(shape.activation, tile_rows, shape.size(1), stride, workspace, value, stride, static_cast<T*>(nullptr));
}

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
