// The kernels of an MLP potential as plain functions, one table for each instruction set.
#pragma once

#include <cstddef>
#include <cstdint>

#include "solver/field.h"
#include "simd/dispatch.h"
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

template <class T>
struct Kernels {
    int lanes;
    int tile;  // most rows of one call of the functions below
    std::size_t (*field_workspace)(const PackedMlp<T>&, const Trace<T>&);
    void (*field)(const PackedMlp<T>&, const Trace<T>&, const FieldRows<T>&, T* workspace);
    std::size_t (*loss_workspace)(const PackedMlp<T>&);
    void (*loss)(const PackedMlp<T>&, const MlpGradient<T>&, const LossRows<T>&, LossSums<T>&, T* workspace);
};

}  // namespace vapo_fast
