// The extension's kernels for the instruction set 'avx2'.
#include "simd/instruction_set.h"

#if defined(VAPO_FAST_X86_BUILDS)
#define VAPO_FAST_ISA_AVX2
#include "simd/every_kernel.h"
#endif
