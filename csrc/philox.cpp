#include "philox.h"

namespace vapo_fast {
namespace {

constexpr std::uint32_t kMultiplier0 = 0xD2511F53u;
constexpr std::uint32_t kMultiplier1 = 0xCD9E8D57u;
constexpr std::uint32_t kWeyl0 = 0x9E3779B9u;
constexpr std::uint32_t kWeyl1 = 0xBB67AE85u;
constexpr int kRounds = 10;
// Counters computed side by side: independent lanes in arrays are what a compiler turns into vector instructions.
constexpr int kLanes = 8;

struct Lanes {
    std::uint32_t words[4][kLanes];
};

void philox_rounds(std::uint64_t seed, Lanes& lanes) noexcept {
    std::uint32_t key0 = static_cast<std::uint32_t>(seed);
    std::uint32_t key1 = static_cast<std::uint32_t>(seed >> 32);
    auto& w = lanes.words;
    for (int round = 0; round < kRounds; ++round, key0 += kWeyl0, key1 += kWeyl1) {
        for (int lane = 0; lane < kLanes; ++lane) {
            const std::uint64_t product0 = static_cast<std::uint64_t>(kMultiplier0) * w[0][lane];
            const std::uint64_t product1 = static_cast<std::uint64_t>(kMultiplier1) * w[2][lane];
            w[0][lane] = static_cast<std::uint32_t>(product1 >> 32) ^ w[1][lane] ^ key0;
            w[1][lane] = static_cast<std::uint32_t>(product1);
            w[2][lane] = static_cast<std::uint32_t>(product0 >> 32) ^ w[3][lane] ^ key1;
            w[3][lane] = static_cast<std::uint32_t>(product0);
        }
    }
}

}  // namespace

void philox_words(std::uint64_t seed, const std::int64_t* index, std::int64_t n, std::uint32_t blocks,
                  std::uint32_t stream, std::uint32_t* out) noexcept {
    if (blocks == 0) return;
    Lanes lanes{};
    std::int64_t row = 0;
    std::uint32_t block = 0;
    while (row < n) {
        // Lanes run on from one sample into the next, so that events of one block (points of the plane) fill them too.
        int filled = 0;
        for (; filled < kLanes && row < n; ++filled) {
            const std::uint64_t bits = static_cast<std::uint64_t>(index[row]);
            lanes.words[0][filled] = block;
            lanes.words[1][filled] = static_cast<std::uint32_t>(bits);
            lanes.words[2][filled] = static_cast<std::uint32_t>(bits >> 32);
            lanes.words[3][filled] = stream;
            if (++block == blocks) {
                block = 0;
                ++row;
            }
        }
        philox_rounds(seed, lanes);
        for (int lane = 0; lane < filled; ++lane) {
            for (int word = 0; word < 4; ++word) *out++ = lanes.words[word][lane];
        }
    }
}

}  // namespace vapo_fast
