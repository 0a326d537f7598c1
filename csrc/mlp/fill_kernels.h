// The table of an MLP's kernels for one instruction set; see isa_begin.h for how it is included.
#pragma once

#include "mlp/field_kernel.h"
#include "mlp/loss_kernel.h"

namespace vapo_fast {
namespace VAPO_FAST_ISA {

template <class T>
struct Fill<Kernels<T>> {
    static constexpr Kernels<T> table() {
        Kernels<T> kernels{};
        kernels.lanes = Vec<T>::lanes;
        kernels.tile = tile_rows;
        kernels.field_workspace = &field_workspace<T>;
        kernels.field = &field<T>;
        kernels.loss_workspace = &loss_workspace<T>;
        kernels.loss = &loss<T>;
        return kernels;
    }
};

template const Kernels<float>& table();
template const Kernels<double>& table();

}  // namespace VAPO_FAST_ISA
}  // namespace vapo_fast
