// The kernels of minimal filtering for the instruction set 'baseline'.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "simd/activation.h"
#include "mlp/mlp.h"
#include "image/winograd_table.h"

#include "simd/isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "image/winograd_kernels.h"
#include "simd/isa_end.h"
