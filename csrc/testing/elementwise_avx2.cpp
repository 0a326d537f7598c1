#include "simd/instruction_set.h"

#if defined(VAPO_FAST_X86_BUILDS)
#include "simd/activation.h"
#include "testing/elementwise.h"

#define VAPO_FAST_ISA_AVX2
#include "simd/isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "testing/elementwise_kernels.h"
#include "simd/isa_end.h"

#endif
