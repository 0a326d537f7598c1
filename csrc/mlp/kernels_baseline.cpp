// The kernels of an MLP potential for the instruction set 'baseline'.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "mlp/kernels.h"

#include "simd/isa_begin.h"
#include "mlp/kernels_table.h"
#include "simd/isa_end.h"
