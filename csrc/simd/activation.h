// The activations that MLP potentials offer, by the names that vapo_fast.MLPPotential takes.
#pragma once

#include <stdexcept>
#include <string>

namespace vapo_fast {

enum class Activation { silu, softplus, tanh };

// Throws std::invalid_argument for any other name.
inline Activation activation_named(const std::string& name) {
    if (name == "silu") return Activation::silu;
    if (name == "softplus") return Activation::softplus;
    if (name == "tanh") return Activation::tanh;
    throw std::invalid_argument("activation must be 'silu', 'softplus' or 'tanh', got '" + name + "'");
}

}  // namespace vapo_fast
