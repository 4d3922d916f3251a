#define FASTRNN_VECTOR_BYTES 32
#include "engine-inl.h"

namespace fastrnn {
const Kernels kernels_avx2 = kKernels;
}
