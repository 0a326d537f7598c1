#include "simd/instruction_set.h"

#if defined(VAPO_FAST_X86_BUILDS)
#include "simd/activation.h"
#include "image/pointwise_table.h"

#define VAPO_FAST_ISA_AVX2
#include "simd/isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "image/pointwise_kernels.h"
#include "simd/isa_end.h"

#endif
