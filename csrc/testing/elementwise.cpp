#include "testing/elementwise.h"

#include <stdexcept>
#include <utility>

namespace vapo_fast {

// Instantiated in elementwise_*.cpp, each compiled for its own instructions.
namespace baseline {
template <class T>
void elementwise(ElementwiseFunction function, const T* x, T* out, std::int64_t n);
}
#if defined(VAPO_FAST_X86_BUILDS)
namespace avx2 {
template <class T>
void elementwise(ElementwiseFunction function, const T* x, T* out, std::int64_t n);
}
namespace avx512 {
template <class T>
void elementwise(ElementwiseFunction function, const T* x, T* out, std::int64_t n);
}
#endif

ElementwiseFunction elementwise_function_named(const std::string& name) {
    using E = ElementwiseFunction;
    static constexpr std::pair<const char*, E> functions[] = {
        {"exp", E::exp},
        {"log", E::log},
        {"sigmoid", E::sigmoid},
        {"cos_turns", E::cos_turns},
        {"sin_turns", E::sin_turns},
        {"silu", E::silu},
        {"silu_first", E::silu_first},
        {"silu_second", E::silu_second},
        {"softplus", E::softplus},
        {"softplus_first", E::softplus_first},
        {"softplus_second", E::softplus_second},
        {"tanh", E::tanh},
        {"tanh_first", E::tanh_first},
        {"tanh_second", E::tanh_second},
    };
    std::string known;
    for (const auto& [known_name, function] : functions) {
        if (name == known_name) return function;
        known += (known.empty() ? "'" : ", '") + std::string(known_name) + "'";
    }
    throw std::invalid_argument("function must be one of " + known + ", got '" + name + "'");
}

template <class T>
void elementwise(ElementwiseFunction function, const T* x, T* out, std::int64_t n, InstructionSet instruction_set) {
#if defined(VAPO_FAST_X86_BUILDS)
    if (instruction_set == InstructionSet::avx512) return avx512::elementwise(function, x, out, n);
    if (instruction_set == InstructionSet::avx2) return avx2::elementwise(function, x, out, n);
#else
    (void)instruction_set;  // there is but one
#endif
    baseline::elementwise(function, x, out, n);
}

template void elementwise<float>(ElementwiseFunction, const float*, float*, std::int64_t, InstructionSet);
template void elementwise<double>(ElementwiseFunction, const double*, double*, std::int64_t, InstructionSet);

}  // namespace vapo_fast
