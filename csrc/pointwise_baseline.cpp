#include "activation.h"
#include "pointwise_table.h"

#include "isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "pointwise_kernels.h"
#include "isa_end.h"
