#include "random/draws.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "core/elementary.h"
#include "random/philox.h"

namespace vapo_fast {
namespace {

// Words made at a time: enough for efficient loops, few enough for the first-level cache.
constexpr int kWords = 1024;

// The random words of samples, `size` words for each, one sample after the other. Lanes hold blocks of several samples
// at once, so that samples of one block (points of the plane) fill all lanes too.
class WordStream {
public:
    WordStream(const Draws& draws, std::int64_t size)
        : draws_(draws), size_(size), blocks_((size + 3) / 4), last_(static_cast<int>(size - 4 * (blocks_ - 1))) {}

    // Writes up to kWords words, always whole blocks or a sample's last words; returns how many, 0 at the end.
    int next(std::uint32_t* words) noexcept {
        int filled = 0;
        while (sample_ < draws_.samples && filled + 4 * PhiloxLanes::count <= kWords) {
            int keep[PhiloxLanes::count];
            int lanes = 0;
            for (; lanes < PhiloxLanes::count && sample_ < draws_.samples; ++lanes) {
                const std::uint64_t index = static_cast<std::uint64_t>(draws_.index[sample_]);
                lanes_.words[0][lanes] = static_cast<std::uint32_t>(block_);
                lanes_.words[1][lanes] = static_cast<std::uint32_t>(index);
                lanes_.words[2][lanes] = static_cast<std::uint32_t>(index >> 32);
                lanes_.words[3][lanes] = draws_.stream;
                keep[lanes] = 4;
                if (++block_ == blocks_) {
                    keep[lanes] = last_;
                    block_ = 0;
                    ++sample_;
                }
            }
            philox(draws_.seed, lanes_);
            for (int lane = 0; lane < lanes; ++lane) {
                // All four are written; the next lane overwrites those that are not kept. `words` has room for them.
                for (int word = 0; word < 4; ++word) words[filled + word] = lanes_.words[word][lane];
                filled += keep[lane];
            }
        }
        return filled;
    }

private:
    const Draws draws_;
    const std::int64_t size_, blocks_;
    const int last_;  // words kept of a sample's last block
    std::int64_t sample_ = 0, block_ = 0;
    PhiloxLanes lanes_{};
};

// (word + 1/2) 2^-32, exact.
inline double open_uniform(std::uint32_t word) { return (static_cast<double>(word) + 0.5) * 0x1p-32; }

// Pairs of words to pairs of normal numbers. The loop's index is a size_t: with Python's own flags (-fwrapv) an int may
// wrap around, which keeps compilers from vectorising the loop.
template <class T>
void box_muller(const std::uint32_t* words, std::size_t pairs, T* out) noexcept {
    for (std::size_t i = 0; i < pairs; ++i) {
        const double radius = std::sqrt(-2.0 * portable_log(open_uniform(words[2 * i])));
        double cosine, sine;
        portable_cos_sin_turns(open_uniform(words[2 * i + 1]), cosine, sine);
        out[2 * i] = static_cast<T>(radius * cosine);
        out[2 * i + 1] = static_cast<T>(radius * sine);
    }
}

}  // namespace

template <class T>
void draw_normal(const Draws& draws, T* out) noexcept {
    const std::int64_t padded = (draws.size + 1) / 2 * 2;  // numbers come in pairs
    WordStream stream(draws, padded);
    std::uint32_t words[kWords];
    T values[kWords];
    std::int64_t column = 0;
    while (const int count = stream.next(words)) {
        if (padded == draws.size) {
            box_muller(words, static_cast<std::size_t>(count) / 2, out);
            out += count;
            continue;
        }
        box_muller(words, static_cast<std::size_t>(count) / 2, values);
        for (int i = 0; i < count; ++i) {
            if (column < draws.size) *out++ = values[i];
            if (++column == padded) column = 0;
        }
    }
}

template <class T>
void draw_uniform(const Draws& draws, T* out) noexcept {
    // The largest word may round to 1; no word rounds to 0.
    constexpr T below_one = T{1} - std::numeric_limits<T>::epsilon() / 2;
    WordStream stream(draws, draws.size);
    std::uint32_t words[kWords];
    while (const int count = stream.next(words)) {
        for (int i = 0; i < count; ++i) out[i] = std::min(static_cast<T>(open_uniform(words[i])), below_one);
        out += count;
    }
}

template void draw_normal<float>(const Draws&, float*) noexcept;
template void draw_normal<double>(const Draws&, double*) noexcept;
template void draw_uniform<float>(const Draws&, float*) noexcept;
template void draw_uniform<double>(const Draws&, double*) noexcept;

void permutation(std::uint64_t seed, std::uint32_t stream, std::int64_t epoch, std::int64_t n, std::int64_t* out) {
    struct Item {
        std::uint64_t key;
        std::int64_t number;
        bool operator<(const Item& other) const { return key != other.key ? key < other.key : number < other.number; }
    };
    if (n == 0) return;
    // Keys are uniform, so after a distribution into about n / 4 ranges, each range has few to sort.
    int bits = 0;
    while (bits < 20 && (std::int64_t{8} << bits) <= n) ++bits;
    std::vector<std::int64_t> start((std::size_t{1} << bits) + 1);
    const auto range = [bits](std::uint64_t key) {
        return bits == 0 ? std::size_t{0} : static_cast<std::size_t>(key >> (64 - bits));
    };
    std::vector<std::uint64_t> keys(static_cast<std::size_t>(n));
    std::uint32_t words[kWords];
    WordStream word_stream({seed, stream, &epoch, 1, 2 * n}, 2 * n);
    std::uint64_t* key = keys.data();
    while (const int count = word_stream.next(words)) {
        for (int i = 0; i < count; i += 2, ++key) {
            // With the top bit flipped, unsigned comparison orders the keys as signed numbers.
            *key = (std::uint64_t{words[i]} << 32 | words[i + 1]) ^ (std::uint64_t{1} << 63);
            ++start[range(*key) + 1];
        }
    }
    for (std::size_t i = 1; i < start.size(); ++i) start[i] += start[i - 1];
    std::vector<std::int64_t> end(start.begin(), start.end() - 1);
    std::vector<Item> items(static_cast<std::size_t>(n));
    for (std::int64_t i = 0; i < n; ++i) {
        const std::uint64_t each = keys[static_cast<std::size_t>(i)];
        items[static_cast<std::size_t>(end[range(each)]++)] = {each, i};
    }
    for (std::size_t i = 0; i < end.size(); ++i) std::sort(items.begin() + start[i], items.begin() + end[i]);
    for (std::int64_t i = 0; i < n; ++i) out[i] = items[static_cast<std::size_t>(i)].number;
}

}  // namespace vapo_fast
