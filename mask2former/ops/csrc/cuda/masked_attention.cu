// Masked attention of a few queries to many keys, for 32 channels a head ("flash decoding").
//
// Blocks = images x heads x groups of queries x splits of the keys. The keys of a block pass through shared memory in
// tiles of 64, which `cp.async` fills two tiles ahead. A warp takes 16 queries: logits, softmax and sums of a tile stay
// in its registers. A second kernel puts the splits together.
//
// Order of keys: softmax and sum do not depend on it, so a tile's keys are numbered such that the 16 keys of a lane are
// adjacent in memory, and its part of a row of the mask is one load of 16 bytes. Column 2t + e of the j-th 8 columns of
// the logits (t = lane % 4, e = 0 or 1) is key 16 t + 2 j + e; the rows of K and V are read in the same order.
//
// Queries that are blocked everywhere attend everywhere. Whether a query is one of them is known at the end only, so as
// long as it has met no open key it attends to all; at its first open key it forgets that. `norms` tells of every split
// which of both it holds: a split without an open key counts only if no split has one.
#include "masked_attention.h"

#include "device.cuh"
#include "tensor_cores.cuh"

namespace mask2former {
namespace {

constexpr int kTileKeys = 64;
constexpr int kRows = 16;  // queries of a warp
constexpr int kMostWarps = 7;  // enough for 100 queries
constexpr int kStages = 3;
constexpr int kMostSplits = 256;
constexpr int kResidentBlocks = 2;  // of a multiprocessor
constexpr int kTileBytes = kTileKeys * kHeadChannels * 2;
constexpr int kCombineWarps = 8;
constexpr float kLogitScale = 0.17677669529663687f * 1.4426950408889634f;  // 1 / sqrt(32), and to powers of two

__host__ __device__ __forceinline__ int tiles_of(int keys) { return (keys - 1) / kTileKeys + 1; }

// Where a row of a tile keeps its 16 bytes number `part`: the 8 rows of one matrix (of all t and e, one j), which start
// 64 bytes or multiples of 1024 bytes apart, lie in different banks.
__device__ __forceinline__ int place_of(int row, int part) { return row * 64 + ((part ^ (row >> 4 & 3)) << 4); }

template <class T>
__device__ __forceinline__ uint32_t packed(float a, float b) {
  typename Pair<T>::type two;
  two.x = from_float<T>(a), two.y = from_float<T>(b);
  return reinterpret_cast<const uint32_t&>(two);
}

template <>
__device__ __forceinline__ uint32_t packed<__nv_bfloat16>(float a, float b) {
  const __nv_bfloat162 two = __floats2bfloat162_rn(a, b);  // one instruction
  return reinterpret_cast<const uint32_t&>(two);
}

template <>
__device__ __forceinline__ uint32_t packed<__half>(float a, float b) {
  const __half2 two = __floats2half2_rn(a, b);
  return reinterpret_cast<const uint32_t&>(two);
}

// Of the 4 keys from number 4 i on, those that are not there, as bytes of 1; `present` are there from number 0 on.
__device__ __forceinline__ uint32_t absent(int i, int present) {
  const int number = present - 4 * i;
  return number >= 4 ? 0u : number <= 0 ? 0x01010101u : 0x01010101u << (8 * number);
}

// Bytes `first` to `first` + 15 of a row of the mask with `keys` bytes; 1 (blocked) behind its end.
__device__ __forceinline__ void read_blocked(uint32_t (&words)[4], const uint8_t* row, int first, int keys,
                                             bool aligned) {
  const uint8_t* at = row + first;
  const int present = keys - first;
  if (aligned && present >= 16) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(at));
    words[0] = bits.x, words[1] = bits.y, words[2] = bits.z, words[3] = bits.w;
    return;
  }
  // The aligned words that hold at least one of the bytes, moved to each other.
  const int before = reinterpret_cast<uintptr_t>(at) % 4;
  const unsigned* word = reinterpret_cast<const unsigned*>(at - before);
  unsigned x[5];
#pragma unroll
  for (int i = 0; i < 5; ++i) x[i] = 4 * i - before < (present < 16 ? present : 16) ? __ldg(word + i) : 0u;
#pragma unroll
  for (int i = 0; i < 4; ++i) words[i] = __funnelshift_r(x[i], x[i + 1], 8 * before) | absent(i, present);
}

// One tile of K and V, by all threads.
template <class T>
__device__ __forceinline__ void copy_tile(uint32_t to, const T* key, const T* value, const MaskedAttention& p,
                                          int first) {
  for (int i = threadIdx.x; i < kTileKeys * 4; i += blockDim.x) {
    const int row = i / 4, part = i % 4;
    const bool given = first + row < p.keys;
    const int64_t source = given ? first + row : 0;  // an address that exists
    copy_async(to + place_of(row, part), key + source * p.key_strides.row + part * 8, given);
    copy_async(to + kTileBytes + place_of(row, part), value + source * p.value_strides.row + part * 8, given);
  }
}

// What a warp holds of its 16 queries; a lane has two of them, g and g + 8 (r = 0, 1), of 4 lanes each.
template <class T>
struct Rows {
  uint32_t query[2][4];                      // A fragments, 16 channels each
  float sum[4][4] = {};                      // C fragments, 8 channels each: weights times values
  float top[2] = {-INFINITY, -INFINITY};     // largest logit
  float norm[2] = {};                        // sum of the weights of this lane's keys
  bool met[2] = {};                          // whether there was an open key

  // Attends to one tile of keys; `words` are the bytes of the mask of the lane's keys, a row each; `present` of these
  // 16 keys, or more, exist.
  __device__ __forceinline__ void attend(uint32_t keys, uint32_t (&words)[2][4], int present) {
    const int lane = threadIdx.x % 32;
    bool idle = true;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const uint32_t all = words[r][0] & words[r][1] & words[r][2] & words[r][3];
      const unsigned vote = __ballot_sync(~0u, (~all & 0x01010101u) != 0);
      const bool open = (vote >> (lane & 28) & 15u) != 0;
      if (open && !met[r]) {
        met[r] = true;
        top[r] = -INFINITY;  // this makes the factor of the old sums 0
      }
      idle &= met[r] && !open;
    }
    if (__all_sync(~0u, idle)) return;
#pragma unroll
    for (int r = 0; r < 2; ++r)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        words[r][i] = (met[r] ? words[r][i] : 0u) | (present < 16 ? absent(i, present) : 0u);

    // Row `lane % 8` of the matrices of key group j, channels 8 (lane / 8) and on; j adds 2 rows.
    const int row = 16 * (lane % 8 / 2) + lane % 2;
    const uint32_t mine = keys + place_of(row, lane / 8);
    float logits[8][4];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      uint32_t b[4];
      read_matrices(b, mine + j * 128);
#pragma unroll
      for (int i = 0; i < 4; ++i) logits[j][i] = 0.0f;
      multiply(logits[j], query[0], b[0], b[1], T{});
      multiply(logits[j], query[1], b[2], b[3], T{});
    }
    float shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) shift[r] = softmax_shift(logits, words[r], r);
    const uint32_t values = mine + kTileBytes;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      // 16 keys: the C fragments of two groups of 8 columns are the A fragment of their weights.
      uint32_t a[4], b0[4], b1[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const float(&two)[4] = logits[2 * i + k / 2];
        const int r = k % 2;
        const float x = power_of_two(fmaf(two[2 * r], kLogitScale, shift[r]));
        const float y = power_of_two(fmaf(two[2 * r + 1], kLogitScale, shift[r]));
        norm[r] += x + y;
        a[k] = packed<T>(x, y);
      }
      read_transposed(b0, values + (2 * i) * 128);
      read_transposed(b1, values + (2 * i + 1) * 128);
#pragma unroll
      for (int c = 0; c < 4; ++c) multiply(sum[c], a, b0[c], b1[c], T{});
    }
  }

  // Blocks logits of query r, and moves its top, norm and sums on; returns what to add to scaled logits.
  __device__ __forceinline__ float softmax_shift(float (&logits)[8][4], const uint32_t (&words)[4], int r) {
    float largest = top[r];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float& x = logits[j][2 * r + e];
        if (words[j / 2] & (1u << (8 * (2 * (j % 2) + e)))) x = -INFINITY;
        largest = fmaxf(largest, x);
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    const float factor = power_of_two((top[r] - largest) * kLogitScale);
    top[r] = largest;
    norm[r] *= factor;
#pragma unroll
    for (int c = 0; c < 4; ++c) sum[c][2 * r] *= factor, sum[c][2 * r + 1] *= factor;
    return -largest * kLogitScale;
  }
};

__device__ __forceinline__ int64_t row_of(const MaskedAttention& p, int batch, int query, int head) {
  return (static_cast<int64_t>(batch) * p.queries + query) * p.heads + head;
}

template <class T>
__global__ void __launch_bounds__(kMostWarps * 32, kResidentBlocks) attend_kernel(
    const __grid_constant__ MaskedAttention p, unsigned groups) {
  __shared__ __align__(128) unsigned char tiles[kStages][2 * kTileBytes];
  let_next_kernel_start();
  // Heads next to each other: they share lines of K and V, and the mask.
  const unsigned heads = p.heads, splits = p.splits;
  const unsigned head = blockIdx.x % heads, split = blockIdx.x / heads % splits, rest = blockIdx.x / heads / splits;
  const int group = rest % groups, batch = rest / groups;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first_query = (group * static_cast<int>(blockDim.x / 32) + warp) * kRows;
  const bool busy = first_query < p.queries;

  const unsigned number = tiles_of(p.keys);  // below 2^24, so that the products are below 2^32
  const int first_tile = number * split / splits, last_tile = number * (split + 1) / splits;
  const T* key = static_cast<const T*>(p.key) + batch * p.key_strides.batch + head * p.key_strides.head;
  const T* value = static_cast<const T*>(p.value) + batch * p.value_strides.batch + head * p.value_strides.head;
  const uint32_t shared = shared_address(tiles);
#pragma unroll
  for (int i = 0; i < kStages - 1; ++i) {
    if (first_tile + i < last_tile)
      copy_tile(shared + i * 2 * kTileBytes, key, value, p, (first_tile + i) * kTileKeys);
    close_group();
  }

  Rows<T> rows;
  const int own[2] = {first_query + lane / 4, first_query + lane / 4 + 8};
  const uint8_t* blocked[2];
  uint32_t next[2][4];
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int n = own[r] < p.queries ? own[r] : p.queries - 1;  // a row that exists
    const T* query = static_cast<const T*>(p.query) + batch * p.query_strides.batch + head * p.query_strides.head +
                     n * p.query_strides.row;
#pragma unroll
    for (int i = 0; i < 4; ++i)  // channels 8 i + 2 t and the next
      rows.query[i / 2][i % 2 * 2 + r] = __ldg(reinterpret_cast<const unsigned*>(query) + 4 * i + lane % 4);
    blocked[r] = p.blocked + batch * p.blocked_batch + n * p.blocked_row;
    read_blocked(next[r], blocked[r], first_tile * kTileKeys + lane % 4 * 16, p.keys, p.blocked_aligned);
  }

  int stage = 0;
#pragma unroll 1
  for (int tile = first_tile; tile < last_tile; ++tile) {
    wait_for_groups<kStages - 2>();
    __syncthreads();  // the tile is there for all, and nobody reads the one before it any more
    if (tile + kStages - 1 < last_tile)
      copy_tile(shared + (stage + kStages - 1) % kStages * 2 * kTileBytes, key, value, p,
                (tile + kStages - 1) * kTileKeys);
    close_group();
    const int first = tile * kTileKeys + lane % 4 * 16;
    uint32_t words[2][4];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) words[r][i] = next[r][i];
      if (busy && tile + 1 < last_tile)
        read_blocked(next[r], blocked[r], first + kTileKeys, p.keys, p.blocked_aligned);
    }
    if (busy) rows.attend(shared + stage * 2 * kTileBytes, words, p.keys - first);
    stage = (stage + 1) % kStages;
  }
  if (!busy) return;

#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float norm = rows.norm[r];
    norm += __shfl_xor_sync(~0u, norm, 1);
    norm += __shfl_xor_sync(~0u, norm, 2);
    if (own[r] >= p.queries) continue;
    if (p.splits == 1) {
      T* out = static_cast<T*>(p.out) + row_of(p, batch, own[r], head) * kHeadChannels;
      const float scale = 1.0f / norm;
#pragma unroll
      for (int c = 0; c < 4; ++c)
        reinterpret_cast<uint32_t*>(out)[4 * c + lane % 4] =
            packed<T>(rows.sum[c][2 * r] * scale, rows.sum[c][2 * r + 1] * scale);
      continue;
    }
    const int64_t at = row_of(p, batch, own[r], head) * p.splits + split;
#pragma unroll
    for (int c = 0; c < 4; ++c)
      reinterpret_cast<float2*>(p.sums + at * kHeadChannels)[4 * c + lane % 4] =
          make_float2(rows.sum[c][2 * r], rows.sum[c][2 * r + 1]);
    // The sign says whether an open key was met: a norm is positive.
    if (lane % 4 == 0) p.norms[at] = make_float2(rows.top[r] * kLogitScale, rows.met[r] ? norm : -norm);
  }
}

// A warp puts the splits of one query and head together: 8 lanes a split, 4 channels a lane.
template <class T>
__global__ void __launch_bounds__(kCombineWarps * 32) combine_kernel(const float* sums, const float2* norms, T* out,
                                                                     int64_t rows, int splits) {
  wait_for_previous_kernel();
  const int lane = threadIdx.x % 32;
  const int64_t row = static_cast<int64_t>(blockIdx.x) * kCombineWarps + threadIdx.x / 32;
  if (row >= rows) return;
  norms += row * splits;
  sums += row * splits * kHeadChannels + lane % 8 * 4;
  float top = -INFINITY, top_open = -INFINITY;
  bool open = false;
  for (int i = lane; i < splits; i += 32) {
    const float2 norm = __ldcg(norms + i);
    top = fmaxf(top, norm.x);
    if (!(norm.y < 0.0f)) {
      open = true;
      top_open = fmaxf(top_open, norm.x);
    }
  }
  open = __any_sync(~0u, open);
  if (open) top = top_open;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) top = fmaxf(top, __shfl_xor_sync(~0u, top, step));

  float total = 0.0f, sum[4] = {};
#pragma unroll 8
  for (int i = lane / 8; i < splits; i += 4) {
    const float2 norm = __ldcg(norms + i);
    const float4 x = __ldcg(reinterpret_cast<const float4*>(sums + i * kHeadChannels));
    const float factor = open && norm.y < 0.0f ? 0.0f : power_of_two(norm.x - top);
    total = fmaf(factor, fabsf(norm.y), total);
    sum[0] = fmaf(factor, x.x, sum[0]), sum[1] = fmaf(factor, x.y, sum[1]);
    sum[2] = fmaf(factor, x.z, sum[2]), sum[3] = fmaf(factor, x.w, sum[3]);
  }
#pragma unroll
  for (int step = 8; step < 32; step *= 2) {
    total += __shfl_xor_sync(~0u, total, step);
#pragma unroll
    for (int k = 0; k < 4; ++k) sum[k] += __shfl_xor_sync(~0u, sum[k], step);
  }
  if (lane >= 8) return;
  const float scale = 1.0f / total;
  reinterpret_cast<uint2*>(out + row * kHeadChannels)[lane] =
      make_uint2(packed<T>(sum[0] * scale, sum[1] * scale), packed<T>(sum[2] * scale, sum[3] * scale));
}

// Blocks for the queries of one image and head, and their warps.
void group_queries(int queries, int& groups, int& warps) {
  const int needed = (queries - 1) / kRows + 1;
  groups = (needed + kMostWarps - 1) / kMostWarps;
  warps = (needed + groups - 1) / groups;
}

template <class T>
cudaError_t run(const MaskedAttention& call, cudaStream_t stream) {
  int groups, warps;
  group_queries(call.queries, groups, warps);
  const int64_t blocks = static_cast<int64_t>(call.batch) * call.heads * groups * call.splits;
  if (blocks > INT32_MAX) return cudaErrorInvalidConfiguration;
  attend_kernel<T><<<static_cast<unsigned>(blocks), warps * 32, 0, stream>>>(call, groups);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess || call.splits == 1) return error;

  // Code that was compiled for an older GPU has no instruction to wait with.
  cudaFuncAttributes compiled{};
  const cudaError_t unknown = cudaFuncGetAttributes(&compiled, combine_kernel<T>);
  if (unknown != cudaSuccess) return unknown;
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  const int64_t rows = static_cast<int64_t>(call.batch) * call.queries * call.heads;
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>((rows + kCombineWarps - 1) / kCombineWarps);
  config.blockDim = kCombineWarps * 32;
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = call.overlap && compiled.ptxVersion >= 90 ? 1 : 0;
  return cudaLaunchKernelEx(&config, combine_kernel<T>, static_cast<const float*>(call.sums),
                            static_cast<const float2*>(call.norms), static_cast<T*>(call.out), rows, call.splits);
}

}  // namespace

int best_splits(const MaskedAttention& call, int multiprocessors) {
  int groups, warps;
  group_queries(call.queries, groups, warps);
  const int64_t units = static_cast<int64_t>(call.batch) * call.heads * groups;
  const int tiles = tiles_of(call.keys), slots = multiprocessors * kResidentBlocks;
  // Time in tiles: blocks run in waves, and the start and end of a block take as long as about two tiles.
  const int most = tiles < kMostSplits ? tiles : kMostSplits;
  int best = 1;
  int64_t least = INT64_MAX;
  for (int splits = 1; splits <= most && (splits == 1 || units * splits <= 4 * slots); ++splits) {
    const int64_t waves = (units * splits + slots - 1) / slots;
    const int64_t time = waves * ((tiles + splits - 1) / splits + 2);
    if (time < least) best = splits, least = time;
  }
  return best;
}

cudaError_t masked_attention(const MaskedAttention& call, cudaStream_t stream) {
  return call.half ? run<__half>(call, stream) : run<__nv_bfloat16>(call, stream);
}

}  // namespace mask2former
