#include "mlp/kernels.h"

namespace vapo_fast {

namespace baseline {
template <class T>
const Kernels<T>& table();
}
#if defined(VAPO_FAST_X86_BUILDS)
namespace avx2 {
template <class T>
const Kernels<T>& table();
}
namespace avx512 {
template <class T>
const Kernels<T>& table();
}
#endif

template <class T>
const Kernels<T>& kernels(InstructionSet instruction_set) {
#if defined(VAPO_FAST_X86_BUILDS)
    if (instruction_set == InstructionSet::avx512) return avx512::table<T>();
    if (instruction_set == InstructionSet::avx2) return avx2::table<T>();
#else
    (void)instruction_set;
#endif
    return baseline::table<T>();
}

template const Kernels<float>& kernels(InstructionSet);
template const Kernels<double>& kernels(InstructionSet);

template <class T>
MlpGradient<T>::MlpGradient(const PackedMlp<T>& mlp) {
    const MlpShape& shape = mlp.shape();
    const auto padded = [&](int columns) {
        return static_cast<std::size_t>((columns + mlp.lanes() - 1) / mlp.lanes() * mlp.lanes());
    };
    for (int l = 0; l < shape.layers(); ++l) {
        stride.push_back(mlp.stride(shape.size(l)));
        weight.push_back(size);
        size += static_cast<std::size_t>(shape.size(l + 1)) * static_cast<std::size_t>(stride.back());
        bias.push_back(size);
        size += padded(shape.size(l + 1));
    }
    output = size;
    size += padded(shape.size(shape.layers()));
}

template struct MlpGradient<float>;
template struct MlpGradient<double>;

}  // namespace vapo_fast
