// Reading of masks at points as library.cu sees it: one plain description of a call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mask2former {

// Pointers to contiguous device memory. `data` holds masks one after another, uint8 or, if `soft`, fp32; `table` (3,
// masks) has the start, height and width of each. Row r of `out` (rows, points) reads mask index[r] at row point_rows[r]
// of `places` (sets, points, 2); without point_rows at row r, or at the only one. Places are (x, y) in [0, 1] of an image
// of height x width, in whose upper left corner the masks lie.
struct MaskSampling {
  const void* data;
  bool soft;
  bool large;  // 2^31 values or more, so that a mask may have as many
  const int64_t* table;
  const int64_t* index;
  const int64_t* point_rows;
  const float* places;
  float* out;
  int64_t masks, rows, points, sets;
  float height, width;
};

cudaError_t sample_masks(const MaskSampling& call, cudaStream_t stream);

}  // namespace mask2former
