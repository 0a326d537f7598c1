// The kernels of an MLP potential for the instruction set 'avx512'.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "mlp/kernels.h"

#if defined(VAPO_FAST_X86_BUILDS)

#define VAPO_FAST_ISA_AVX512
#include "simd/isa_begin.h"
#include "mlp/kernels_table.h"
#include "simd/isa_end.h"

#endif
