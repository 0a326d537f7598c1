// The operations between two convolutions, in the four sweeps of a convolutional potential.
// vapo_fast/engines/explicit/pointwise.py defines each of them.
//
// Feature maps are [rows][pixels][channels]. T is the type of the stream: x, FiLM's coefficients, sums. N is the type
// that convolutions read and write: T, or BFloat16 with T float. Outputs may not overlap inputs, unless stated.
// A row's results depend on that row alone, and not on the number of threads.
#pragma once

#include <cstdint>

#include "simd/bfloat16.h"
#include "simd/instruction_set.h"

namespace vapo_fast {

struct MapShape {
    std::int64_t rows, pixels, channels;
    std::int64_t size() const { return rows * pixels * channels; }
};

// Which instructions and how many threads, at least 1.
struct PointwiseRun {
    InstructionSet instruction_set;
    int threads;
};

template <class T, class N>
struct SiluSecond {
    const T *x, *x_dot;
    const N *a_s, *b_s;
    T* adjoints;  // [b; a]: 2 rows
    bool add;     // to what is there
    N* values;    // [s; s_dot]
};

// FiLM's coefficients, [rows][channels].
template <class T>
struct Film {
    const T *gain, *offset;
    Film at(std::int64_t place) const { return {gain + place, offset + place}; }
};

template <class T, class N>
struct FilmSecond {
    const N *c, *c_dot, *a_s, *b_s;
    Film<T> film;
    N *adjoints, *values;    // [b; a], [s; s_dot]: 2 rows
    T *of_gain, *of_offset;  // [rows][channels]
};

// s = silu(x)
template <class T, class N>
void silu_map(const T* x, N* s, MapShape shape, PointwiseRun run);

// out = silu'(x) v + skip; skip may be null, and it or v may be out where the type is the same.
template <class T, class V, class O>
void silu_derivative(const T* x, const V* v, const T* skip, O* out, MapShape shape, PointwiseRun run);

template <class T, class N>
void silu_second(const SiluSecond<T, N>& arrays, MapShape shape, PointwiseRun run);

// out = silu(gain c + offset)
template <class T, class N>
void film_silu(const N* c, Film<T> film, N* out, MapShape shape, PointwiseRun run);

// out = gain silu'(gain c + offset) v
template <class T, class N>
void film_silu_derivative(const N* c, const N* v, Film<T> film, N* out, MapShape shape, PointwiseRun run);

template <class T, class N>
void film_silu_second(const FilmSecond<T, N>& arrays, MapShape shape, PointwiseRun run);

// out = branch + skip + bias; bias [channels] may be null, and branch or skip may be out where the type is the same.
template <class T, class N>
void residual(const N* branch, const T* skip, const T* bias, T* out, MapShape shape, PointwiseRun run);

}  // namespace vapo_fast
