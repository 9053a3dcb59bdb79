// Bilinear reading of masks at points: a thread for each point.
#include "mask_sampling.h"

#include "point_reading.cuh"

namespace mask2former {
namespace {

constexpr int kThreads = 256;

template <class T, class Index>
__global__ void sample_kernel(const __grid_constant__ MaskSampling call, int64_t blocks_of_row) {
  const int64_t row = blockIdx.x / blocks_of_row;
  const int64_t point = blockIdx.x % blocks_of_row * kThreads + threadIdx.x;
  if (point >= call.points) return;
  const int64_t mask = call.index[row];
  const int64_t start = call.table[mask];
  const int64_t height = call.table[call.masks + mask], width = call.table[2 * call.masks + mask];
  const int64_t set = call.point_rows ? call.point_rows[row] : call.sets == 1 ? 0 : row;
  const float2 place = __ldg(reinterpret_cast<const float2*>(call.places) + set * call.points + point);
  call.out[row * call.points + point] =
      read_at<Index>(static_cast<const T*>(call.data) + start, static_cast<int>(height), static_cast<int>(width),
              corner_of(place, call.height, call.width));
}

}  // namespace

cudaError_t sample_masks(const MaskSampling& call, cudaStream_t stream) {
  const int64_t blocks_of_row = (call.points + kThreads - 1) / kThreads, blocks = blocks_of_row * call.rows;
  if (blocks == 0) return cudaSuccess;
  if (blocks >= 1ll << 31) return cudaErrorInvalidConfiguration;
  auto kernel = call.large ? (call.soft ? sample_kernel<float, int64_t> : sample_kernel<uint8_t, int64_t>)
                           : (call.soft ? sample_kernel<float, int> : sample_kernel<uint8_t, int>);
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, stream>>>(call, blocks_of_row);
  return cudaGetLastError();
}

}  // namespace mask2former
