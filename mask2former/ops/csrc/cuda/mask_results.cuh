// What the kernels that make results of mask logits share: a call's tensors and sizes, and the rows of a block.
#pragma once

#include <cuda_runtime.h>

#include "../bilinear.h"
#include "../common.h"
#include "entries.h"

namespace mask2former {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

struct Geometry {
  Axis rows, columns;
};

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// Lines of the block's rows, in shared memory; rows below the output repeat the last one.
template <bool Twice, int Rows>
__device__ void place_rows(const Axis& axis, int first, int end, Line (&lines)[Rows]) {
  if (threadIdx.x < Rows) lines[threadIdx.x] = line_of<Twice>(axis, min(first + static_cast<int>(threadIdx.x), end - 1));
  __syncthreads();
}

template <bool Twice>
__device__ __forceinline__ bool same_rows(const Line& a, const Line& b) {
  bool same = a.at[0] == b.at[0] && a.at[1] == b.at[1];
  if (Twice) same = same && a.at[2] == b.at[2] && a.at[3] == b.at[3];
  return same;
}

inline Axis axis_of(int64_t logits, int64_t padded, int64_t image, int64_t output) {
  return {static_cast<int>(logits), static_cast<int>(image), static_cast<int>(output),
          static_cast<float>(logits) / static_cast<float>(padded), static_cast<float>(image) / static_cast<float>(output)};
}

// The logits of a call, contiguous and in fp32, and its sizes. Python has checked them with better words.
struct Call {
  Tensor logits;
  Geometry geometry;
  int count;
  bool twice;

  Call(const Tensor& given, const std::vector<int64_t>& padded, const std::vector<int64_t>& image,
       const std::vector<int64_t>& output)
      : logits(prepared(given, ScalarType::Float)) {
    STD_TORCH_CHECK(logits.is_cuda() && logits.dim() == 3, "logits must be (N, H4, W4) on a GPU");
    STD_TORCH_CHECK(padded.size() == 2 && image.size() == 2 && output.size() == 2, "sizes must be (h, w)");
    for (int i = 0; i < 2; ++i)
      STD_TORCH_CHECK(logits.size(i + 1) > 0 && 0 < image[i] && image[i] <= padded[i] && 0 < output[i] &&
                          padded[i] < (1 << 24) && output[i] <= (1 << 17),
                      "sizes are out of range");
    STD_TORCH_CHECK(logits.size(1) * logits.size(2) < (int64_t{1} << 31) && logits.size(0) < (1 << 16),
                    "too many logits");
    count = static_cast<int>(logits.size(0));
    geometry.rows = axis_of(logits.size(1), padded[0], image[0], output[0]);
    geometry.columns = axis_of(logits.size(2), padded[1], image[1], output[1]);
    twice = image != output;
  }

  const float* values() const { return static_cast<const float*>(logits.const_data_ptr()); }

  // Blocks of `rows_of_block` x `columns_of_block` pixels.
  dim3 grid(int64_t rows, int rows_of_block, int64_t masks, int columns_of_block = kThreads) const {
    const int columns = geometry.columns.output;
    return dim3((columns + columns_of_block - 1) / columns_of_block,
                static_cast<unsigned>((rows + rows_of_block - 1) / rows_of_block), static_cast<unsigned>(masks));
  }
};

}  // namespace
}  // namespace mask2former
