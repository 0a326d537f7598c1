// The kernels behind pointwise.h, one table for each instruction set: each works on a part of the arrays.
#pragma once

#include "image/pointwise.h"

namespace vapo_fast {

// [begin, end) counts numbers for the kernels that take no coefficients, else pixels of one row; `film` then points to
// that row's coefficients.
template <class T, class N>
struct PointwiseTable {
    void (*silu_map)(const T* x, N* s, std::int64_t begin, std::int64_t end);
    void (*silu_adjoint)(const T* x, const N* v, const T* skip, T* out, std::int64_t begin, std::int64_t end);
    void (*silu_tangent)(const T* x, const T* v, const T* skip, N* out, std::int64_t begin, std::int64_t end);
    void (*silu_second)(const SiluSecond<T, N>& arrays, std::int64_t size, std::int64_t begin, std::int64_t end);
    void (*film_silu)(const N* c, Film<T> film, N* out, std::int64_t channels, std::int64_t pixels);
    void (*film_silu_derivative)(const N* c, const N* v, Film<T> film, N* out, std::int64_t channels,
                                 std::int64_t pixels);
    void (*film_silu_second)(const FilmSecond<T, N>& arrays, MapShape shape, std::int64_t row);
    void (*residual)(const N* branch, const T* skip, const T* bias, T* out, std::int64_t channels, std::int64_t pixels);
};

}  // namespace vapo_fast
