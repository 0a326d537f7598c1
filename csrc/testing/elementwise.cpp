#include "testing/elementwise.h"

#include <stdexcept>
#include <utility>

namespace vapo_fast {

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

}  // namespace vapo_fast
