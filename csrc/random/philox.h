// Philox4x32-10 (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
#pragma once

#include <cstdint>

namespace vapo_fast {

// Counters side by side: independent lanes in arrays are what a compiler turns into vector instructions.
struct PhiloxLanes {
    static constexpr int count = 16;
    std::uint32_t words[4][count];
};

// Each lane's counter to its four words, in place, under the key (seed low, seed high).
inline void philox(std::uint64_t seed, PhiloxLanes& lanes) noexcept {
    std::uint32_t key0 = static_cast<std::uint32_t>(seed);
    std::uint32_t key1 = static_cast<std::uint32_t>(seed >> 32);
    auto& w = lanes.words;
    for (int round = 0; round < 10; ++round, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
        for (int lane = 0; lane < PhiloxLanes::count; ++lane) {
            const std::uint64_t product0 = std::uint64_t{0xD2511F53u} * w[0][lane];
            const std::uint64_t product1 = std::uint64_t{0xCD9E8D57u} * w[2][lane];
            w[0][lane] = static_cast<std::uint32_t>(product1 >> 32) ^ w[1][lane] ^ key0;
            w[1][lane] = static_cast<std::uint32_t>(product1);
            w[2][lane] = static_cast<std::uint32_t>(product0 >> 32) ^ w[3][lane] ^ key1;
            w[3][lane] = static_cast<std::uint32_t>(product0);
        }
    }
}

}  // namespace vapo_fast
