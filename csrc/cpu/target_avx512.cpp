#define FASTRNN_VECTOR_BYTES 64
#include "engine-inl.h"

namespace fastrnn {
const Kernels kernels_avx512 = kKernels;
}
