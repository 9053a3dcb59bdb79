// The kernels for AVX2 and FMA.
#define MASK2FORMER_ISA kAvx2
#define MASK2FORMER_ISA_NAME "avx2"
#define MASK2FORMER_VECTOR_BYTES 32
#include "kernel.inl"
