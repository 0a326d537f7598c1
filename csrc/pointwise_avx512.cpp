#include "instruction_set.h"

#if defined(VAPO_FAST_X86_BUILDS)
#include "activation.h"
#include "pointwise_table.h"

#define VAPO_FAST_ISA_AVX512
#include "isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "pointwise_kernels.h"
#include "isa_end.h"

#endif
