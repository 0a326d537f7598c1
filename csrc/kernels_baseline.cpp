// The kernels of an MLP potential for the instruction set 'baseline'.
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#include "kernels.h"

#include "isa_begin.h"
#include "kernels_table.h"
#include "isa_end.h"
