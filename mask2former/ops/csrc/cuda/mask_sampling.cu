// Bilinear reading of masks at points: a thread for each point. No product is fused with a sum, so that the numbers are
// those of the code in PyTorch.
#include "mask_sampling.h"

namespace mask2former {
namespace {

constexpr int kThreads = 256;

template <class T>
__global__ void sample_kernel(const __grid_constant__ MaskSampling call, int64_t blocks_of_row) {
  const int64_t row = blockIdx.x / blocks_of_row;
  const int64_t point = blockIdx.x % blocks_of_row * kThreads + threadIdx.x;
  if (point >= call.points) return;
  const int64_t mask = call.index[row];
  const int64_t start = call.table[mask];
  const int64_t height = call.table[call.masks + mask], width = call.table[2 * call.masks + mask];
  const int64_t set = call.point_rows ? call.point_rows[row] : call.sets == 1 ? 0 : row;
  const float2 place = __ldg(reinterpret_cast<const float2*>(call.places) + set * call.points + point);
  const float x = __fsub_rn(__fmul_rn(place.x, call.width), 0.5f);
  const float y = __fsub_rn(__fmul_rn(place.y, call.height), 0.5f);
  const float left = floorf(x), top = floorf(y);
  const float dx = __fsub_rn(x, left), dy = __fsub_rn(y, top);
  const int64_t first_row = static_cast<int64_t>(top), first_column = static_cast<int64_t>(left);
  float sum = 0.0f;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    const int64_t r = first_row + corner / 2, c = first_column + corner % 2;
    const float row_weight = corner / 2 ? dy : __fsub_rn(1.0f, dy);
    const float column_weight = corner % 2 ? dx : __fsub_rn(1.0f, dx);
    const bool inside = r >= 0 && r < height && c >= 0 && c < width;
    const float value = inside ? static_cast<float>(static_cast<const T*>(call.data)[start + r * width + c]) : 0.0f;
    sum = __fadd_rn(sum, __fmul_rn(__fmul_rn(row_weight, column_weight), value));
  }
  call.out[row * call.points + point] = sum;
}

}  // namespace

cudaError_t sample_masks(const MaskSampling& call, cudaStream_t stream) {
  const int64_t blocks_of_row = (call.points + kThreads - 1) / kThreads, blocks = blocks_of_row * call.rows;
  if (blocks == 0) return cudaSuccess;
  if (blocks >= 1ll << 31) return cudaErrorInvalidConfiguration;
  auto kernel = call.soft ? sample_kernel<float> : sample_kernel<uint8_t>;
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(call, blocks_of_row);
  return cudaGetLastError();
}

}  // namespace mask2former
