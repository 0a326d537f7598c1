// Single kernels in float32, run repeatedly: benchmarks compare a whole engine with them.
//
// Each function runs its kernel `turns` times on several threads. A thread works on a tile of its own, which stays in
// the cache. The function returns the amount of work; the caller measures the time. The instruction set must be usable
// here.
#pragma once

#include <cstdint>

#include "simd/instruction_set.h"
#include "mlp/mlp.h"

namespace vapo_fast {

// Multiply-adds whose operands are in registers; a turn is 1 000 of them in each of several independent chains, as many
// as hide the latency. Returns operations: two for each number of each multiply-add.
double repeat_multiply_adds(InstructionSet instruction_set, std::int64_t turns, int threads);

// A tile of rows times a packed matrix [inner][columns]. Returns operations.
double repeat_product(InstructionSet instruction_set, int inner, int columns, std::int64_t turns, int threads);

// An activation and its derivative for each entry of a tile [rows][columns]. Returns entries.
double repeat_activation(InstructionSet instruction_set, Activation activation, int columns, std::int64_t turns,
                         int threads);

// Phi and grad Phi of a tile of rows, by a network with made-up weights. Returns rows.
double repeat_field(InstructionSet instruction_set, const MlpShape& shape, std::int64_t turns, int threads);

}  // namespace vapo_fast
