#include "philox.h"

namespace vapo_fast {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53u;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;
// Blocks computed side by side: independent counters in arrays are what a compiler turns into vector instructions.
constexpr std::uint32_t kLanes = 8;

void philox_lanes(std::uint64_t seed, std::uint32_t first_block, std::uint64_t index, std::uint32_t stream,
                  std::uint32_t words[4][kLanes]) noexcept {
    std::uint32_t key0 = static_cast<std::uint32_t>(seed);
    std::uint32_t key1 = static_cast<std::uint32_t>(seed >> 32);
    for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
        words[0][lane] = first_block + lane;
        words[1][lane] = static_cast<std::uint32_t>(index);
        words[2][lane] = static_cast<std::uint32_t>(index >> 32);
        words[3][lane] = stream;
    }
    for (int round = 0; round < kRounds; ++round, key0 += kWeyl0, key1 += kWeyl1) {
        for (std::uint32_t lane = 0; lane < kLanes; ++lane) {
            const std::uint64_t product0 = static_cast<std::uint64_t>(kMultiplier0) * words[0][lane];
            const std::uint64_t product1 = static_cast<std::uint64_t>(kMultiplier1) * words[2][lane];
            words[0][lane] = static_cast<std::uint32_t>(product1 >> 32) ^ words[1][lane] ^ key0;
            words[1][lane] = static_cast<std::uint32_t>(product1);
            words[2][lane] = static_cast<std::uint32_t>(product0 >> 32) ^ words[3][lane] ^ key1;
            words[3][lane] = static_cast<std::uint32_t>(product0);
        }
    }
}

}  // namespace

void philox_words(std::uint64_t seed, const std::int64_t* index, std::int64_t n, std::uint32_t blocks,
                  std::uint32_t stream, std::uint32_t* out) noexcept {
    std::uint32_t words[4][kLanes];
    for (std::int64_t row = 0; row < n; ++row) {
        for (std::uint32_t block = 0; block < blocks; block += kLanes) {
            philox_lanes(seed, block, static_cast<std::uint64_t>(index[row]), stream, words);
            const std::uint32_t lanes = blocks - block < kLanes ? blocks - block : kLanes;
            for (std::uint32_t lane = 0; lane < lanes; ++lane) {
                for (int word = 0; word < 4; ++word) *out++ = words[word][lane];
            }
            // `block += kLanes` would wrap for block counts near 2^32.
            if (blocks - block <= kLanes) break;
        }
    }
}

}  // namespace vapo_fast
