// Phi, grad Phi and the trace of the Hessian of Phi on one tile of rows.
//
// The trace needs no second reverse sweep: with J_l = dz_l/dz of the input, v . Hess(f) v = sum over layers and units
// of df/dsigma(z) sigma''(z) (J_l v)^2, so that one forward tangent for each direction v is enough.
#pragma once

#include "mlp/sweeps.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

template <class T>
struct FieldWork {
    Sweep<T> sweep;
    PathRows<T>* path;
    T* adjoint[2];  // df/dz of two successive layers, or tangents
    T* tangent_input = nullptr;
    std::size_t size;

    FieldWork(const PackedMlp<T>& mlp, const Trace<T>& trace, T* workspace) {
        const MlpShape& shape = mlp.shape();
        Carver<T> carver(workspace);
        path = reinterpret_cast<PathRows<T>*>(carver.take(sizeof(PathRows<T>) / sizeof(T)));
        sweep.input_stride = mlp.stride(shape.first_size());
        sweep.input = carver.take(std::int64_t{tile_rows} * sweep.input_stride);
        sweep.adjoint_stride = sweep.input_stride;
        sweep.input_adjoint = carver.take(std::int64_t{tile_rows} * sweep.adjoint_stride);
        sweep.features.carve(mlp, carver);
        int widest = 0;
        for (int width : shape.widths) widest = width > widest ? width : widest;
        T* buffers[2];
        for (T*& buffer : buffers) buffer = carver.take(std::int64_t{tile_rows} * mlp.stride(widest));
        for (int l = 0; l < shape.layers(); ++l) {
            const int stride = mlp.stride(shape.size(l + 1));
            sweep.stride[l] = stride;
            sweep.value[l] = buffers[l % 2];
            sweep.first[l] = carver.take(std::int64_t{tile_rows} * stride);
            sweep.second[l] = trace.directions != 0 ? carver.take(std::int64_t{tile_rows} * stride) : nullptr;
            sweep.above[l] = nullptr;
        }
        // The adjoint sweep needs the values no more, so it reuses their memory.
        adjoint[0] = buffers[0];
        adjoint[1] = buffers[1];
        if (trace.directions != 0) tangent_input = carver.take(std::int64_t{tile_rows} * sweep.input_stride);
        size = carver.used();
    }
};

template <class T>
inline std::size_t field_workspace(const PackedMlp<T>& mlp, const Trace<T>& trace) {
    return FieldWork<T>(mlp, trace, nullptr).size;
}

// From sigma' and, for the trace, sigma'': df/dz of layer 0 in the return value's array; second[l] becomes
// df/dsigma(z) sigma''(z).
template <class T>
inline const T* field_adjoint(const PackedMlp<T>& mlp, std::int64_t rows, FieldWork<T>& work) {
    using V = Vec<T>;
    const MlpShape& shape = mlp.shape();
    Sweep<T>& sweep = work.sweep;
    const int last = shape.layers() - 1;
    int current = 0;
    for (int l = last; l >= 0; --l) {
        const int stride = sweep.stride[l], columns = padded<T>(shape.size(l + 1));
        T* above = work.adjoint[current];
        if (l == last) {
            for (std::int64_t r = 0; r < rows; ++r) {
                for (int i = 0; i < columns; i += V::lanes) {
                    const V w = V::load(mlp.output() + i);
                    T* second = sweep.second[l];
                    if (second != nullptr) (w * V::load(second + r * stride + i)).store(second + r * stride + i);
                    (w * V::load(sweep.first[l] + r * stride + i)).store(above + r * stride + i);
                }
            }
        } else {
            Product<T> layer{{work.adjoint[1 - current], sweep.stride[l + 1]}, mlp.backward(l + 1), {above, stride}};
            if (sweep.second[l] == nullptr) layer.multiply = sweep.first[l];
            product(layer, rows);
            if (sweep.second[l] != nullptr) {
                multiply(rows, columns, sweep.second[l], stride, above, stride);
                multiply(rows, columns, above, stride, sweep.first[l], stride);
            }
        }
        current = 1 - current;
    }
    return work.adjoint[1 - current];
}

// Adds to sum[r] the curvature of f along the direction whose dz of layer 0 is in work.adjoint[0].
template <class T>
inline void add_curvature(const PackedMlp<T>& mlp, std::int64_t rows, FieldWork<T>& work, T* sum) {
    using V = Vec<T>;
    const MlpShape& shape = mlp.shape();
    Sweep<T>& sweep = work.sweep;
    for (int l = 0; l < shape.layers(); ++l) {
        const int stride = sweep.stride[l], columns = padded<T>(shape.size(l + 1));
        T* tangent = work.adjoint[l % 2];
        if (l != 0) {
            const Strided<const T> below{work.adjoint[1 - l % 2], sweep.stride[l - 1]};
            product(Product<T>{below, mlp.forward(l), {tangent, stride}}, rows);
        }
        for (std::int64_t r = 0; r < rows; ++r) {
            T* row = tangent + r * stride;
            const T *second = sweep.second[l] + r * stride, *first = sweep.first[l] + r * stride;
            V total = V::zero();
            for (int i = 0; i < columns; i += V::lanes) {
                const V v = V::load(row + i);
                total = fma(v * v, V::load(second + i), total);
                (v * V::load(first + i)).store(row + i);
            }
            sum[r] += sum_lanes(total);
        }
    }
}

// Adds what the features' own curvature contributes along the direction whose turns F v are in features.turns.
template <class T>
inline void add_feature_curvature(const PackedMlp<T>& mlp, std::int64_t rows, const Sweep<T>& sweep, T* sum) {
    const MlpShape& shape = mlp.shape();
    const Features<T>& f = sweep.features;
    for (std::int64_t r = 0; r < rows; ++r) {
        const T* cosine_adjoint = sweep.input_adjoint + r * sweep.adjoint_stride + shape.inputs();
        const T* sine_adjoint = cosine_adjoint + shape.features;
        T total = T(0);
        for (int j = 0; j < shape.features; ++j) {
            const std::int64_t at = r * f.stride + j;
            const T angle = two_pi<T>() * f.turns[at];
            total -= (cosine_adjoint[j] * f.cosine[at] + sine_adjoint[j] * f.sine[at]) * (angle * angle);
        }
        sum[r] += total;
    }
}

// v . Hess(f) v for one direction: probe `probe` of each row, or coordinate `coordinate` where there are no probes.
template <class T>
inline void curvature(const PackedMlp<T>& mlp, const Trace<T>& trace, int direction, const FieldRows<T>& rows,
                      FieldWork<T>& work, T* sum) {
    using V = Vec<T>;
    const MlpShape& shape = mlp.shape();
    Sweep<T>& sweep = work.sweep;
    const int d = shape.dimension, columns = padded<T>(shape.size(1));
    if (trace.probes == nullptr && shape.features == 0) {
        // The first layer's tangent along a coordinate is a column of its weights, alike for all rows.
        const Panels<T> weights = mlp.forward(0);
        for (int i = 0; i < columns; i += V::lanes) {
            const T* column = weights.data + (static_cast<std::int64_t>(i) * weights.in + direction * V::lanes);
            const V v = V::load(column);
            for (std::int64_t r = 0; r < rows.rows; ++r) v.store(work.adjoint[0] + r * sweep.stride[0] + i);
        }
    } else {
        for (std::int64_t r = 0; r < rows.rows; ++r) {
            T* v = work.tangent_input + r * sweep.input_stride;
            for (int i = 0; i < sweep.input_stride; ++i) v[i] = T(0);
            if (trace.probes == nullptr) {
                v[direction] = T(1);
            } else {
                const T* probe = trace.probes + (rows.sample[r] * trace.directions + direction) * d;
                std::memcpy(v, probe, static_cast<std::size_t>(d) * sizeof(T));
            }
        }
        add_feature_directions(mlp, rows.rows, work.tangent_input, sweep.input_stride, sweep.features);
        if (shape.features != 0) add_feature_curvature(mlp, rows.rows, sweep, sum);
        const Strided<const T> input{work.tangent_input, sweep.input_stride};
        product(Product<T>{input, mlp.forward(0), {work.adjoint[0], sweep.stride[0]}}, rows.rows);
    }
    add_curvature(mlp, rows.rows, work, sum);
}

template <class T>
inline void field(const PackedMlp<T>& mlp, const Trace<T>& trace, const FieldRows<T>& rows, T* workspace) {
    const MlpShape& shape = mlp.shape();
    const int d = shape.dimension, width = d + trace.integrals(), layers = shape.layers();
    FieldWork<T> work(mlp, trace, workspace);
    Sweep<T>& sweep = work.sweep;
    PathRows<T>& path = *work.path;
    path_rows(shape, rows.t, rows.rows, path);
    set_input(mlp, rows.state, width, rows.rows, path, sweep);
    forward_sweep(mlp, rows.rows, sweep);
    if (rows.value != nullptr) {
        for (std::int64_t r = 0; r < rows.rows; ++r) {
            const T* x = rows.state + r * width;
            const T f = dot_padded(sweep.value[layers - 1] + r * sweep.stride[layers - 1], mlp.output(),
                                   padded<T>(shape.size(layers)));
            rows.value[r] = T(0.5) * path.quadratic[r] * dot(x, x, d) + path.factor[r] * f;
        }
    }
    const T* adjoint = field_adjoint(mlp, rows.rows, work);
    input_adjoint(mlp, rows.rows, adjoint, sweep.stride[0], sweep);
    for (std::int64_t r = 0; r < rows.rows; ++r) {
        const T* x = rows.state + r * width;
        const T* df = sweep.input_adjoint + r * sweep.adjoint_stride;
        const T scale = path.factor[r] * path.inverse_root[r];
        T* out = rows.derivative + r * width;
        for (int i = 0; i < d; ++i) out[i] = path.quadratic[r] * x[i] + scale * df[i];
    }
    if (trace.directions == 0) return;
    const bool exact = trace.probes == nullptr;
    T sum[tile_rows];
    for (int direction = 0; direction < trace.directions; ++direction) {
        if (direction == 0 || !exact) {
            for (std::int64_t r = 0; r < rows.rows; ++r) sum[r] = T(0);
        }
        curvature(mlp, trace, direction, rows, work, sum);
        if (exact && direction + 1 < trace.directions) continue;
        for (std::int64_t r = 0; r < rows.rows; ++r) {
            const T* probe = exact ? nullptr : trace.probes + (rows.sample[r] * trace.directions + direction) * d;
            const T squares = exact ? static_cast<T>(d) : dot(probe, probe, d);
            const T scale = path.factor[r] * path.inverse_root[r] * path.inverse_root[r];
            rows.derivative[r * width + d + (exact ? 0 : direction)] = path.quadratic[r] * squares + scale * sum[r];
        }
    }
}

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
