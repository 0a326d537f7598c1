// The sweeps through the layers on one tile of rows: forward, adjoint, and tangents of given directions.
#pragma once

#include "mlp/path.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

// Hands out pieces of a workspace, each at the start of a cache line.
template <class T>
class Carver {
public:
    explicit Carver(T* start) : start_(start) {}
    T* take(std::int64_t size) {
        T* piece = start_ == nullptr ? nullptr : start_ + used_;
        constexpr std::int64_t line = 64 / sizeof(T);
        used_ += (size + line - 1) / line * line;
        return piece;
    }
    std::size_t used() const { return static_cast<std::size_t>(used_); }

private:
    T* start_;
    std::int64_t used_ = 0;
};

template <class T>
VAPO_FAST_INLINE T sum_lanes(Vec<T> v) {
    T lane[Vec<T>::lanes];
    v.store(lane);
    for (int half = Vec<T>::lanes / 2; half > 0; half /= 2) {
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    return lane[0];
}

// Sum of a[i] b[i] over whole registers.
template <class T>
VAPO_FAST_INLINE T dot_padded(const T* a, const T* b, int padded) {
    using V = Vec<T>;
    V sum = V::zero();
    for (int i = 0; i < padded; i += V::lanes) sum = fma(V::load(a + i), V::load(b + i), sum);
    return sum_lanes(sum);
}

// Sum of a[i] b[i] over any size: every row of one size adds in the same order.
template <class T>
inline T dot(const T* a, const T* b, int size) {
    const int whole = size / Vec<T>::lanes * Vec<T>::lanes;
    T tail = T(0);
    for (int i = whole; i < size; ++i) tail += a[i] * b[i];
    return dot_padded(a, b, whole) + tail;
}

template <class T>
constexpr int padded(int size) {
    return (size + Vec<T>::lanes - 1) / Vec<T>::lanes * Vec<T>::lanes;
}

template <Activation A, bool curved, class T>
inline void activate_rows(std::int64_t rows, int columns, int stride, T* first, T* value, int value_stride, T* second) {
    using V = Vec<T>;
    for (std::int64_t r = 0; r < rows; ++r) {
        T *z = first + r * stride, *y = value + r * value_stride;
        for (int i = 0; i < columns; i += V::lanes) {
            V v, d;
            if constexpr (curved) {
                V dd;
                activation<A>(V::load(z + i), v, d, dd);
                dd.store(second + r * stride + i);
            } else {
                activation<A>(V::load(z + i), v, d);
            }
            v.store(y + i);
            d.store(z + i);
        }
    }
}

// first: holds z, becomes sigma'(z). value: becomes sigma(z). second: becomes sigma''(z), unless null.
template <class T>
inline void activate(Activation kind, std::int64_t rows, int size, int stride, T* first, T* value, int value_stride,
                     T* second) {
    const int columns = padded<T>(size);
    const auto run = [&](auto curved) {
        constexpr bool c = decltype(curved)::value;
        switch (kind) {
            case Activation::silu:
                return activate_rows<Activation::silu, c>(rows, columns, stride, first, value, value_stride, second);
            case Activation::softplus:
                return activate_rows<Activation::softplus, c>(rows, columns, stride, first, value, value_stride,
                                                              second);
            case Activation::tanh:
                return activate_rows<Activation::tanh, c>(rows, columns, stride, first, value, value_stride, second);
        }
    };
    if (second != nullptr) {
        run(std::true_type{});
    } else {
        run(std::false_type{});
    }
}

// a *= b, row by row.
template <class T>
inline void multiply(std::int64_t rows, int columns, T* a, int a_stride, const T* b, int b_stride) {
    using V = Vec<T>;
    for (std::int64_t r = 0; r < rows; ++r) {
        for (int i = 0; i < columns; i += V::lanes) {
            (V::load(a + r * a_stride + i) * V::load(b + r * b_stride + i)).store(a + r * a_stride + i);
        }
    }
}

// The features of the input and their derivatives; arrays [tile][stride(features)], nothing without features.
template <class T>
struct Features {
    T *cosine = nullptr, *sine = nullptr, *turns = nullptr;
    int stride = 0;

    void carve(const PackedMlp<T>& mlp, Carver<T>& carver) {
        const int count = mlp.shape().features;
        if (count == 0) return;
        stride = mlp.stride(count);
        for (T** array : {&cosine, &sine, &turns}) *array = carver.take(std::int64_t{tile_rows} * stride);
    }
};

template <class T>
constexpr T two_pi() {
    return static_cast<T>(6.283185307179586476925286766559);
}

// y = (z, p) in place becomes (z, p, cos 2 pi F y, sin 2 pi F y), then zeros up to whole registers.
template <class T>
inline void add_features(const PackedMlp<T>& mlp, std::int64_t rows, T* y, int y_stride, const Features<T>& f) {
    using V = Vec<T>;
    const int inputs = mlp.shape().inputs(), count = mlp.shape().features;
    if (count != 0) {
        product(Product<T>{{y, y_stride}, mlp.frequencies(), {f.turns, f.stride}}, rows);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
        T* row = y + r * y_stride;
        T *cosine = f.cosine + r * f.stride, *sine = f.sine + r * f.stride;
        for (int i = 0; i < count; i += V::lanes) {
            V c, s;
            cos_sin_turns(V::load(f.turns + r * f.stride + i), c, s);
            c.store(cosine + i);
            s.store(sine + i);
        }
        if (count != 0) {
            std::memcpy(row + inputs, cosine, static_cast<std::size_t>(count) * sizeof(T));
            std::memcpy(row + inputs + count, sine, static_cast<std::size_t>(count) * sizeof(T));
        }
        for (int i = inputs + 2 * count; i < padded<T>(inputs + 2 * count); ++i) row[i] = T(0);
    }
}

// A direction (v, 0) of the input in place becomes the direction of the input with its features.
template <class T>
inline void add_feature_directions(const PackedMlp<T>& mlp, std::int64_t rows, T* v, int v_stride, Features<T>& f) {
    const int inputs = mlp.shape().inputs(), count = mlp.shape().features;
    if (count != 0) {
        product(Product<T>{{v, v_stride}, mlp.frequencies(), {f.turns, f.stride}}, rows);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
        T* row = v + r * v_stride;
        const T *cosine = f.cosine + r * f.stride, *sine = f.sine + r * f.stride, *turns = f.turns + r * f.stride;
        for (int j = 0; j < count; ++j) {
            const T angle = two_pi<T>() * turns[j];
            row[inputs + j] = -sine[j] * angle;
            row[inputs + count + j] = cosine[j] * angle;
        }
        for (int i = inputs + 2 * count; i < padded<T>(inputs + 2 * count); ++i) row[i] = T(0);
    }
}

// What the forward and the adjoint sweep leave behind. Layer l's arrays are [tile][stride(size(l + 1))], l from 0.
template <class T>
struct Sweep {
    T* input = nullptr;  // [tile][stride(first_size)]
    int input_stride = 0;
    Features<T> features;
    T* value[most_layers];   // sigma(z); shared by turns unless kept
    T* first[most_layers];   // sigma'(z), which the adjoint sweep leaves or turns into df/dz
    T* second[most_layers];  // sigma''(z), or null
    T* above[most_layers];   // df/dsigma(z), where kept apart; else null
    int stride[most_layers];
    T* input_adjoint = nullptr;  // [tile][adjoint_stride]: df/dz in the first D columns
    int adjoint_stride = 0;
};

// Fills sweep.input with (z, p) and its features.
template <class T>
inline void set_input(const PackedMlp<T>& mlp, const T* x, std::int64_t x_stride, std::int64_t rows,
                      const PathRows<T>& path, Sweep<T>& sweep) {
    const MlpShape& shape = mlp.shape();
    for (std::int64_t r = 0; r < rows; ++r) {
        T* y = sweep.input + r * sweep.input_stride;
        const T* row = x + r * x_stride;
        for (int i = 0; i < shape.dimension; ++i) y[i] = row[i] * path.inverse_root[r];
        if (shape.time_dependent) y[shape.dimension] = path.position[r];
    }
    add_features(mlp, rows, sweep.input, sweep.input_stride, sweep.features);
}

template <class T>
inline void forward_sweep(const PackedMlp<T>& mlp, std::int64_t rows, Sweep<T>& sweep) {
    const MlpShape& shape = mlp.shape();
    const T* y = sweep.input;
    int y_stride = sweep.input_stride;
    for (int l = 0; l < shape.layers(); ++l) {
        Product<T> layer{{y, y_stride}, mlp.forward(l), {sweep.first[l], sweep.stride[l]}};
        layer.bias = mlp.bias(l);
        product(layer, rows);
        activate(shape.activation, rows, shape.size(l + 1), sweep.stride[l], sweep.first[l], sweep.value[l],
                 sweep.stride[l], sweep.second[l]);
        y = sweep.value[l];
        y_stride = sweep.stride[l];
    }
}

// df/d(input with features) for every row, given df/dz of layer 0, and from it df/dz of the plain input.
template <class T>
inline void input_adjoint(const PackedMlp<T>& mlp, std::int64_t rows, const T* adjoint, int stride, Sweep<T>& sweep) {
    const MlpShape& shape = mlp.shape();
    const Strided<T> out{sweep.input_adjoint, sweep.adjoint_stride};
    product(Product<T>{{adjoint, stride}, mlp.backward(0), out}, rows);
    const int count = shape.features;
    if (count == 0) return;
    Features<T>& f = sweep.features;
    for (std::int64_t r = 0; r < rows; ++r) {
        const T* cosine_adjoint = sweep.input_adjoint + r * sweep.adjoint_stride + shape.inputs();
        const T* sine_adjoint = cosine_adjoint + count;
        const T *cosine = f.cosine + r * f.stride, *sine = f.sine + r * f.stride;
        T* angle = f.turns + r * f.stride;
        for (int j = 0; j < count; ++j) {
            angle[j] = two_pi<T>() * (cosine[j] * sine_adjoint[j] - sine[j] * cosine_adjoint[j]);
        }
    }
    Product<T> through_features{{f.turns, f.stride}, mlp.frequencies_transposed(), out};
    through_features.accumulate = true;
    product(through_features, rows);
}

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
