// Bilinear reading at a point, (x, y) in [0, 1] of an image. No product is fused with a sum, so that the numbers are those
// of the code in PyTorch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mask2former {

// The upper left of the four pixels around a point, and how far the point is from it.
struct Corner {
  int row, column;
  float dy, dx;
};

__device__ __forceinline__ Corner corner_of(float2 place, float height, float width) {
  const float x = __fsub_rn(__fmul_rn(place.x, width), 0.5f);
  const float y = __fsub_rn(__fmul_rn(place.y, height), 0.5f);
  const float left = floorf(x), top = floorf(y);
  return {static_cast<int>(top), static_cast<int>(left), __fsub_rn(y, top), __fsub_rn(x, left)};
}

// Of the four pixels (bit 0: right, bit 1: below): the share in the mean, and whether it lies in a map.
__device__ __forceinline__ float share_of(const Corner& c, int pixel) {
  const float row = pixel / 2 ? c.dy : __fsub_rn(1.0f, c.dy), column = pixel % 2 ? c.dx : __fsub_rn(1.0f, c.dx);
  return __fmul_rn(row, column);
}

__device__ __forceinline__ bool lies_in(const Corner& c, int pixel, int height, int width) {
  return static_cast<unsigned>(c.row) + pixel / 2 < static_cast<unsigned>(height) &&
         static_cast<unsigned>(c.column) + pixel % 2 < static_cast<unsigned>(width);
}

// Zero outside of the map, whose places are numbers of type Index.
template <class Index, class T>
__device__ __forceinline__ float read_at(const T* map, int height, int width, const Corner& c) {
  float sum = 0.0f;
#pragma unroll
  for (int pixel = 0; pixel < 4; ++pixel) {
    const Index place = static_cast<Index>(c.row + pixel / 2) * width + c.column + pixel % 2;
    const float value = lies_in(c, pixel, height, width) ? static_cast<float>(map[place]) : 0.0f;
    sum = __fadd_rn(sum, __fmul_rn(share_of(c, pixel), value));
  }
  return sum;
}

}  // namespace mask2former
