// The extension's kernels for the instruction set 'avx512'.
#include "simd/instruction_set.h"

#if defined(VAPO_FAST_X86_BUILDS)
#define VAPO_FAST_ISA_AVX512
#include "simd/every_kernel.h"
#endif
