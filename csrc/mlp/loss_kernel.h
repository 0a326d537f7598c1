// The energy loss of a slice of a batch and its gradient with respect to every weight, without double backward.
//
// The loss depends on the weights through grad Phi (and, for the covariance estimator, Phi). With r = dloss/d(grad Phi)
// and q = dloss/dPhi held fixed, its gradient is that of the scalar f_dot + q f, where f_dot is the derivative of f
// along r: a forward tangent of r, and one second adjoint sweep for the terms in sigma''. Each weight then gets
//     b_l (x) y_(l-1) + a_l (x) y_dot_(l-1),
// a_l = df/dz_l from the first adjoint sweep, b_l = d(f_dot + q f)/dz_l from the second.
#pragma once

#include "mlp/sweeps.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

template <class T>
struct LossWork {
    Sweep<T> sweep;
    PathRows<T>* path;
    T *x, *velocity;  // [tile][point_stride]
    int point_stride;
    T* tangent_input;                // [tile][input_stride]: y_dot of the input
    T* tangent[most_layers];         // z_dot, then y_dot
    T* adjoint[most_layers];         // a_l
    T* second_adjoint[most_layers];  // b_l
    std::size_t size;

    LossWork(const PackedMlp<T>& mlp, T* workspace) {
        const MlpShape& shape = mlp.shape();
        Carver<T> carver(workspace);
        path = reinterpret_cast<PathRows<T>*>(carver.take(sizeof(PathRows<T>) / sizeof(T)));
        point_stride = mlp.stride(shape.dimension);
        x = carver.take(std::int64_t{tile_rows} * point_stride);
        velocity = carver.take(std::int64_t{tile_rows} * point_stride);
        sweep.input_stride = sweep.adjoint_stride = mlp.stride(shape.first_size());
        sweep.input = carver.take(std::int64_t{tile_rows} * sweep.input_stride);
        sweep.input_adjoint = carver.take(std::int64_t{tile_rows} * sweep.input_stride);
        tangent_input = carver.take(std::int64_t{tile_rows} * sweep.input_stride);
        sweep.features.carve(mlp, carver);
        for (int l = 0; l < shape.layers(); ++l) {
            const int stride = mlp.stride(shape.size(l + 1));
            sweep.stride[l] = stride;
            for (T** array : {&sweep.value[l], &sweep.first[l], &sweep.second[l], &sweep.above[l], &tangent[l],
                              &adjoint[l], &second_adjoint[l]}) {
                *array = carver.take(std::int64_t{tile_rows} * stride);
            }
        }
        size = carver.used();
    }
};

template <class T>
inline std::size_t loss_workspace(const PackedMlp<T>& mlp) {
    return LossWork<T>(mlp, nullptr).size;
}

// x = alpha x_data + beta noise and its velocity.
template <class T>
inline void perturb(const LossRows<T>& rows, int d, LossWork<T>& work) {
    const PathRows<T>& path = *work.path;
    for (std::int64_t r = 0; r < rows.rows; ++r) {
        const T *data = rows.x_data + r * d, *noise = rows.noise + r * d;
        T *x = work.x + r * work.point_stride, *u = work.velocity + r * work.point_stride;
        for (int i = 0; i < d; ++i) {
            x[i] = path.alpha[r] * data[i] + path.beta[r] * noise[i];
            u[i] = path.alpha_dot[r] * data[i] + path.beta_dot[r] * noise[i];
        }
    }
}

template <class T>
inline void loss_adjoint(const PackedMlp<T>& mlp, std::int64_t rows, LossWork<T>& work) {
    using V = Vec<T>;
    const MlpShape& shape = mlp.shape();
    Sweep<T>& sweep = work.sweep;
    const int last = shape.layers() - 1;
    for (int l = last; l >= 0; --l) {
        const int stride = sweep.stride[l], columns = padded<T>(shape.size(l + 1));
        if (l != last) {
            const Strided<const T> adjoint{work.adjoint[l + 1], sweep.stride[l + 1]};
            product(Product<T>{adjoint, mlp.backward(l + 1), {sweep.above[l], stride}}, rows);
        }
        for (std::int64_t r = 0; r < rows; ++r) {
            for (int i = 0; i < columns; i += V::lanes) {
                const std::int64_t at = r * stride + i;
                const V above = V::load(l == last ? mlp.output() + i : sweep.above[l] + at);
                (above * V::load(sweep.first[l] + at)).store(work.adjoint[l] + at);
                // Only its product with sigma'' is needed from here on.
                (above * V::load(sweep.second[l] + at)).store(sweep.second[l] + at);
            }
        }
    }
    input_adjoint(mlp, rows, work.adjoint[0], sweep.stride[0], sweep);
}

// The loss terms of each row; fills tangent_input with C S^(-1/2) dloss/d(grad Phi), and phi_factor with C dloss/dPhi.
template <class T>
inline void loss_terms(const PackedMlp<T>& mlp, const LossRows<T>& rows, LossWork<T>& work, LossSums<T>& sums,
                       T* phi_factor) {
    const MlpShape& shape = mlp.shape();
    const Sweep<T>& sweep = work.sweep;
    const PathRows<T>& path = *work.path;
    const int d = shape.dimension, last = shape.layers() - 1;
    for (std::int64_t r = 0; r < rows.rows; ++r) {
        const T *x = work.x + r * work.point_stride, *u = work.velocity + r * work.point_stride;
        const T* df = sweep.input_adjoint + r * sweep.adjoint_stride;
        T* direction = work.tangent_input + r * sweep.input_stride;
        const T scale = path.factor[r] * path.inverse_root[r];
        const T beta = path.beta[r];
        const T weight = rows.weight != nullptr ? rows.weight[r] : rows.inverse_variance ? T(1) / (beta * beta) : T(1);
        T squares = T(0), linear = T(0);
        for (int i = 0; i < d; ++i) {
            const T gradient = path.quadratic[r] * x[i] + scale * df[i];
            squares += gradient * gradient;
            if (!rows.covariance) linear -= gradient * u[i];
            direction[i] = scale * (weight * rows.scale) * (rows.covariance ? gradient : gradient - u[i]);
        }
        phi_factor[r] = T(0);
        if (rows.covariance) {
            const T *noise = rows.noise + r * d, *data = rows.x_data + r * d;
            const T innovation = (path.beta_dot[r] / beta) * (static_cast<T>(d) - dot(noise, noise, d)) -
                                 (path.alpha_dot[r] / beta) * dot(noise, data, d);
            const T f = dot_padded(sweep.value[last] + r * sweep.stride[last], mlp.output(),
                                   padded<T>(shape.size(shape.layers())));
            const T phi = T(0.5) * path.quadratic[r] * dot(x, x, d) + path.factor[r] * f;
            linear = phi * innovation;
            phi_factor[r] = path.factor[r] * (weight * rows.scale) * innovation;
        }
        sums.linear += static_cast<double>(weight) * static_cast<double>(linear);
        sums.quadratic += static_cast<double>(weight) * 0.5 * static_cast<double>(squares);
        if (shape.time_dependent) direction[d] = T(0);
    }
}

template <class T>
inline void loss_tangent(const PackedMlp<T>& mlp, std::int64_t rows, LossWork<T>& work) {
    using V = Vec<T>;
    const MlpShape& shape = mlp.shape();
    Sweep<T>& sweep = work.sweep;
    add_feature_directions(mlp, rows, work.tangent_input, sweep.input_stride, sweep.features);
    const T* y = work.tangent_input;
    int y_stride = sweep.input_stride;
    for (int l = 0; l < shape.layers(); ++l) {
        const int stride = sweep.stride[l], columns = padded<T>(shape.size(l + 1));
        product(Product<T>{{y, y_stride}, mlp.forward(l), {work.tangent[l], stride}}, rows);
        // z_dot df/dsigma(z) sigma''(z) is the second adjoint's first term. Then z_dot becomes y_dot.
        for (std::int64_t r = 0; r < rows; ++r) {
            for (int i = 0; i < columns; i += V::lanes) {
                const std::int64_t at = r * stride + i;
                const V z = V::load(work.tangent[l] + at);
                (z * V::load(sweep.second[l] + at)).store(sweep.second[l] + at);
                (z * V::load(sweep.first[l] + at)).store(work.tangent[l] + at);
            }
        }
        y = work.tangent[l];
        y_stride = stride;
    }
}

// b_l of every layer, from the top: b_l = sigma' (W^T b_(l+1)) + (df/dsigma) sigma'' z_dot.
template <class T>
inline void second_adjoint_sweep(const PackedMlp<T>& mlp, std::int64_t rows, const T* phi_factor, LossWork<T>& work) {
    using V = Vec<T>;
    const MlpShape& shape = mlp.shape();
    Sweep<T>& sweep = work.sweep;
    const int last = shape.layers() - 1;
    for (int l = last; l >= 0; --l) {
        const int stride = sweep.stride[l], columns = padded<T>(shape.size(l + 1));
        T* b = work.second_adjoint[l];
        if (l != last) {
            const Strided<const T> above{work.second_adjoint[l + 1], sweep.stride[l + 1]};
            Product<T> layer{above, mlp.backward(l + 1), {b, stride}};
            layer.multiply = sweep.first[l];
            product(layer, rows);
        }
        for (std::int64_t r = 0; r < rows; ++r) {
            const V q = V::broadcast(phi_factor[r]);
            for (int i = 0; i < columns; i += V::lanes) {
                const std::int64_t at = r * stride + i;
                const V through = l == last ? q * V::load(work.adjoint[l] + at) : V::load(b + at);
                (through + V::load(sweep.second[l] + at)).store(b + at);
            }
        }
    }
}

template <class T>
inline void add_gradients(const PackedMlp<T>& mlp, const MlpGradient<T>& layout, std::int64_t rows, const T* phi_factor,
                          const LossWork<T>& work, T* gradient) {
    using V = Vec<T>;
    const MlpShape& shape = mlp.shape();
    const Sweep<T>& sweep = work.sweep;
    for (int l = 0; l < shape.layers(); ++l) {
        const auto i = static_cast<std::size_t>(l);
        OuterSum<T> weight;
        weight.a = work.second_adjoint[l];
        weight.b = work.adjoint[l];
        weight.y = l == 0 ? sweep.input : sweep.value[l - 1];
        weight.z = l == 0 ? work.tangent_input : work.tangent[l - 1];
        weight.out = shape.size(l + 1);
        weight.out_stride = sweep.stride[l];
        weight.in = shape.size(l);
        weight.in_stride = l == 0 ? sweep.input_stride : sweep.stride[l - 1];
        weight.g = {gradient + layout.weight[i], layout.stride[i]};
        outer_sum(weight, rows);
        T* bias = gradient + layout.bias[i];
        for (int o = 0; o < padded<T>(weight.out); o += V::lanes) {
            V sum = V::load(bias + o);
            for (std::int64_t r = 0; r < rows; ++r) sum = sum + V::load(weight.a + r * weight.out_stride + o);
            sum.store(bias + o);
        }
    }
    const int last = shape.layers() - 1;
    T* output = gradient + layout.output;
    for (int o = 0; o < padded<T>(shape.size(last + 1)); o += V::lanes) {
        V sum = V::load(output + o);
        for (std::int64_t r = 0; r < rows; ++r) {
            const std::int64_t at = r * sweep.stride[last] + o;
            sum = sum +
                  fma(V::broadcast(phi_factor[r]), V::load(sweep.value[last] + at), V::load(work.tangent[last] + at));
        }
        sum.store(output + o);
    }
}

template <class T>
inline void loss(const PackedMlp<T>& mlp, const MlpGradient<T>& layout, const LossRows<T>& rows, LossSums<T>& sums,
                 T* workspace) {
    const MlpShape& shape = mlp.shape();
    LossWork<T> work(mlp, workspace);
    T phi_factor[tile_rows];
    path_rows(shape, rows.t, rows.rows, *work.path);
    perturb(rows, shape.dimension, work);
    set_input(mlp, work.x, work.point_stride, rows.rows, *work.path, work.sweep);
    forward_sweep(mlp, rows.rows, work.sweep);
    loss_adjoint(mlp, rows.rows, work);
    loss_terms(mlp, rows, work, sums, phi_factor);
    loss_tangent(mlp, rows.rows, work);
    second_adjoint_sweep(mlp, rows.rows, phi_factor, work);
    add_gradients(mlp, layout, rows.rows, phi_factor, work, sums.gradient);
}

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
