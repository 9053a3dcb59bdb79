// Forward for 16 or 32 channels and 4 points: bound by the rate at which the L1 cache serves rows, about one a cycle.
//
// A warp takes 8 queries of one head, level by level. First a quad of lanes works out the samples of a query, a lane
// one point, and leaves 16 bytes for each sample in shared memory (the softmax over all levels comes before). Then
// groups of lanes gather rows, 16 bytes a lane. With 32 channels a row takes 8 lanes (fp32) or 4 lanes (16 bits), with
// 16 channels half as many. Each group has a query of its own; 16 channels of 16 bits make 16 groups, and then two of
// them share a query, each with half of the points.
#include "device.cuh"
#include "tiles.cuh"

namespace mask2former {
namespace {

constexpr int kThreads = 512;  // two blocks a multiprocessor: one gathers while the other one starts
constexpr int kWarps = kThreads / 32;
constexpr int kWarpQueries = 8;

// One sample, ready to be gathered. The four pixels are those at `offset` and one to the right and below. At a border
// they are moved inside the map; then `fx`, `fy` are 0 or 1 and the missing part of the weight is in `weight`.
struct __align__(16) Sample {
  unsigned offset;  // bytes, in the image
  float fx;
  float fy;
  float weight;
};

__device__ __forceinline__ void place(float x, int size, int& first, float& fraction, float& inside) {
  first = min(max(whole(x), 0), size - 2);
  fraction = fminf(fmaxf(x - first, 0.0f), 1.0f);
  inside = fminf(fmaxf(fminf(1.0f + x, size - x), 0.0f), 1.0f);  // a NaN becomes 0
}

// A sample by its place in the whole map.
__device__ __forceinline__ Sample placed(float x, float y, float weight, const FastLevel& level, unsigned right) {
  int left, upper;
  float in_x, in_y;
  Sample s;
  place(x, level.width, left, s.fx, in_x);
  place(y, level.height, upper, s.fy, in_y);
  s.offset = (level.start + upper * level.width + left) * right;
  s.weight = weight * in_x * in_y;
  return s;
}

// One base for all threads and 32 bits for each: half the address arithmetic of pointers.
__device__ __forceinline__ uint4 read(const char* image, unsigned offset) {
  return __ldg(reinterpret_cast<const uint4*>(image + offset));
}

// The samples of one query and level, 16 bytes of their rows for each lane: every kShares-th point from `share` on.
template <int kShares, class T>
__device__ __forceinline__ void gather(const char* image, unsigned mine, unsigned right, unsigned below,
                                       const Sample (*samples)[kWarpQueries], int share, int slot,
                                       float (&sum)[16 / sizeof(T)]) {
  constexpr int kVector = 16 / sizeof(T);
#pragma unroll
  for (int p = 0; p < kPoints; p += kShares) {
    const Sample s = samples[p + share][slot];
    const unsigned at = s.offset + mine;
    const uint4 bits[4] = {read(image, at), read(image, at + right), read(image, at + below),
                           read(image, at + below + right)};
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

template <class T, class P, int kChannels, int kLevels, bool kFused>
__global__ void __launch_bounds__(kThreads, 1024 / kThreads)
    forward_kernel(const __grid_constant__ Tiling t, const T* value, const float* reference, const P* sampling,
                   const P* attention, T* out) {
  constexpr int kVector = 16 / sizeof(T), kLanes = kChannels / kVector;  // lanes of one row: a group
  constexpr int kGroups = 32 / kLanes;
  constexpr int kShares = kGroups > kWarpQueries ? kGroups / kWarpQueries : 1;  // groups that share a query
  constexpr int kAtOnce = kGroups / kShares;                                    // queries a warp gathers at a time
  constexpr int kTurns = kWarpQueries / kAtOnce;
  static_assert(kLanes * kGroups == 32 && kAtOnce * kTurns == kWarpQueries && kPoints % kShares == 0);
  __shared__ Sample shared[kWarps][kPoints][kWarpQueries];
  const Tile tile(t);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, point = lane % kPoints;
  // Of the lane's group: its query in a turn, and its share of the points.
  const auto slot_in = [&](int turn) {
    return turn * kAtOnce + (kShares > 1 ? lane / kLanes % kAtOnce : lane / kLanes);
  };
  const int share = kShares > 1 ? lane / (kLanes * kAtOnce) : 0;
  Sample(*samples)[kWarpQueries] = shared[warp];
  const unsigned right = t.heads * kChannels * sizeof(T), mine = lane % kLanes * 16;
  const int last = tile.width - 1;
  const char* image = reinterpret_cast<const char*>(
      value + (static_cast<int64_t>(tile.batch) * t.length * t.heads + tile.head) * kChannels);
  const int64_t first_query = static_cast<int64_t>(tile.batch) * t.queries;

#pragma unroll 1
  for (int first = warp * kWarpQueries; first < kTileQueries; first += kWarps * kWarpQueries) {
    const int y = tile.top + (first >> t.tile_shift), x = tile.left + (first & ((1 << t.tile_shift) - 1));
    if (y >= tile.height || x >= tile.width) continue;  // the same for the whole warp
    const int line = tile.start + y * tile.width;
    const int query = line + min(x + lane / kPoints, last);
    const int64_t row = ((first_query + query) * t.heads + tile.head) * kLevels * kPoints + point;
    float2 at[kLevels];
    float weight[kLevels];
#pragma unroll
    for (int l = 0; l < kLevels; ++l) {
      at[l] = load_point(sampling + (row + l * kPoints) * 2);
      weight[l] = to_float(__ldcs(attention + row + l * kPoints));
    }
    if (kFused) softmax_of_quad<kLevels>(weight);
    float sum[kTurns][kVector] = {};
#pragma unroll
    for (int l = 0; l < kLevels; ++l) {
      float2 center{0.0f, 0.0f};
      if (kFused)
        center = __ldg(reinterpret_cast<const float2*>(reference + tile.batch * t.reference_batch +
                                                       query * t.reference_query + l * t.reference_level));
      const FastLevel& level = t.level[l];
      const Sample sample = placed(pixel<kFused>(at[l].x, center.x, static_cast<float>(level.width)),
                                   pixel<kFused>(at[l].y, center.y, static_cast<float>(level.height)), weight[l],
                                   level, right);
      __syncwarp();
      samples[point][lane / kPoints] = sample;
      __syncwarp();
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn)
        gather<kShares, T>(image, mine, right, level.width * right, samples, share, slot_in(turn), sum[turn]);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
#pragma unroll
      for (int step = kLanes * kAtOnce; step < 32; step *= 2)  // over the shares
#pragma unroll
        for (int i = 0; i < kVector; ++i) sum[turn][i] += __shfl_xor_sync(~0u, sum[turn][i], step);
      const int slot = slot_in(turn);
      if (share == 0 && x + slot <= last)
        store(out + ((first_query + line + x + slot) * t.heads + tile.head) * kChannels + lane % kLanes * kVector,
              sum[turn]);
    }
  }
}

template <class T, class P, int kChannels, int kLevels, bool kFused>
cudaError_t launch(const Call& call, cudaStream_t stream) {
  const Tiling t = make_tiling(call.sizes);
  forward_kernel<T, P, kChannels, kLevels, kFused><<<blocks_of(t, call.sizes), kThreads, 0, stream>>>(
      t, static_cast<const T*>(call.value), static_cast<const float*>(call.reference),
      static_cast<const P*>(call.sampling), static_cast<const P*>(call.attention), static_cast<T*>(call.out));
  return cudaGetLastError();
}

}  // namespace

constexpr int kMostBlocks = 65535;  // in the second and third dimension of a grid

bool fits_fast_path(const Call& call) {
  const Sizes& s = call.sizes;
  if (!has_fast_sizes(s) || call.value_kind == Kind::f64) return false;
  for (int l = 0; l < s.levels; ++l)
    if (s.level[l].height < 2 || s.level[l].width < 2) return false;
  // Offsets inside one image are 32 bits. Alignment: what a view could start at.
  const int64_t limit = (int64_t{1} << 31) - 1;
  const int64_t image = s.length * s.heads * s.dim * 4;
  const auto address = reinterpret_cast<uintptr_t>(call.value) | reinterpret_cast<uintptr_t>(call.sampling) |
                       reinterpret_cast<uintptr_t>(call.grad) | reinterpret_cast<uintptr_t>(call.reference);
  return image <= limit && s.queries <= limit / 256 && s.batch <= kMostBlocks && make_tiling(s).tiles <= kMostBlocks &&
         address % 16 == 0;
}

cudaError_t forward_fast(const Call& call, cudaStream_t stream) {
  return for_fast_kernels(call, [&](auto value, auto projection, auto channels, auto levels, auto fused) {
    return launch<decltype(value), decltype(projection), channels(), levels(), fused()>(call, stream);
  });
}

}  // namespace mask2former
