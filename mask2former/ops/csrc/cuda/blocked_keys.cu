// Attention masks of mask logits: one comparison, and rows without an open key are opened, in one pass.
#include "masked_attention.h"

namespace mask2former {
namespace {

constexpr int kMaskThreads = 512;

// As torch computes it, so that the comparison is the same for logits next to 0.
__device__ __forceinline__ bool is_blocked(float logit) { return 1.0f / (1.0f + expf(-logit)) < 0.5f; }

// A block takes one row. kVector: 4 logits at once, in rows of a multiple of 4.
template <int kVector>
__global__ void __launch_bounds__(kMaskThreads) blocked_keys_kernel(const float* logits, uint8_t* blocked,
                                                                    int64_t keys) {
  logits += blockIdx.x * keys;
  blocked += blockIdx.x * keys;
  const int64_t number = keys / kVector;
  bool open = false;
#pragma unroll 4
  for (int64_t i = threadIdx.x; i < number; i += kMaskThreads) {
    if (kVector == 4) {
      const float4 x = __ldcs(reinterpret_cast<const float4*>(logits) + i);
      const uint32_t word = is_blocked(x.x) | is_blocked(x.y) << 8 | is_blocked(x.z) << 16 | is_blocked(x.w) << 24;
      open |= word != 0x01010101u;
      reinterpret_cast<uint32_t*>(blocked)[i] = word;
    } else {
      const bool byte = is_blocked(__ldcs(logits + i));
      open |= !byte;
      blocked[i] = byte;
    }
  }
  if (__syncthreads_or(open)) return;
  for (int64_t i = threadIdx.x; i < keys; i += kMaskThreads) blocked[i] = 0;
}

}  // namespace

cudaError_t blocked_keys(const float* logits, uint8_t* blocked, int64_t rows, int64_t keys, cudaStream_t stream) {
  if (rows > INT32_MAX) return cudaErrorInvalidConfiguration;
  const auto address = reinterpret_cast<uintptr_t>(logits) | reinterpret_cast<uintptr_t>(blocked);
  const bool vector = keys % 4 == 0 && address % 16 == 0;
  (vector ? blocked_keys_kernel<4> : blocked_keys_kernel<1>)<<<static_cast<unsigned>(rows), kMaskThreads, 0, stream>>>(
      logits, blocked, keys);
  return cudaGetLastError();
}

}  // namespace mask2former
