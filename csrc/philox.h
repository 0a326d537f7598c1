// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstdint>

namespace vapo_fast {

// Writes 4 * blocks words for each of n samples: out[i][b] = philox((b, index[i] low, index[i] high, stream), seed).
// `index` is read as bit patterns, so a negative index is a sample of its own. All pointers are host memory.
void philox_words(std::uint64_t seed, const std::int64_t* index, std::int64_t n, std::uint32_t blocks,
                  std::uint32_t stream, std::uint32_t* out) noexcept;

}  // namespace vapo_fast
