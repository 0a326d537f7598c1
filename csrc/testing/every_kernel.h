// Every kernel of the testing extension, for the instruction set that the including file has named; see isa_begin.h.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "mlp/kernels.h"
#include "testing/elementwise.h"
#include "testing/rates_table.h"

#include "simd/isa_begin.h"

#include "testing/elementwise_kernels.h"
#include "testing/rates_kernels.h"

#include "simd/isa_end.h"
