#include "activation.h"
#include "elementwise.h"

#include "isa_begin.h"
// Everything from here on is compiled for one instruction set.
#include "elementwise_kernels.h"
#include "isa_end.h"
