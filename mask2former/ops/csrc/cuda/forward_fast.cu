// Forward for 32 channels and 4 points: bound by the rate at which the L1 cache serves rows.
//
// A warp takes 8 queries of one head. First a quad of lanes works out the samples of a query, a lane one point of each
// level, softmax included, and leaves 16 bytes for each sample in shared memory. Then 8 lanes (fp32) or 4 lanes (16
// bits) gather a query's rows, 16 bytes a lane.
#include "device.cuh"
#include "tiles.cuh"

namespace mask2former {
namespace {

#ifndef FWD_THREADS
#define FWD_THREADS 1024
#endif
constexpr int kThreads = FWD_THREADS;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpQueries = 8;

template <class T, class P, int kLevels, bool kFused>
__device__ __forceinline__ void prepare(const Tiling& t, const float* reference, const P* sampling, const P* attention,
                                        int batch, int query, int head, Sample (*samples)[kWarpQueries]) {
  const int point = threadIdx.x & 3, slot = (threadIdx.x & 31) >> 2;
  const int64_t row = (static_cast<int64_t>(batch) * t.queries + query) * t.heads + head;
  float2 at[kLevels];
  float weight[kLevels];
#pragma unroll
  for (int l = 0; l < kLevels; ++l) {
    at[l] = load_point(sampling + (row * kLevels + l) * kPoints * 2 + point * 2);
    weight[l] = to_float(__ldcs(attention + (row * kLevels + l) * kPoints + point));
  }
  if (kFused) softmax_of_quad<kLevels>(weight);
#pragma unroll
  for (int l = 0; l < kLevels; ++l) {
    float2 centre{0.0f, 0.0f};
    if (kFused)
      centre = __ldg(reinterpret_cast<const float2*>(reference + batch * t.reference_batch +
                                                     query * t.reference_query + l * t.reference_level));
    const int height = t.level[l].height, width = t.level[l].width;
    const float x = pixel<kFused>(at[l].x, centre.x, static_cast<float>(width));
    const float y = pixel<kFused>(at[l].y, centre.y, static_cast<float>(height));
    int left, upper;
    float in_x, in_y;
    Sample sample;
    place(x, width, left, sample.fx, in_x);
    place(y, height, upper, sample.fy, in_y);
    sample.offset = (upper * width + left) * t.heads * kChannels * static_cast<int>(sizeof(T));
    sample.weight = weight[l] * in_x * in_y;
    samples[l * kPoints + point][slot] = sample;
  }
}

template <class T, int kLevels, int kLanes>
__device__ __forceinline__ void gather(const Tiling& t, const char* rows, const Sample (*samples)[kWarpQueries],
                                       int slot, float (&sum)[16 / sizeof(T)]) {
  constexpr int kVector = 16 / sizeof(T);
  const int right = t.heads * kChannels * static_cast<int>(sizeof(T));
#pragma unroll
  for (int l = 0; l < kLevels; ++l) {
    const int below = t.level[l].width * right;
    const char* map = rows + static_cast<int64_t>(t.level[l].start) * right;
#pragma unroll
    for (int p = 0; p < kPoints; ++p) {
      const Sample s = samples[l * kPoints + p][slot];
      const char* corner = map + s.offset;
      const uint4 bits[4] = {__ldg(reinterpret_cast<const uint4*>(corner)),
                             __ldg(reinterpret_cast<const uint4*>(corner + right)),
                             __ldg(reinterpret_cast<const uint4*>(corner + below)),
                             __ldg(reinterpret_cast<const uint4*>(corner + below + right))};
      const float lower = s.weight * s.fy, upper = s.weight - lower;
      const float weight[4] = {upper - upper * s.fx, upper * s.fx, lower - lower * s.fx, lower * s.fx};
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        float x[kVector];
        widen(bits[c], x, T{});
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum[i] = fmaf(weight[c], x[i], sum[i]);
      }
    }
  }
}

template <class T, class P, int kLevels, bool kFused>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    forward_kernel(const __grid_constant__ Tiling t, const T* value, const float* reference, const P* sampling,
                   const P* attention, T* out) {
  constexpr int kVector = 16 / sizeof(T), kLanes = kChannels / kVector;  // lanes of one row
  constexpr int kAtOnce = 32 / kLanes;                                   // queries a warp gathers at a time
  extern __shared__ __align__(16) char memory[];
  using Samples = Sample[kLevels * kPoints][kWarpQueries];
  Sample(*samples)[kWarpQueries] = reinterpret_cast<Samples*>(memory)[threadIdx.x / 32];  // this warp's

  const Tile tile(t, blockIdx.x);
  const Part& area = *tile.area;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const char* rows = reinterpret_cast<const char*>(
      value + (static_cast<int64_t>(tile.batch) * t.length * t.heads + tile.head) * kChannels + lane % kLanes * kVector);
  for (int first = warp * kWarpQueries; first < kTileQueries; first += kWarps * kWarpQueries) {
    const int y = tile.top + first / t.tile_width, x = tile.left + first % t.tile_width;
    if (y >= area.height || x >= area.width) continue;  // the same for the whole warp
    const int row = area.start + y * area.width;
    const int last = area.width - 1;
    prepare<T, P, kLevels, kFused>(t, reference, sampling, attention, tile.batch, row + min(x + lane / 4, last),
                                   tile.head, samples);
    __syncwarp();
#pragma unroll 1
    for (int slot = lane / kLanes; slot < kWarpQueries; slot += kAtOnce) {
      float sum[kVector] = {};
      gather<T, kLevels, kLanes>(t, rows, samples, slot, sum);
      if (x + slot <= last) {
        const int64_t query = static_cast<int64_t>(tile.batch) * t.queries + row + x + slot;
        store(out + (query * t.heads + tile.head) * kChannels + lane % kLanes * kVector, sum);
      }
    }
    __syncwarp();
  }
}

template <class T, class P, int kLevels, bool kFused>
cudaError_t launch(const Call& call, cudaStream_t stream) {
  const Tiling t = make_tiling(call.sizes);
  const auto kernel = forward_kernel<T, P, kLevels, kFused>;
  constexpr int kShared = kWarps * kLevels * kPoints * kWarpQueries * sizeof(Sample);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kShared);
  if (error != cudaSuccess) return error;
  const auto blocks = static_cast<unsigned>(call.sizes.batch * t.tiles * t.heads);
  kernel<<<blocks, kThreads, kShared, stream>>>(
      t, static_cast<const T*>(call.value), static_cast<const float*>(call.reference),
      static_cast<const P*>(call.sampling), static_cast<const P*>(call.attention), static_cast<T*>(call.out));
  return cudaGetLastError();
}

template <class T, class P, int kLevels>
cudaError_t launch_form(const Call& call, cudaStream_t stream) {
  return call.reference ? launch<T, P, kLevels, true>(call, stream) : launch<T, float, kLevels, false>(call, stream);
}

}  // namespace

bool fits_fast_path(const Call& call) {
  const Sizes& s = call.sizes;
  if (s.dim != kChannels || s.points != kPoints || s.levels < 3 || s.levels > kFastLevels) return false;
  if (call.value_kind == Kind::f64) return false;
  for (int l = 0; l < s.levels; ++l)
    if (s.level[l].height < 2 || s.level[l].width < 2) return false;
  // Offsets inside one image, and block numbers, are 32 bits. Alignment: what a view could start at.
  const int64_t limit = (int64_t{1} << 31) - 1;
  const int64_t image = s.length * s.heads * s.dim * 4;
  const int64_t blocks = s.batch * s.heads * (make_tiling(s).tiles + 1);
  const auto address = reinterpret_cast<uintptr_t>(call.value) | reinterpret_cast<uintptr_t>(call.sampling) |
                       reinterpret_cast<uintptr_t>(call.grad);
  return image <= limit && s.queries <= limit / 256 && blocks <= limit && address % 16 == 0;
}

cudaError_t forward_fast(const Call& call, cudaStream_t stream) {
  return for_types(call, [&](auto value, auto projection) {
    using T = decltype(value);
    using P = decltype(projection);
    return call.sizes.levels == 3 ? launch_form<T, P, 3>(call, stream) : launch_form<T, P, 4>(call, stream);
  });
}

}  // namespace mask2former
