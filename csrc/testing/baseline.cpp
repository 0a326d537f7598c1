// The testing extension's kernels for what every processor of the architecture has.
#include "testing/every_kernel.h"
