// The functions of simd/math.h on arrays, for tests of their accuracy.
#pragma once

#include <cstdint>
#include <string>

#include "simd/dispatch.h"

namespace vapo_fast {

enum class ElementwiseFunction {
    exp,
    log,
    sigmoid,
    cos_turns,
    sin_turns,
    silu,
    silu_first,
    silu_second,
    softplus,
    softplus_first,
    softplus_second,
    tanh,
    tanh_first,
    tanh_second,
};

// Throws std::invalid_argument for a name that is none of the above.
ElementwiseFunction elementwise_function_named(const std::string& name);

template <class T>
struct ElementwiseTable {
    // out[i] = function(x[i]) for i < n; x may be out.
    void (*apply)(ElementwiseFunction function, const T* x, T* out, std::int64_t n);
};

}  // namespace vapo_fast
