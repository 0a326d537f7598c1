// What each instruction set's build of the kernels offers, as plain functions.
#pragma once

#include <cstddef>
#include <cstdint>

#include "solver/field.h"
#include "simd/instruction_set.h"
#include "mlp/mlp.h"

namespace vapo_fast {

// How the trace of the Hessian of Phi is taken along with its gradient.
template <class T>
struct Trace {
    int directions = 0;         // 0: none
    const T* probes = nullptr;  // null: one direction for each coordinate, summed; else [samples][directions][D]

    int integrals() const { return probes != nullptr ? directions : (directions != 0 ? 1 : 0); }
};

// One slice of a training batch: `rows` points of the path, and what their loss terms need.
template <class T>
struct LossRows {
    std::int64_t rows;
    const T* x_data;  // [rows][D]
    const T* t;       // [rows]
    const T* noise;   // [rows][D]
    const T* weight;  // [rows], or null: 1/beta^2 if inverse_variance, else 1
    bool inverse_variance;
    bool covariance;  // the covariance estimator; else velocity
    T scale;          // 1/batch
};

// Sums over rows already seen, to which a slice is added.
template <class T>
struct LossSums {
    double linear = 0.0;
    double quadratic = 0.0;
    T* gradient = nullptr;  // see MlpGradient
};

// Where a layer's gradients lie in one padded array: weights [size(l+1)][stride(size(l))], bias and output padded.
template <class T>
struct MlpGradient {
    explicit MlpGradient(const PackedMlp<T>& mlp);
    std::vector<std::size_t> weight, bias;  // offsets
    std::vector<int> stride;                // of each weight's rows
    std::size_t output = 0;
    std::size_t size = 0;
};

template <class T>
struct Kernels {
    int lanes;
    int tile;  // most rows of one call of the functions below
    std::size_t (*field_workspace)(const PackedMlp<T>&, const Trace<T>&);
    void (*field)(const PackedMlp<T>&, const Trace<T>&, const FieldRows<T>&, T* workspace);
    std::size_t (*loss_workspace)(const PackedMlp<T>&);
    void (*loss)(const PackedMlp<T>&, const MlpGradient<T>&, const LossRows<T>&, LossSums<T>&, T* workspace);
    // For rates.h.
    int multiply_add_chains, multiply_adds_a_turn;
    void (*multiply_adds)(std::int64_t turns, T* workspace);
    void (*repeat_product)(const PackedMlp<T>&, std::int64_t turns, T* workspace);
    void (*repeat_activation)(const PackedMlp<T>&, std::int64_t turns, T* workspace);
};

// The kernels built for an instruction set; it must be one of usable_instruction_sets().
template <class T>
const Kernels<T>& kernels(InstructionSet instruction_set);

}  // namespace vapo_fast
