#include "simd/activation.h"
#include "image/pointwise_table.h"

#include "simd/isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "image/pointwise_kernels.h"
#include "simd/isa_end.h"
