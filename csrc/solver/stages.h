// Arithmetic of a Runge-Kutta step on rows of states, in the order of vapo_fast/ode/solve.py. Every product and sum is
// rounded on its own, so results have the reference's bits with any instructions that the compiler chooses.
//
// Arrays are [rows][width] without gaps and treated as flat where columns do not matter.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "solver/tableau.h"

#if defined(__GNUC__) && !defined(__clang__)
#define VAPO_FAST_INDEPENDENT _Pragma("GCC ivdep")  // the arrays of a loop do not overlap
#elif defined(__clang__)
#define VAPO_FAST_INDEPENDENT _Pragma("clang loop vectorize(assume_safety)")
#else
#define VAPO_FAST_INDEPENDENT
#endif

namespace vapo_fast {

template <class T, int S>
struct Stages {
    T* k[S];
};

enum class Sum { kStep, kError };  // beyond the rows of the stage matrix: b and the error weights

// Coefficient j of a weighted sum: row `which` of the stage matrix (1 .. S - 1), then b, then the error weights.
template <const auto& tableau, int which>
constexpr double coefficient(int j) {
    constexpr int stages = std::decay_t<decltype(tableau)>::stages;
    if constexpr (which < stages) {
        return tableau.a[which][j];
    } else if constexpr (which == stages + static_cast<int>(Sum::kStep)) {
        return tableau.b[j];
    } else {
        return tableau.error[j];
    }
}

template <const auto& tableau, int which, class T, int S, int j>
inline T add_terms(T total, const Stages<T, S>& stages, std::int64_t i) {
    if constexpr (j == S) {
        return total;
    } else if constexpr (coefficient<tableau, which>(j) != 0.0) {
        constexpr T weight = static_cast<T>(coefficient<tableau, which>(j));
        return add_terms<tableau, which, T, S, j + 1>(total + weight * stages.k[j][i], stages, i);
    } else {
        return add_terms<tableau, which, T, S, j + 1>(total, stages, i);
    }
}

template <const auto& tableau, int which>
constexpr int first_term() {
    int j = 0;
    while (coefficient<tableau, which>(j) == 0.0) ++j;
    return j;
}

// Element i of sum_j w_j k_j, left to right, terms of weight zero left out.
template <const auto& tableau, int which, class T, int S>
inline T weighted_sum(const Stages<T, S>& stages, std::int64_t i) {
    constexpr int j = first_term<tableau, which>();
    constexpr T weight = static_cast<T>(coefficient<tableau, which>(j));
    return add_terms<tableau, which, T, S, j + 1>(weight * stages.k[j][i], stages, i);
}

// out = x + h sum_j w_j k_j, with h given for each element.
template <const auto& tableau, int which, class T, int S>
void advance(std::int64_t size, const T* x, const T* h, const Stages<T, S>& stages, T* out) {
    VAPO_FAST_INDEPENDENT
    for (std::int64_t i = 0; i < size; ++i) out[i] = x[i] + h[i] * weighted_sum<tableau, which>(stages, i);
}

// The largest error allowed, atol + rtol size; at least the smallest normal number, because errors are divided by it.
template <class T>
struct Tolerance {
    T rtol, atol;
    T scale(T size) const {
        const T scale = atol + rtol * size;
        return scale < std::numeric_limits<T>::min() ? std::numeric_limits<T>::min() : scale;
    }
};

// Squares of the scaled error estimate. They have no meaning where x_new is not finite.
template <const auto& tableau, class T, int S>
void error_squares(std::int64_t size, const T* x, const T* x_new, const T* h, const Stages<T, S>& stages,
                   Tolerance<T> tolerance, T* squares) {
    constexpr int which = S + static_cast<int>(Sum::kError);
    VAPO_FAST_INDEPENDENT
    for (std::int64_t i = 0; i < size; ++i) {
        const T before = std::fabs(x[i]), after = std::fabs(x_new[i]);
        const T larger = before > after ? before : after;
        const T ratio = h[i] * weighted_sum<tableau, which>(stages, i) / tolerance.scale(larger);
        squares[i] = ratio * ratio;
    }
}

// Root of the mean of a row's squares, which are overwritten. They are summed in halves, until one number is left: the
// second half of the columns is added to the first, and an odd last column is kept.
template <class T>
T root_mean(T* squares, int width) {
    for (int left = width; left > 1; left = left / 2 + left % 2) {
        const int half = left / 2;
        for (int j = 0; j < half; ++j) squares[j] += squares[half + j];
        if (left % 2 != 0) squares[half] = squares[left - 1];
    }
    return std::sqrt(squares[0] / static_cast<T>(width));
}

template <class T>
bool all_finite(const T* row, int width) {
    bool finite = true;
    for (int j = 0; j < width; ++j) finite &= std::fabs(row[j]) <= std::numeric_limits<T>::max();
    return finite;
}

// The continuous extension at `time` for one row: x + h sum_i b_i(theta) k_i.
template <const auto& tableau, class T, int S>
void state_at(double time, double t, double h, const T* x, const Stages<T, S>& stages, std::int64_t offset, int width,
              T* out) {
    const double theta = (time - t) / h;
    T weights[S];
    for (int i = 0; i < S; ++i) {
        double weight = 0.0;
        for (int j = tableau.dense_terms - 1; j >= 0; --j) weight = (weight + tableau.dense[i][j]) * theta;
        weights[i] = static_cast<T>(weight);
    }
    const T step = static_cast<T>(h);
    for (int j = 0; j < width; ++j) {
        T increment = 0;
        for (int i = 0; i < S; ++i) increment += weights[i] * stages.k[i][offset + j];
        out[j] = x[j] + step * increment;
    }
}

}  // namespace vapo_fast
