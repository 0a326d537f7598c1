// How often this program has allocated memory with new.
#pragma once

#include <cstdint>

namespace vapo_fast {
namespace tests {

std::int64_t allocations();

}  // namespace tests
}  // namespace vapo_fast
