#pragma once

#include <cstdint>

namespace vapo_fast {

// The upper half of a float's bits.
struct BFloat16 {
    std::uint16_t bits;
};

}  // namespace vapo_fast
