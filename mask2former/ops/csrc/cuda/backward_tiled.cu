// Backward for 16 or 32 channels and 4 points: the sums for grad_value are formed on chip.
//
// Adding every sample's four corners in global memory is bound by the rate of atomics in the L2 cache (3.3 TB/s on an
// H100: 2.6 ms for 8 images of 1024 x 1024). Here a block takes 16 x 16 queries of one head and, level by level, sorts
// their corners by pixel (a counting sort in shared memory). Then lanes, one for each 4 channels, take a pixel and walk
// through its list: each entry adds weight * grad to the pixel's sum, and the dot product of grad with the pixel's
// value, of which the gradients of weights and positions are made. A pixel is read once and added to global memory once
// for each tile.
#include "device.cuh"
#include "tiles.cuh"

namespace mask2former {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kSamples = kTileQueries * kPoints;          // of one level
constexpr int kMine = kSamples / kThreads;                // samples of a thread
constexpr int kWindow = 48;                               // pixels a side; what lies outside takes a slower way
constexpr int kWindowPixels = kWindow * kWindow;
constexpr int kCountsOfThread = kWindowPixels / kThreads + 1;
constexpr int kLengths = 32;  // lists this long or longer count as one

struct __align__(8) Entry {
  unsigned corner;  // sample * 4 + corner
  float weight;
};

template <int kChannels>
struct Shared {
  float grad[kTileQueries][kChannels];
  float4 dots[kSamples];                      // grad . value at the four corners
  Entry entries[kSamples * 4 + 4];            // sorted by pixel; the last ones are never used, but read
  int starts[kThreads * kCountsOfThread + 1];  // of the pixels' lists; before the scan, their lengths
  uint16_t pixels[kWindowPixels];             // those with a list
  int length_counts[kLengths];                 // pixels with a list of 1, 2, ... entries
  int warp_sums[kWarps];
};

// The part of a map whose pixels have lists.
struct Window {
  int x, y;           // its corner in the map
  int width, height;  // at most kWindow, and inside the map
};

// One sample on one level: its upper left corner, possibly outside the map, and the corners' weights.
struct Position {
  int x, y;
  float fx, fy;
};

__device__ __forceinline__ Position locate(float x, float y) {
  const int left = whole(x), upper = whole(y);
  const float fx = x - left, fy = y - upper;
  // Not-a-number and far away positions are outside the map; their fractions must only be finite.
  return {left, upper, fx >= 0.0f && fx <= 1.0f ? fx : 0.0f, fy >= 0.0f && fy <= 1.0f ? fy : 0.0f};
}

// Which of the four corners (bit 0 upper left, 1 upper right, 2 lower left, 3 lower right) lie in a rectangle.
__device__ __forceinline__ int corners_in(int x, int y, int width, int height) {
  const bool left = static_cast<unsigned>(x) < width, right = static_cast<unsigned>(x + 1) < width;
  const bool upper = static_cast<unsigned>(y) < height, lower = static_cast<unsigned>(y + 1) < height;
  const int row = (left ? 1 : 0) | (right ? 2 : 0);
  return (upper ? row : 0) | (lower ? row << 2 : 0);
}

__device__ __forceinline__ float corner_weight(const Position& p, int corner) {
  return (corner & 1 ? p.fx : 1.0f - p.fx) * (corner & 2 ? p.fy : 1.0f - p.fy);
}

__device__ __forceinline__ void add4(float* p, float4 v) {
#if __CUDA_ARCH__ >= 900
  asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};" ::"l"(p), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
               : "memory");
#else
  atomicAdd(p, v.x), atomicAdd(p + 1, v.y), atomicAdd(p + 2, v.z), atomicAdd(p + 3, v.w);
#endif
}

// Turns list lengths into starts, and orders the pixels that have a list by its length, so that the lanes of a warp,
// who walk several lists together, end together. Returns the number of these pixels to every thread.
template <int kChannels>
__device__ __forceinline__ int scan(Shared<kChannels>& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int* mine = s.starts + threadIdx.x * kCountsOfThread;
  int lengths[kCountsOfThread], rank[kCountsOfThread];
  int sum = 0;
#pragma unroll
  for (int i = 0; i < kCountsOfThread; ++i) {
    lengths[i] = mine[i];
    sum += lengths[i];
    if (lengths[i]) rank[i] = atomicAdd(&s.length_counts[min(lengths[i], kLengths) - 1], 1);
  }
  int before = sum;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, before, step);
    if (lane >= step) before += other;
  }
  if (lane == 31) s.warp_sums[warp] = before;
  __syncthreads();
  before -= sum;
  int count = s.length_counts[lane], total = count;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int other = __shfl_up_sync(~0u, total, step);
    if (lane >= step) total += other;
  }
  const int first_of_length = total - count;
  total = __shfl_sync(~0u, total, 31);
#pragma unroll
  for (int w = 0; w < kWarps; ++w) before += w < warp ? s.warp_sums[w] : 0;
#pragma unroll
  for (int i = 0; i < kCountsOfThread; ++i) {
    mine[i] = before;
    before += lengths[i];
    const int first = __shfl_sync(~0u, first_of_length, max(min(lengths[i], kLengths) - 1, 0));
    if (lengths[i]) s.pixels[first + rank[i]] = static_cast<uint16_t>(threadIdx.x * kCountsOfThread + i);
  }
  __syncthreads();
  return total;
}

__device__ __forceinline__ float dot4(float4 a, float4 b) {
  return fmaf(a.x, b.x, fmaf(a.y, b.y, fmaf(a.z, b.z, a.w * b.w)));
}

// Sums of four numbers over kLanes lanes; the first quarter of them ends with the first sum, the next quarter with the
// second, and so on.
template <int kLanes>
__device__ __forceinline__ float sum_over_lanes(const float (&x)[4]) {
  const bool high = threadIdx.x & (kLanes / 2), odd = threadIdx.x & (kLanes / 4);
  float a = high ? x[2] : x[0], b = high ? x[3] : x[1];
  a += __shfl_xor_sync(~0u, high ? x[0] : x[2], kLanes / 2);
  b += __shfl_xor_sync(~0u, high ? x[1] : x[3], kLanes / 2);
  float c = odd ? b : a;
  c += __shfl_xor_sync(~0u, odd ? a : b, kLanes / 4);
#pragma unroll
  for (int step = kLanes / 8; step; step /= 2) c += __shfl_xor_sync(~0u, c, step);
  return c;
}

// 4 channels of a pixel for each lane; every lane of a warp goes the same way, because of the shuffles. Lanes whose
// list has ended read what comes after it, with weight 0.
template <int kChannels, class T>
__device__ __forceinline__ void walk_lists(Shared<kChannels>& s, const FastLevel& level, const Window& window,
                                           int listed, int stride, const T* values, float* sums) {
  constexpr int kLanes = kChannels / 4, kQuarter = kLanes / 4;  // of a pixel; that hold the dot product of one entry
  constexpr unsigned kRow = kChannels * sizeof(float);  // bytes of a query's gradient; a query has 16 corners
  static_assert(kQuarter >= 1 && 32 % kLanes == 0);
  const int lane = threadIdx.x % 32, part = lane % kLanes;
  const char* grads = reinterpret_cast<const char*>(&s.grad[0][part * 4]);
  int turn = threadIdx.x / kLanes, place = 0, start = 0, length = 0;
  float4 value{};
  const auto fetch = [&] {
    length = 0;
    if (turn < listed) {
      const int pixel = s.pixels[turn];
      start = s.starts[pixel], length = s.starts[pixel + 1] - start;
      const int y = window.y + pixel / kWindow, x = window.x + pixel % kWindow;
      place = (y * level.width + x) * stride + part * 4;
      value = load4(values + place);
    }
  };
  fetch();
  while (turn - lane / kLanes < listed) {
    const int count = length, target = place;
    const float4 pixel_value = value;
    const Entry* list = s.entries + start;
    turn += kThreads / kLanes;
    fetch();  // the next pixel's value is on its way while this list is walked
    float4 sum{};
    const int longest = __reduce_max_sync(~0u, count);
    for (int i = 0; i < longest; i += 4) {
      Entry e[4];
      float dots[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) e[j] = list[min(i, count) + j];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float4 g = *reinterpret_cast<const float4*>(grads + (e[j].corner / 16 % kTileQueries) * kRow);
        const float w = i + j < count ? e[j].weight : 0.0f;
        sum.x = fmaf(w, g.x, sum.x), sum.y = fmaf(w, g.y, sum.y);
        sum.z = fmaf(w, g.z, sum.z), sum.w = fmaf(w, g.w, sum.w);
        dots[j] = dot4(g, pixel_value);
      }
      const float dot = sum_over_lanes<kLanes>(dots);
      const bool odd = part & kQuarter;
      const unsigned corner =
          part & (2 * kQuarter) ? (odd ? e[3].corner : e[2].corner) : (odd ? e[1].corner : e[0].corner);
      if (part % kQuarter == 0 && i + part / kQuarter < count) reinterpret_cast<float*>(s.dots)[corner] = dot;
    }
    if (count) add4(sums + target, sum);
  }
}

// Corners in the map but outside the window: a warp does them one after another, a lane a channel.
template <int kChannels, class T>
__device__ __noinline__ void outside_window(Shared<kChannels>& s, bool mine, unsigned corner, float weight, int place,
                                            const T* values, float* sums) {
  constexpr int kActive = kChannels < 32 ? kChannels : 32;  // lanes
  const int lane = threadIdx.x % 32;
  for (unsigned left = __ballot_sync(~0u, mine); left; left &= left - 1) {
    const int owner = __ffs(left) - 1;
    const unsigned which = __shfl_sync(~0u, corner, owner);
    const float w = __shfl_sync(~0u, weight, owner);
    const int at = __shfl_sync(~0u, place, owner) + lane;
    float dot = 0.0f;
#pragma unroll
    for (int first = 0; first < kChannels; first += kActive) {
      if (lane >= kActive) continue;
      const float g = s.grad[which / (4 * kPoints)][first + lane];
      dot = fmaf(g, to_float(values[at + first]), dot);
      atomicAdd(sums + at + first, w * g);
    }
#pragma unroll
    for (int step = kActive / 2; step; step /= 2) dot += __shfl_xor_sync(~0u, dot, step);
    if (lane == 0) reinterpret_cast<float*>(s.dots)[which] = dot;
  }
}

// The window of a level lies about the tile's middle.
__device__ __forceinline__ Window window_of(const Tiling& t, const Tile& tile, int l) {
  const FastLevel& level = t.level[l];
  const int middle_x = (tile.left + kTile / 2) * t.scale_x[tile.number][l];
  const int middle_y = (tile.top + kTile / 2) * t.scale_y[tile.number][l];
  return {max(min(middle_x - kWindow / 2, level.width - kWindow), 0),
          max(min(middle_y - kWindow / 2, level.height - kWindow), 0), min(kWindow, level.width),
          min(kWindow, level.height)};
}

// A sample's corners in the lists: which of them, and at which place in their pixel's list.
struct Listed {
  int corners;
  int rank[4];
};

template <int kChannels>
__device__ __forceinline__ int* list_of(Shared<kChannels>& s, const Window& w, const Position& at, int corner) {
  return &s.starts[(at.y - w.y + corner / 2) * kWindow + at.x - w.x + corner % 2];
}

template <int kChannels>
__device__ __forceinline__ Listed count_corners(Shared<kChannels>& s, const Window& w, const Position& at) {
  Listed listed;
  listed.corners = corners_in(at.x - w.x, at.y - w.y, w.width, w.height);
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (listed.corners >> c & 1) listed.rank[c] = atomicAdd(list_of(s, w, at, c), 1);
  return listed;
}

// `sample` is the number in the block. Corners that have no list because they are far away are done at once.
template <int kChannels, class T>
__device__ __forceinline__ void list_corners(Shared<kChannels>& s, const Window& w, const FastLevel& level,
                                             const Position& at, const Listed& listed, unsigned sample, float weight,
                                             int stride, const T* values, float* sums) {
#pragma unroll
  for (int c = 0; c < 4; ++c)
    if (listed.corners >> c & 1)
      s.entries[*list_of(s, w, at, c) + listed.rank[c]] = {sample * 4 + c, weight * corner_weight(at, c)};
  const int far = corners_in(at.x, at.y, level.width, level.height) & ~listed.corners;
  if (__any_sync(~0u, far)) {
    for (int c = 0; c < 4; ++c)
      outside_window(s, far >> c & 1, sample * 4 + c, weight * corner_weight(at, c),
                     ((at.y + c / 2) * level.width + at.x + c % 2) * stride, values, sums);
  }
}

// Gradients of a sample's weight, and of its position in pixels for a weight of 1, from the corners' dot products.
struct SampleGradient {
  float weight, x, y;
};

__device__ __forceinline__ SampleGradient gradient_of(float4 dots, const Position& at) {
  const float above = dots.y - dots.x, below = dots.w - dots.z;
  const float upper = dots.x + at.fx * above, lower = dots.z + at.fx * below;
  return {upper + at.fy * (lower - upper), above + at.fy * (below - above), lower - upper};
}

// The softmax takes off what the gradients of a query's weights have in common: their mean under the weights.
template <int kLevels>
__device__ __forceinline__ void softmax_gradient(const float (&weight)[kLevels], float (&gradient)[kLevels]) {
  float mean = 0.0f;
#pragma unroll
  for (int l = 0; l < kLevels; ++l) mean = fmaf(weight[l], gradient[l], mean);
  mean += __shfl_xor_sync(~0u, mean, 1);
  mean += __shfl_xor_sync(~0u, mean, 2);
#pragma unroll
  for (int l = 0; l < kLevels; ++l) gradient[l] = weight[l] * (gradient[l] - mean);
}

// Number in the image of a tile's query, or -1 outside.
__device__ __forceinline__ int query_of(const Tile& tile, int i) {
  const int y = tile.top + i / kTile, x = tile.left + i % kTile;
  return y < tile.height && x < tile.width ? tile.start + y * tile.width + x : -1;
}

template <class T, class P, int kChannels, int kLevels, bool kFused>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(const __grid_constant__ Tiling t, const T* value, const float* reference, const P* sampling,
                    const P* attention, const T* grad, float* sums, P* grad_sampling, P* grad_attention) {
  extern __shared__ __align__(16) char memory[];
  auto& s = *reinterpret_cast<Shared<kChannels>*>(memory);
  const Tile tile(t);
  const int stride = t.heads * kChannels;
  const int64_t first_row = static_cast<int64_t>(tile.batch) * t.queries * t.heads + tile.head;

#pragma unroll
  for (int i = threadIdx.x; i < kTileQueries * (kChannels / 4); i += kThreads) {
    const int number = i / (kChannels / 4), channel = i % (kChannels / 4) * 4;
    const int query = query_of(tile, number);
    const int64_t row = first_row + static_cast<int64_t>(query) * t.heads;
    *reinterpret_cast<float4*>(&s.grad[number][channel]) =
        query < 0 ? float4{} : load4(grad + row * kChannels + channel);
  }

  // This thread's samples: one point of kMine queries.
  const int point = threadIdx.x % kPoints;
  int query[kMine];
  int64_t sample[kMine];  // of the first level, in (B, N, heads, L, P)
  float weight[kMine][kLevels], gradient[kMine][kLevels];
#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    query[m] = query_of(tile, (threadIdx.x + m * kThreads) / kPoints);
    sample[m] = (first_row + static_cast<int64_t>(query[m]) * t.heads) * kLevels * kPoints + point;
#pragma unroll
    for (int l = 0; l < kLevels; ++l)
      weight[m][l] = query[m] < 0 ? 0.0f : to_float(__ldcs(attention + sample[m] + l * kPoints));
    if (kFused) softmax_of_quad<kLevels>(weight[m]);
  }

#pragma unroll
  for (int l = 0; l < kLevels; ++l) {
    const FastLevel level = t.level[l];
    const Window window = window_of(t, tile, l);
    const int64_t origin =
        ((static_cast<int64_t>(tile.batch) * t.length + level.start) * t.heads + tile.head) * kChannels;
    for (int i = threadIdx.x; i <= kThreads * kCountsOfThread; i += kThreads) s.starts[i] = 0;
    if (threadIdx.x < kLengths) s.length_counts[threadIdx.x] = 0;
    __syncthreads();

    Position at[kMine];
    Listed listed[kMine];
#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      at[m] = {-8, -8, 0.0f, 0.0f};
      if (query[m] >= 0) {
        const float2 given = load_point(sampling + (sample[m] + l * kPoints) * 2);
        float2 center{0.0f, 0.0f};
        if (kFused)
          center = __ldg(reinterpret_cast<const float2*>(reference + tile.batch * t.reference_batch +
                                                         query[m] * t.reference_query + l * t.reference_level));
        at[m] = locate(pixel<kFused>(given.x, center.x, static_cast<float>(level.width)),
                       pixel<kFused>(given.y, center.y, static_cast<float>(level.height)));
      }
      s.dots[threadIdx.x + m * kThreads] = float4{};
      listed[m] = count_corners(s, window, at[m]);
    }
    __syncthreads();
    const int pixels = scan(s);
#pragma unroll
    for (int m = 0; m < kMine; ++m)
      list_corners(s, window, level, at[m], listed[m], threadIdx.x + m * kThreads, weight[m][l], stride,
                   value + origin, sums + origin);
    __syncthreads();
    walk_lists(s, level, window, pixels, stride, value + origin, sums + origin);
    __syncthreads();

#pragma unroll
    for (int m = 0; m < kMine; ++m) {
      const SampleGradient g = gradient_of(s.dots[threadIdx.x + m * kThreads], at[m]);
      gradient[m][l] = g.weight;
      const float x = weight[m][l] * g.x, y = weight[m][l] * g.y;
      if (query[m] >= 0)
        store_point(grad_sampling + (sample[m] + l * kPoints) * 2, kFused ? x : x * level.width,
                    kFused ? y : y * level.height);
    }
  }

#pragma unroll
  for (int m = 0; m < kMine; ++m) {
    if (kFused) softmax_gradient<kLevels>(weight[m], gradient[m]);
    if (query[m] < 0) continue;
#pragma unroll
    for (int l = 0; l < kLevels; ++l) grad_attention[sample[m] + l * kPoints] = from_float<P>(gradient[m][l]);
  }
}

template <class T, class P, int kChannels, int kLevels, bool kFused>
cudaError_t launch(const Call& call, cudaStream_t stream) {
  const Tiling t = make_tiling(call.sizes);
  const auto kernel = backward_kernel<T, P, kChannels, kLevels, kFused>;
  constexpr int kBytes = sizeof(Shared<kChannels>);
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks_of(t, call.sizes), kThreads, kBytes, stream>>>(
      t, static_cast<const T*>(call.value), static_cast<const float*>(call.reference),
      static_cast<const P*>(call.sampling), static_cast<const P*>(call.attention), static_cast<const T*>(call.grad),
      static_cast<float*>(call.grad_sums), static_cast<P*>(call.grad_sampling), static_cast<P*>(call.grad_attention));
  return cudaGetLastError();
}

}  // namespace

cudaError_t backward_tiled(const Call& call, cudaStream_t stream) {
  return for_fast_kernels(call, [&](auto value, auto projection, auto channels, auto levels, auto fused) {
    return launch<decltype(value), decltype(projection), channels(), levels(), fused()>(call, stream);
  });
}

}  // namespace mask2former
