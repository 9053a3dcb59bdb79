// The kernels for what every machine of the architecture has (SSE2, NEON).
#define MASK2FORMER_ISA kBaseline
#define MASK2FORMER_ISA_NAME "baseline"
#define MASK2FORMER_VECTOR_BYTES 16
#include "kernel.inl"
