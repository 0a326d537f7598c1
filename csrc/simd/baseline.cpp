// The extension's kernels for what every processor of the architecture has.
#include "simd/every_kernel.h"
