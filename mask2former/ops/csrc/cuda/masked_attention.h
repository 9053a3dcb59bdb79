// Masked attention as masked_attention_op.cu sees it: plain descriptions of calls, and functions that run them.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mask2former {

constexpr int kHeadChannels = 32;

// Strides in elements; the last dimension is contiguous.
struct HeadStrides {
  int64_t batch;
  int64_t head;
  int64_t row;
};

// Device memory: query (B, heads, N, 32), key and value (B, heads, S, 32) with rows of 16-byte alignment, blocked
// (B, N, S) of bytes 0 or 1. `sums` and `norms` are memory to work with, if splits > 1: 32 floats and 2 floats for each
// image, head, query and split.
struct MaskedAttention {
  const void* query;
  const void* key;
  const void* value;
  const uint8_t* blocked;
  void* out;  // (B, N, heads * 32), contiguous
  float* sums;
  float2* norms;
  HeadStrides query_strides, key_strides, value_strides;
  int64_t blocked_batch, blocked_row;  // strides
  int batch, heads, queries, keys;
  int splits;           // thread blocks that share the keys of one head
  bool blocked_aligned;  // rows of `blocked` start at multiples of 16 bytes
  bool half;            // fp16 instead of bf16
  bool overlap;         // the GPU knows programmatic dependent launch
};

// The number of splits that uses `multiprocessors` best.
int best_splits(const MaskedAttention& call, int multiprocessors);
cudaError_t masked_attention(const MaskedAttention& call, cudaStream_t stream);

// blocked[row][i] = sigmoid(logits[row][i]) < 0.5, but rows that are blocked everywhere become open everywhere. Both are
// contiguous.
cudaError_t blocked_keys(const float* logits, uint8_t* blocked, int64_t rows, int64_t keys, cudaStream_t stream);

}  // namespace mask2former
