// The coefficients of the path and of the denoiser gauge at the times of a tile (vapo_fast/homotopy.py, gauge.py),
// computed in float64 and rounded once.
#pragma once

#include "mlp/kernels.h"
#include "mlp/product.h"
#include "simd/math.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

// Arrays [tile] of T, padded to whole registers of float64.
template <class T>
struct PathRows {
    static constexpr int padded = tile_rows + 16;
    T alpha[padded], beta[padded], alpha_dot[padded], beta_dot[padded];
    T inverse_root[padded];  // S^(-1/2)
    T quadratic[padded];     // A: Phi = A/2 |x|^2 + C f
    T factor[padded];        // C
    T position[padded];      // p
};

template <class T>
inline void path_rows(const MlpShape& shape, const T* t, std::int64_t rows, PathRows<T>& out) {
    using V = Vec<double>;
    const double omega = shape.omega, s = shape.data_scale;
    const double log_omega = __builtin_log(omega);
    const double middle = 2.0 / (shape.log_beta_last - shape.log_beta_first);
    // Without time the gauge is the path's at its start, and S is s^2 + omega^2.
    const double radius = __builtin_sqrt(s * s + omega * omega);
    for (std::int64_t first = 0; first < rows; first += V::lanes) {
        double time[V::lanes], decay[V::lanes];
        for (int i = 0; i < V::lanes; ++i) time[i] = first + i < rows ? static_cast<double>(t[first + i]) : 0.0;
        const V moment = V::load(time);
        if (shape.path == Path::data) {
            exp(moment * V::broadcast(-0.5)).store(decay);
        } else {
            log(V::broadcast(1.0) - moment).store(decay);
        }
        for (int i = 0; i < V::lanes; ++i) {
            const std::int64_t r = first + i;
            double alpha, beta, alpha_dot, beta_dot, log_beta, gauge_quadratic, gauge_scale;
            if (shape.path == Path::data) {
                const double e = decay[i] * decay[i];
                alpha = 1.0 - e;
                beta = omega * decay[i];
                alpha_dot = e;
                beta_dot = -0.5 * beta;
                log_beta = log_omega - 0.5 * time[i];
                gauge_quadratic = -0.5;
                gauge_scale = 0.5 * (1.0 + e);
            } else {
                alpha = time[i];
                beta = omega * (1.0 - time[i]);
                alpha_dot = 1.0;
                beta_dot = -omega;
                log_beta = log_omega + decay[i];
                gauge_scale = 1.0 / (1.0 - time[i]);
                gauge_quadratic = -gauge_scale;
            }
            out.alpha[r] = static_cast<T>(alpha);
            out.beta[r] = static_cast<T>(beta);
            out.alpha_dot[r] = static_cast<T>(alpha_dot);
            out.beta_dot[r] = static_cast<T>(beta_dot);
            if (shape.time_dependent) {
                const double variance = alpha * alpha * s * s + beta * beta;
                out.inverse_root[r] = static_cast<T>(1.0 / __builtin_sqrt(variance));
                out.quadratic[r] = static_cast<T>(gauge_quadratic + gauge_scale * (alpha * s * s / variance));
                out.factor[r] = static_cast<T>(gauge_scale * s * beta);
                out.position[r] = static_cast<T>((log_beta - shape.log_beta_first) * middle - 1.0);
            } else {
                out.inverse_root[r] = static_cast<T>(1.0 / radius);
                out.quadratic[r] = static_cast<T>(shape.path == Path::data ? -0.5 : -1.0);
                out.factor[r] = static_cast<T>(s * radius);
                out.position[r] = T(0);
            }
        }
    }
}

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
