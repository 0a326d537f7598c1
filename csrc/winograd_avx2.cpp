// The kernels of minimal filtering for the instruction set 'avx2'.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "activation.h"
#include "mlp.h"
#include "winograd_table.h"

#if defined(VAPO_FAST_X86_BUILDS)

#define VAPO_FAST_ISA_AVX2
#include "isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "winograd_kernels.h"
#include "isa_end.h"

#endif
