// Collects the kernels of the instruction set that the including file is built for; see kernels_*.cpp.
#pragma once

#include "mlp/field_kernel.h"
#include "mlp/loss_kernel.h"
#include "testing/rates_kernels.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

template <class T>
const Kernels<T>& table() {
    static constexpr Kernels<T> kernels = {
        Vec<T>::lanes,        tile_rows,          &field_workspace<T>,   &field<T>,
        &loss_workspace<T>,   &loss<T>,           multiply_add_chains,   multiply_adds_a_turn,
        &multiply_adds<T>,    &repeat_product<T>, &repeat_activation<T>,
    };
    return kernels;
}

template const Kernels<float>& table<float>();
template const Kernels<double>& table<double>();

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
