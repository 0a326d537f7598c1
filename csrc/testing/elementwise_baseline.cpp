#include "simd/activation.h"
#include "testing/elementwise.h"

#include "simd/isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "testing/elementwise_kernels.h"
#include "simd/isa_end.h"
