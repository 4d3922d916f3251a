#define FASTRNN_VECTOR_BYTES 16
#include "engine-inl.h"

namespace fastrnn {
const Kernels kernels_generic = kKernels;
}
