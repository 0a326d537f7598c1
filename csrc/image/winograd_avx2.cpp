// The kernels of minimal filtering for the instruction set 'avx2'.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd/activation.h"
#include "mlp/mlp.h"
#include "image/winograd_table.h"

#if defined(VAPO_FAST_X86_BUILDS)

#define VAPO_FAST_ISA_AVX2
#include "simd/isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "image/winograd_kernels.h"
#include "simd/isa_end.h"

#endif
