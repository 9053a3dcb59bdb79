// Points of the mask losses (PointRend, arXiv 1912.08193), the losses there, and what matching computes of its logits. A
// block takes one mask.
//
// Candidates are not kept: their places come from a counter (Philox, Salmon et al., SC 2011) and are computed again where
// they are needed. A radix selection finds the logit up to which candidates count: 11 and 5 bits from what was kept of
// each, then 11 and 4 bits of the few whose upper 16 bits are those of the last one.
#include <cuda_bf16.h>

#include "mask_points.h"
#include "point_reading.cuh"

namespace mask2former {
namespace {

constexpr int kThreads = 1024;
constexpr int kWarps = kThreads / 32;
constexpr int kBins = 2048;
constexpr int kLossThreads = 256;
constexpr int kBandThreads = 512;
constexpr int kBandValues = 16384;  // at most: 64 KiB, so that a multiprocessor has three blocks

__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const uint32_t high0 = __umulhi(0xD2511F53u, counter.x), low0 = 0xD2511F53u * counter.x;
    const uint32_t high1 = __umulhi(0xCD9E8D57u, counter.z), low1 = 0xCD9E8D57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key.x, low1, high0 ^ counter.w ^ key.y, low0);
    key.x += 0x9E3779B9u, key.y += 0xBB67AE85u;
  }
  return counter;
}

__device__ __forceinline__ float unit(uint32_t bits) { return static_cast<float>(bits >> 8) * 0x1p-24f; }

// Two points for each number of the counter.
struct Random {
  uint2 key;
  uint32_t row, kind;  // candidates or others

  __device__ uint4 bits(int pair) const { return philox(make_uint4(pair, row, kind, 0), key); }
  __device__ float2 point(int i) const {
    const uint4 x = bits(i / 2);
    return i % 2 ? make_float2(unit(x.z), unit(x.w)) : make_float2(unit(x.x), unit(x.y));
  }
};

// One row of logits: how certain it is at a point, as bits that have the order of the magnitudes.
struct Certainty {
  const float* map;
  int height, width;

  __device__ uint32_t operator()(float2 point) const {
    const float logit = read_at<int>(map, height, width, corner_of(point, height, width));
    return __float_as_uint(logit) & 0x7fffffffu;
  }
};

struct Shared {
  uint32_t counts[kBins];
  uint32_t warp_sums[2][kWarps];
  uint32_t bin, before;
};

__device__ __forceinline__ uint32_t sum_before(uint32_t x) {  // of the lanes before this one
  const int lane = threadIdx.x % 32;
  uint32_t sum = x;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint32_t other = __shfl_up_sync(~0u, sum, step);
    if (lane >= step) sum += other;
  }
  return sum - x;
}

__device__ __forceinline__ void clear(Shared& s) {
  for (int i = threadIdx.x; i < kBins; i += kThreads) s.counts[i] = 0;
  __syncthreads();
}

// The bin that holds the `rank`-th of the counted numbers, from 1; `rank` becomes that within the bin.
__device__ __forceinline__ uint32_t find_bin(Shared& s, uint32_t& rank) {
  static_assert(kBins == 2 * kThreads, "a thread has two bins");
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  __syncthreads();
  const uint32_t first = s.counts[2 * threadIdx.x], both = first + s.counts[2 * threadIdx.x + 1];
  uint32_t before = sum_before(both);
  if (lane == 31) s.warp_sums[0][warp] = before + both;
  __syncthreads();
  before += __reduce_add_sync(~0u, lane < warp ? s.warp_sums[0][lane] : 0u);
  if (before < rank && rank <= before + both) {
    const bool second = rank > before + first;
    s.bin = 2 * threadIdx.x + second;
    s.before = before + (second ? first : 0);
  }
  __syncthreads();
  const uint32_t bin = s.bin;
  rank -= s.before;
  __syncthreads();
  return bin;
}

__global__ void __launch_bounds__(kThreads)
    draw_kernel(const __grid_constant__ PointDraw call, int key_bytes, bool copied) {
  extern __shared__ __align__(16) char memory[];
  __shared__ Shared s;
  const int64_t row = blockIdx.x;
  const int size = call.height * call.width, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  uint16_t* keys = call.keys ? call.keys + row * call.candidates : reinterpret_cast<uint16_t*>(memory);
  const float* map = call.logits + row * size;
  if (copied) {
    float* copy = reinterpret_cast<float*>(memory + key_bytes);
    for (int i = threadIdx.x; i < size; i += kThreads) copy[i] = map[i];
    map = copy;
  }
  const Certainty certainty{map, call.height, call.width};
  const uint64_t seed = static_cast<uint64_t>(*call.seed);
  const uint2 key = make_uint2(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  const Random candidates{key, static_cast<uint32_t>(row), 0}, others{key, static_cast<uint32_t>(row), 1};
  float2* out = reinterpret_cast<float2*>(call.out) + row * call.points;

  for (int j = threadIdx.x; j < call.points - call.important; j += kThreads) {
    float2 point = others.point(j);
    if (j < call.inside) {
      const float4 box = reinterpret_cast<const float4*>(call.regions)[row];
      point.x = __fadd_rn(box.x, __fmul_rn(point.x, __fsub_rn(box.z, box.x)));
      point.y = __fadd_rn(box.y, __fmul_rn(point.y, __fsub_rn(box.w, box.y)));
    }
    out[call.important + j] = point;
  }
  if (call.important == 0) return;

  clear(s);
  for (int pair = threadIdx.x; 2 * pair < call.candidates; pair += kThreads) {
    const uint4 x = candidates.bits(pair);
    const float2 points[2] = {make_float2(unit(x.x), unit(x.y)), make_float2(unit(x.z), unit(x.w))};
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (2 * pair + i >= call.candidates) continue;
      const uint32_t upper = certainty(points[i]) >> 15;
      keys[2 * pair + i] = static_cast<uint16_t>(upper);
      atomicAdd(&s.counts[upper >> 5], 1u);
    }
  }
  uint32_t rank = call.important;
  const uint32_t first_bits = find_bin(s, rank);

  clear(s);
  for (int i = threadIdx.x; i < call.candidates; i += kThreads)
    if (keys[i] >> 5 == first_bits) atomicAdd(&s.counts[keys[i] & 31], 1u);
  const uint32_t last_key = first_bits << 5 | find_bin(s, rank);

  clear(s);
  for (int i = threadIdx.x; i < call.candidates; i += kThreads)
    if (keys[i] == last_key) atomicAdd(&s.counts[certainty(candidates.point(i)) >> 4 & 2047], 1u);
  uint32_t last = last_key << 11 | find_bin(s, rank);

  clear(s);
  for (int i = threadIdx.x; i < call.candidates; i += kThreads) {
    if (keys[i] != last_key) continue;
    const uint32_t bits = certainty(candidates.point(i));
    if (bits >> 4 == last) atomicAdd(&s.counts[bits & 15], 1u);
  }
  last = last << 4 | find_bin(s, rank);

  // All that are nearer to 0 than the last one, and the first `rank` of those that equal it.
  const unsigned lanes_before = (1u << lane) - 1;
  uint32_t nearer = 0, equal = 0;  // before this turn
  for (int first = 0, turn = 0; first < call.candidates; first += kThreads, turn ^= 1) {
    const int i = first + threadIdx.x;
    bool is_nearer = false, is_equal = false;
    if (i < call.candidates) {
      is_nearer = keys[i] < last_key;
      if (keys[i] == last_key) {
        const uint32_t bits = certainty(candidates.point(i));
        is_nearer = bits < last, is_equal = bits == last;
      }
    }
    const unsigned nearer_lanes = __ballot_sync(~0u, is_nearer), equal_lanes = __ballot_sync(~0u, is_equal);
    if (lane == 0) s.warp_sums[turn][warp] = __popc(nearer_lanes) | __popc(equal_lanes) << 16;
    __syncthreads();  // two arrays in turn: nobody overwrites what others still read
    const uint32_t mine = s.warp_sums[turn][lane];
    const uint32_t before = __reduce_add_sync(~0u, lane < warp ? mine : 0u), all = __reduce_add_sync(~0u, mine);
    const uint32_t equal_before = equal + (before >> 16) + __popc(equal_lanes & lanes_before);
    if (is_nearer || (is_equal && equal_before < rank)) {
      const uint32_t nearer_before = nearer + (before & 0xffffu) + __popc(nearer_lanes & lanes_before);
      out[nearer_before + min(equal_before, rank)] = candidates.point(i);
    }
    nearer += all & 0xffffu, equal += all >> 16;
  }
}

// What a thread needs of the mask and the logits of its row.
template <class T, class Index>
struct Row {
  const float* logits;
  const T* mask;
  const float2* places;
  int mask_height, mask_width;

  __device__ Row(const PointLosses& call, int64_t row)
      : logits(call.logits + row * call.height * call.width),
        places(reinterpret_cast<const float2*>(call.places) + row * call.points) {
    const int64_t number = call.index[row];
    mask = static_cast<const T*>(call.data) + call.table[number];
    mask_height = static_cast<int>(call.table[call.masks + number]);
    mask_width = static_cast<int>(call.table[2 * call.masks + number]);
  }

  __device__ float expected(const PointLosses& call, float2 place) const {
    return read_at<Index>(mask, mask_height, mask_width, corner_of(place, call.image_height, call.image_width));
  }
};

struct Logit {
  float probability, softplus;

  __device__ explicit Logit(float x) {
    const float small = __expf(-fabsf(x)), inverse = __fdividef(1.0f, 1.0f + small);
    probability = x >= 0.0f ? inverse : small * inverse;
    softplus = fmaxf(x, 0.0f) + log1pf(small);
  }
};

template <class T, class Index>
__global__ void __launch_bounds__(kLossThreads) losses_kernel(const __grid_constant__ PointLosses call) {
  __shared__ float4 sums[kLossThreads / 32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  const Row<T, Index> row(call, blockIdx.x);
  float4 sum{};  // cross-entropy, overlap, prediction, mask
  for (int64_t p = threadIdx.x; p < call.points; p += kLossThreads) {
    const float2 place = __ldg(row.places + p);
    const float logit = read_at<int>(row.logits, call.height, call.width, corner_of(place, call.height, call.width));
    const float expected = row.expected(call, place);
    const Logit of(logit);
    sum.x += of.softplus - logit * expected;
    sum.y += of.probability * expected;
    sum.z += of.probability;
    sum.w += expected;
  }
#pragma unroll
  for (int step = 16; step; step /= 2) {
    sum.x += __shfl_xor_sync(~0u, sum.x, step), sum.y += __shfl_xor_sync(~0u, sum.y, step);
    sum.z += __shfl_xor_sync(~0u, sum.z, step), sum.w += __shfl_xor_sync(~0u, sum.w, step);
  }
  if (lane == 0) sums[warp] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < kLossThreads / 32; ++w)
    sum.x += sums[w].x, sum.y += sums[w].y, sum.z += sums[w].z, sum.w += sums[w].w;
  const float numerator = 2.0f * sum.y + 1.0f, denominator = sum.z + sum.w + 1.0f;
  call.cross_entropy[blockIdx.x] = sum.x / call.points;
  call.dice[blockIdx.x] = 1.0f - numerator / denominator;
  call.sums[2 * blockIdx.x] = numerator, call.sums[2 * blockIdx.x + 1] = denominator;
}

// Some rows of the gradient, all of a small map, are summed in a block's memory and written once. Additions in the L2 cache
// took 7.4 ms instead of 2.6 on an H200 (6,880 maps of 128 x 128, 12,544 points each).
template <class T, class Index>
__global__ void __launch_bounds__(kBandThreads)
    losses_backward_kernel(const __grid_constant__ PointLosses call, int band_rows) {
  extern __shared__ float band[];
  const unsigned first = blockIdx.y * band_rows, height = min(band_rows, call.height - static_cast<int>(first));
  const int size = height * call.width;
  for (int i = threadIdx.x; i < size; i += kBandThreads) band[i] = 0.0f;
  __syncthreads();
  const Row<T, Index> row(call, blockIdx.x);
  const float numerator = call.sums[2 * blockIdx.x], denominator = call.sums[2 * blockIdx.x + 1];
  const float of_entropy = call.grad_cross_entropy[blockIdx.x] / call.points;
  const float of_dice = call.grad_dice[blockIdx.x] / (denominator * denominator);
  for (int64_t p = threadIdx.x; p < call.points; p += kBandThreads) {
    const float2 place = __ldg(row.places + p);
    const Corner corner = corner_of(place, call.height, call.width);
    const unsigned top = static_cast<unsigned>(corner.row) - first;  // wraps around above the band
    if (top + 1 > height) continue;
    const float probability = Logit(read_at<int>(row.logits, call.height, call.width, corner)).probability;
    const float expected = row.expected(call, place);
    const float grad = of_entropy * (probability - expected) + of_dice * probability * (1.0f - probability) *
                                                                   (numerator - 2.0f * expected * denominator);
#pragma unroll
    for (int pixel = 0; pixel < 4; ++pixel)
      if (lies_in(corner, pixel, call.height, call.width) && top + pixel / 2 < height)
        atomicAdd(band + static_cast<int>(top + pixel / 2) * call.width + corner.column + pixel % 2,
                  grad * share_of(corner, pixel));
  }
  __syncthreads();
  float* out = call.grad_logits + (static_cast<int64_t>(blockIdx.x) * call.height + first) * call.width;
  for (int i = threadIdx.x; i < size; i += kBandThreads) __stcs(out + i, band[i]);
}

// Both bf16 numbers, at `points` from each other.
__device__ __forceinline__ void store_in_two(__nv_bfloat16* out, int64_t points, float x) {
  const __nv_bfloat16 upper = __float2bfloat16_rn(x);
  out[0] = upper;
  out[points] = __float2bfloat16_rn(x - __bfloat162float(upper));
}

__device__ __forceinline__ void store_in_two(__nv_bfloat162* out, int64_t pairs, float2 x) {
  const __nv_bfloat162 upper = __floats2bfloat162_rn(x.x, x.y);
  out[0] = upper;
  out[pairs] = __floats2bfloat162_rn(x.x - __low2float(upper), x.y - __high2float(upper));
}

template <bool kPairs>
__global__ void __launch_bounds__(kLossThreads) terms_kernel(const __grid_constant__ MatchingTerms call) {
  __shared__ float2 sums[kLossThreads / 32];
  const float* logits = call.logits + blockIdx.x * call.points;
  auto* terms = reinterpret_cast<__nv_bfloat16*>(call.terms) + blockIdx.x * call.points * 4;
  float2 sum{};
  if (kPairs) {
    const int64_t pairs = call.points / 2;
    auto* out = reinterpret_cast<__nv_bfloat162*>(terms);
    for (int64_t i = threadIdx.x; i < pairs; i += kLossThreads) {
      const float2 x = __ldg(reinterpret_cast<const float2*>(logits) + i);
      const Logit first(x.x), second(x.y);
      store_in_two(out + i, pairs, x);
      store_in_two(out + 2 * pairs + i, pairs, make_float2(first.probability, second.probability));
      sum.x += first.softplus + second.softplus, sum.y += first.probability + second.probability;
    }
  } else {
    for (int64_t i = threadIdx.x; i < call.points; i += kLossThreads) {
      const float x = __ldg(logits + i);
      const Logit of(x);
      store_in_two(terms + i, call.points, x);
      store_in_two(terms + 2 * call.points + i, call.points, of.probability);
      sum.x += of.softplus, sum.y += of.probability;
    }
  }
#pragma unroll
  for (int step = 16; step; step /= 2)
    sum.x += __shfl_xor_sync(~0u, sum.x, step), sum.y += __shfl_xor_sync(~0u, sum.y, step);
  if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  for (int w = 1; w < kLossThreads / 32; ++w) sum.x += sums[w].x, sum.y += sums[w].y;
  call.sums[2 * static_cast<int64_t>(blockIdx.x)] = sum.x;
  call.sums[2 * static_cast<int64_t>(blockIdx.x) + 1] = sum.y;
}

// What a block can have beside `Shared`.
int memory_of_block(int32_t device) {
  int most = 0;
  if (cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) != cudaSuccess) return 0;
  return most - static_cast<int>(sizeof(Shared)) - 1024;  // which the system keeps
}

int64_t bytes_of_keys(const PointDraw& call) { return (int64_t{call.candidates} * 2 + 15) / 16 * 16; }

}  // namespace

bool keys_fit(const PointDraw& call, int32_t device) { return bytes_of_keys(call) <= memory_of_block(device); }

cudaError_t draw_points(const PointDraw& call, int32_t device, cudaStream_t stream) {
  const int64_t keys = call.keys ? 0 : bytes_of_keys(call), map = int64_t{call.height} * call.width * 4;
  const bool copied = keys + map <= memory_of_block(device);
  const int64_t memory = keys + (copied ? map : 0);
  // What a block may have, not what it needs: another thread's call may come between this one and the launch.
  const cudaError_t error =
      cudaFuncSetAttribute(draw_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, memory_of_block(device));
  if (error != cudaSuccess) return error;
  draw_kernel<<<static_cast<unsigned>(call.rows), kThreads, memory, stream>>>(call, static_cast<int>(keys), copied);
  return cudaGetLastError();
}

cudaError_t point_losses(const PointLosses& call, cudaStream_t stream) {
  auto kernel = call.large ? (call.soft ? losses_kernel<float, int64_t> : losses_kernel<uint8_t, int64_t>)
                           : (call.soft ? losses_kernel<float, int> : losses_kernel<uint8_t, int>);
  kernel<<<static_cast<unsigned>(call.rows), kLossThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

cudaError_t point_losses_backward(const PointLosses& call, cudaStream_t stream) {
  if (call.width > kBandValues) return cudaErrorInvalidConfiguration;
  const int band_rows = min(kBandValues / call.width, call.height);
  const dim3 blocks(static_cast<unsigned>(call.rows), static_cast<unsigned>((call.height + band_rows - 1) / band_rows));
  const int memory = band_rows * call.width * static_cast<int>(sizeof(float));
  auto kernel = call.large
                    ? (call.soft ? losses_backward_kernel<float, int64_t> : losses_backward_kernel<uint8_t, int64_t>)
                    : (call.soft ? losses_backward_kernel<float, int> : losses_backward_kernel<uint8_t, int>);
  const cudaError_t error = cudaFuncSetAttribute(
      kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBandValues * static_cast<int>(sizeof(float)));
  if (error != cudaSuccess) return error;
  kernel<<<blocks, kBandThreads, memory, stream>>>(call, band_rows);
  return cudaGetLastError();
}

cudaError_t matching_terms(const MatchingTerms& call, cudaStream_t stream) {
  auto kernel = call.points % 2 ? terms_kernel<false> : terms_kernel<true>;
  kernel<<<static_cast<unsigned>(call.rows), kLossThreads, 0, stream>>>(call);
  return cudaGetLastError();
}

}  // namespace mask2former
