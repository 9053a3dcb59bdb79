// The kernels for AVX-512 F, BW, DQ, VL and FMA.
#define MASK2FORMER_ISA kAvx512
#define MASK2FORMER_ISA_NAME "avx512"
#define MASK2FORMER_VECTOR_BYTES 64
#include "kernel.inl"
