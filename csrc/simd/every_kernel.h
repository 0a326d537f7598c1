// Every kernel of the extension, for the instruction set that the including file has named; see isa_begin.h.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "image/pointwise_table.h"
#include "image/winograd_table.h"
#include "mlp/kernels.h"

#include "simd/isa_begin.h"

#include "image/pointwise_kernels.h"
#include "image/winograd_kernels.h"
#include "mlp/field_kernel.h"
#include "mlp/loss_kernel.h"
#include "mlp/fill_kernels.h"

#include "simd/isa_end.h"
