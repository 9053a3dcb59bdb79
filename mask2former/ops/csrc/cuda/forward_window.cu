// Forward for 16-bit values on Hopper and newer, 32 channels, 4 points.
//
// The L1 cache serves one row of a head a cycle, of 64 bytes as of 128, so halving the numbers does not help there.
// In shared memory it does: the copy engine (TMA) brings the pixels about a tile of queries, a head at a time, and
// then the left and right pixel of a sample are 128 bytes in a row, one cycle for both. Samples that lie outside the
// window are few with offsets of a few pixels and are read from global memory; where they are many, all are.
#include <cuda.h>

#include "tiles.cuh"

namespace mask2former {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kWarpQueries = 8;
constexpr int kPixelBytes = kChannels * 2;
constexpr int kMargin = 7;            // pixels about the tile
constexpr int kWindowPixels = 1664;   // of all levels; two blocks share a multiprocessor's memory
constexpr int kMostOutside = 6;       // of a warp's 32 samples of a level

struct Box {
  int width, height;  // 0: no window
  int place;          // its first pixel among the windows of a tile
};

struct Windows {
  // For queries of a part and pixels of a level.
  CUtensorMap map[kFastLevels][kFastLevels];
  Box box[kFastLevels][kFastLevels];
};

struct __align__(128) Shared {
  char pixels[kWindowPixels * kPixelBytes];
  Sample samples[kWarps][kPoints][kWarpQueries];
  uint64_t arrived[kFastLevels];
};

__device__ __forceinline__ unsigned shared_address(const void* p) {
  return static_cast<unsigned>(__cvta_generic_to_shared(p));
}

#if __CUDA_ARCH__ >= 900
__device__ __forceinline__ void request(Shared& s, const Windows& w, const Tiling& t, const Tile& tile, int level,
                                        int x, int y) {
  const Box& box = w.box[tile.number][level];
  const unsigned barrier = shared_address(&s.arrived[level]);
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier),
               "r"(box.width * box.height * kPixelBytes)
               : "memory");
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], "
      "[%6];" ::"r"(shared_address(s.pixels + box.place * kPixelBytes)),
      "l"(&w.map[tile.number][level]), "r"(tile.head * kChannels), "r"(x), "r"(y), "r"(tile.batch), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void wait_for(uint64_t& arrived) {
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], 0;\n@!done bra again;\n}\n" ::"r"(
          shared_address(&arrived))
      : "memory");
}
#endif

// Adds the two pixels of a column, weighted, to the sums of 8 channels.
template <class T>
__device__ __forceinline__ void add_column(uint4 upper, uint4 lower, const Sample& s, bool right,
                                           float (&sum)[8]) {
  const float column = right ? s.weight * s.fx : s.weight - s.weight * s.fx;
  const float low = column * s.fy, high = column - low;
  float x[8];
  widen(upper, x, T{});
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = fmaf(high, x[i], sum[i]);
  widen(lower, x, T{});
#pragma unroll
  for (int i = 0; i < 8; ++i) sum[i] = fmaf(low, x[i], sum[i]);
}

__device__ __forceinline__ uint4 read(const char* p) { return __ldg(reinterpret_cast<const uint4*>(p)); }

// A sample by its place in the whole map.
__device__ __forceinline__ Sample place_in_map(float x, float y, float weight, const FastLevel& level, int right) {
  int left, upper;
  float in_x, in_y;
  Sample s;
  place(x, level.width, left, s.fx, in_x);
  place(y, level.height, upper, s.fy, in_y);
  s.offset = (upper * level.width + left) * right;
  s.weight = weight * in_x * in_y;
  return s;
}

// One level of a warp's 8 queries. 8 lanes take a query: four the left pixels, four the right ones, 16 bytes each.
template <class T>
__device__ __forceinline__ void add_level(Shared& s, const FastLevel& level, const Box& box, const char* window,
                                          int window_x, int window_y, const char* map, int right, float x, float y,
                                          float weight, float (&sum)[2][8]) {
  const int lane = threadIdx.x % 32;
  Sample(*samples)[kWarpQueries] = s.samples[threadIdx.x / 32];
  const bool is_right = lane & 4;
  const int left = whole(x), upper = whole(y);
  const bool in_window = left >= window_x && upper >= window_y && left < window_x + box.width - 1 &&
                         upper < window_y + box.height - 1;
  const bool in_map = x > -1.0f && y > -1.0f && x < level.width && y < level.height;
  const unsigned outside = __ballot_sync(~0u, in_map && !in_window);
  __syncwarp();
  if (__popc(outside) > kMostOutside) {
    samples[lane % 4][lane / 4] = place_in_map(x, y, weight, level, right);
    __syncwarp();
    const char* corner = map + (is_right ? right : 0) + lane % 4 * 16;
    const int below = level.width * right;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
#pragma unroll
      for (int p = 0; p < kPoints; ++p) {
        const Sample sample = samples[p][half * 4 + lane / 8];
        add_column<T>(read(corner + sample.offset), read(corner + sample.offset + below), sample, is_right, sum[half]);
      }
    }
    return;
  }
  Sample mine{0, 0.0f, 0.0f, 0.0f};
  if (in_window)
    mine = {((upper - window_y) * box.width + left - window_x) * kPixelBytes, x - left, y - upper, weight};
  samples[lane % 4][lane / 4] = mine;
  __syncwarp();
  const char* corner = window + lane % 8 * 16;
  const int below = box.width * kPixelBytes;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int p = 0; p < kPoints; ++p) {
      const Sample sample = samples[p][half * 4 + lane / 8];
      const uint4 high = *reinterpret_cast<const uint4*>(corner + sample.offset);
      const uint4 low = *reinterpret_cast<const uint4*>(corner + sample.offset + below);
      add_column<T>(high, low, sample, is_right, sum[half]);
    }
  }
  if (outside) {
    const Sample far = place_in_map(x, y, weight, level, right);
    for (unsigned rest = outside; rest; rest &= rest - 1) {
      const int owner = __ffs(rest) - 1;
      Sample sample;
      sample.offset = __shfl_sync(~0u, far.offset, owner);
      sample.fx = __shfl_sync(~0u, far.fx, owner), sample.fy = __shfl_sync(~0u, far.fy, owner);
      sample.weight = __shfl_sync(~0u, far.weight, owner);
      const int query = owner / 4;
      if (lane / 8 != query % 4) continue;
      const char* at = map + sample.offset + (is_right ? right : 0) + lane % 4 * 16;
      const uint4 high = read(at), low = read(at + level.width * right);
      if (query < 4) add_column<T>(high, low, sample, is_right, sum[0]);
      else add_column<T>(high, low, sample, is_right, sum[1]);
    }
    __syncwarp();
  }
}

template <class T, class P, int kLevels, bool kFused>
__global__ void __launch_bounds__(kThreads, 2)
    window_kernel(const __grid_constant__ Tiling t, const __grid_constant__ Windows w, const T* value,
                  const float* reference, const P* sampling, const P* attention, T* out) {
#if __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory);
  const Tile tile(t, blockIdx.x);
  const Part& area = *tile.area;
  int window_x[kLevels], window_y[kLevels];
#pragma unroll
  for (int l = 0; l < kLevels; ++l) {  // about the tile's middle, also beyond the map, where the copy engine gives 0
    const Box& box = w.box[tile.number][l];
    window_x[l] = (2 * tile.left + kTile) * t.level[l].width / (2 * area.width) - box.width / 2;
    window_y[l] = (2 * tile.top + kTile) * t.level[l].height / (2 * area.height) - box.height / 2;
  }
  if (threadIdx.x == 0) {
#pragma unroll
    for (int l = 0; l < kLevels; ++l)
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&s.arrived[l])));
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#pragma unroll
    for (int l = 0; l < kLevels; ++l)
      if (w.box[tile.number][l].width) request(s, w, t, tile, l, window_x[l], window_y[l]);
  }
  __syncthreads();

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, point = lane % 4;
  const int right = t.heads * kPixelBytes, last = area.width - 1;
  const char* image = reinterpret_cast<const char*>(
      value + (static_cast<int64_t>(tile.batch) * t.length * t.heads + tile.head) * kChannels);
  for (int first = warp * kWarpQueries; first < kTileQueries; first += kWarps * kWarpQueries) {
    const int y = tile.top + first / kTile, x = tile.left + first % kTile;
    if (y >= area.height || x >= area.width) continue;  // the same for the whole warp
    const int query = area.start + y * area.width + min(x + lane / 4, last);
    const int64_t row = (static_cast<int64_t>(tile.batch) * t.queries + query) * t.heads + tile.head;
    float2 at[kLevels];
    float weight[kLevels];
#pragma unroll
    for (int l = 0; l < kLevels; ++l) {
      at[l] = load_point(sampling + (row * kLevels + l) * kPoints * 2 + point * 2);
      weight[l] = to_float(__ldcs(attention + (row * kLevels + l) * kPoints + point));
    }
    if (kFused) softmax_of_quad<kLevels>(weight);
    float sum[2][8] = {};
#pragma unroll
    for (int l = 0; l < kLevels; ++l) {
      float2 centre{0.0f, 0.0f};
      if (kFused)
        centre = __ldg(reinterpret_cast<const float2*>(reference + tile.batch * t.reference_batch +
                                                       query * t.reference_query + l * t.reference_level));
      const Box& box = w.box[tile.number][l];
      if (box.width) wait_for(s.arrived[l]);
      add_level<T>(s, t.level[l], box, s.pixels + box.place * kPixelBytes, window_x[l], window_y[l],
                   image + static_cast<int64_t>(t.level[l].start) * right, right,
                   pixel<kFused>(at[l].x, centre.x, static_cast<float>(t.level[l].width)),
                   pixel<kFused>(at[l].y, centre.y, static_cast<float>(t.level[l].height)), weight[l], sum);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      // The lanes of the left pixels keep the first four channels, those of the right ones the last four.
      float kept[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float given = lane & 4 ? sum[half][i] : sum[half][4 + i];
        kept[i] = (lane & 4 ? sum[half][4 + i] : sum[half][i]) + __shfl_xor_sync(~0u, given, 4);
      }
      const int slot = half * 4 + lane / 8;
      if (x + slot > last) continue;
      const int64_t to = static_cast<int64_t>(tile.batch) * t.queries + area.start + y * area.width + x + slot;
      store_four(out + (to * t.heads + tile.head) * kChannels + lane % 4 * 8 + (lane & 4), kept);
    }
  }
#endif
}

using Encode = decltype(&cuTensorMapEncodeTiled);

// The driver's function, asked for at run time so that nothing links against the driver; null where it is too old.
Encode encoder() {
  static const Encode function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status;
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000, cudaEnableDefault, &status);
    if (error != cudaSuccess) cudaGetLastError();  // not an error of the caller
    return error == cudaSuccess && status == cudaDriverEntryPointSuccess ? reinterpret_cast<Encode>(found) : nullptr;
  }();
  return function;
}

// Windows for queries of `part`: as many levels as fit, those with the smallest windows first.
bool plan_windows(const Call& call, const Tiling& t, int part, Windows& w) {
  const int levels = static_cast<int>(call.sizes.levels);
  int used = 0;
  bool done[kFastLevels] = {};
  for (int turn = 0; turn < levels; ++turn) {
    int best = -1;
    Box smallest{};
    for (int l = 0; l < levels; ++l) {
      if (done[l]) continue;
      const int across = (kTile * t.level[l].width + t.part[part].width - 1) / t.part[part].width;
      const int down = (kTile * t.level[l].height + t.part[part].height - 1) / t.part[part].height;
      const int margin = across < kTile ? kMargin : kMargin - 1;
      const Box box{across + 2 * margin, down + 2 * margin, used};
      if (best < 0 || box.width * box.height < smallest.width * smallest.height) best = l, smallest = box;
    }
    done[best] = true;
    if (used + smallest.width * smallest.height > kWindowPixels || smallest.width > 256 || smallest.height > 256)
      continue;
    w.box[part][best] = smallest;
    used += (smallest.width * smallest.height + 1) / 2 * 2;  // the copy engine writes to multiples of 128 bytes
    const auto channels = static_cast<cuuint64_t>(t.heads) * kChannels;
    const FastLevel& level = t.level[best];
    const cuuint64_t size[4] = {channels, static_cast<cuuint64_t>(level.width), static_cast<cuuint64_t>(level.height),
                                static_cast<cuuint64_t>(call.sizes.batch)};
    const cuuint64_t stride[3] = {channels * 2, channels * 2 * level.width, channels * 2 * t.length};
    const cuuint32_t boxes[4] = {kChannels, static_cast<cuuint32_t>(smallest.width),
                                 static_cast<cuuint32_t>(smallest.height), 1};
    const cuuint32_t steps[4] = {1, 1, 1, 1};
    void* start = const_cast<char*>(static_cast<const char*>(call.value) + channels * 2 * level.start);
    if (encoder()(&w.map[part][best], CU_TENSOR_MAP_DATA_TYPE_UINT16, 4, start, size, stride, boxes, steps,
                  CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_NONE, CU_TENSOR_MAP_L2_PROMOTION_NONE,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) != CUDA_SUCCESS)
      return false;
  }
  return true;
}

template <class T, class P, int kLevels, bool kFused>
cudaError_t launch(const Call& call, cudaStream_t stream) {
  const Tiling t = make_tiling(call.sizes);
  Windows w{};
  for (int part = 0; part < t.parts; ++part)
    if (!plan_windows(call, t, part, w)) return cudaErrorInvalidValue;
  const auto kernel = window_kernel<T, P, kLevels, kFused>;
  const cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(sizeof(Shared)));
  if (error != cudaSuccess) return error;
  const auto blocks = static_cast<unsigned>(call.sizes.batch * t.tiles * t.heads);
  kernel<<<blocks, kThreads, sizeof(Shared), stream>>>(
      t, w, static_cast<const T*>(call.value), static_cast<const float*>(call.reference),
      static_cast<const P*>(call.sampling), static_cast<const P*>(call.attention), static_cast<T*>(call.out));
  return cudaGetLastError();
}

template <class T, int kLevels>
cudaError_t launch_form(const Call& call, cudaStream_t stream) {
  if (!call.reference) return launch<T, float, kLevels, false>(call, stream);
  return call.projection == Kind::f32 ? launch<T, float, kLevels, true>(call, stream)
                                      : launch<T, T, kLevels, true>(call, stream);
}

}  // namespace

bool fits_windows(const Call& call) {
  return call.compute_capability >= 90 && call.value_kind != Kind::f32 && call.sizes.queries == call.sizes.length &&
         encoder() != nullptr;
}

cudaError_t forward_window(const Call& call, cudaStream_t stream) {
  const bool three = call.sizes.levels == 3;
  if (call.value_kind == Kind::bf16)
    return three ? launch_form<__nv_bfloat16, 3>(call, stream) : launch_form<__nv_bfloat16, 4>(call, stream);
  return three ? launch_form<__half, 3>(call, stream) : launch_form<__half, 4>(call, stream);
}

}  // namespace mask2former
