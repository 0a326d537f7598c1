// Draws from the counter-based generator, with the bits of vapo_fast/noise.py.
#pragma once

#include <cstdint>

namespace vapo_fast {

// Which draws: the counter of block b of sample i is (b, index[i] low, index[i] high, stream), under the key `seed`.
// Four elements come from a block. An index is read as its bits.
struct Draws {
    std::uint64_t seed;
    std::uint32_t stream;
    const std::int64_t* index;  // [samples]
    std::int64_t samples;
    std::int64_t size;  // elements of one sample, 1 <= size <= 2^34
};

// Standard normal numbers by Box and Muller's method, and numbers uniform in the open interval (0, 1); computed in
// float64, rounded to T. `out` is [samples][size].
template <class T>
void draw_normal(const Draws& draws, T* out) noexcept;
template <class T>
void draw_uniform(const Draws& draws, T* out) noexcept;

// The shuffle of 0 .. n - 1 that sorts the 64-bit keys (words 2i and 2i + 1 of the draw with index `epoch`), as signed
// numbers; equal keys keep their order. 0 <= n <= 2^33.
void permutation(std::uint64_t seed, std::uint32_t stream, std::int64_t epoch, std::int64_t n, std::int64_t* out);

}  // namespace vapo_fast
