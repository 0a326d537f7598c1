// The loops behind rates.h, one table for each instruction set; all in float32.
#pragma once

#include "mlp/mlp.h"
#include "simd/dispatch.h"

namespace vapo_fast {

struct RateTable {
    int multiply_add_chains, multiply_adds_a_turn;
    void (*multiply_adds)(std::int64_t turns, float* workspace);
    void (*repeat_product)(const PackedMlp<float>&, std::int64_t turns, float* workspace);
    void (*repeat_activation)(const PackedMlp<float>&, std::int64_t turns, float* workspace);
};

}  // namespace vapo_fast
