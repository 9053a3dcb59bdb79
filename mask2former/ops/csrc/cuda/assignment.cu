// Linear assignment: a block for each problem. All its threads read the costs, one or four warps search.
#include "assignment.h"

#include "assignment.cuh"

namespace mask2former {
namespace {

constexpr int kThreads = 128;
constexpr int kFewColumns = 256;  // up to here a warp is faster alone: waiting for others costs more than columns do

__device__ __forceinline__ uint32_t least_of_warp(uint32_t x) {
#if __CUDA_ARCH__ >= 800
  return __reduce_min_sync(~0u, x);
#else
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) x = min(x, __shfl_xor_sync(~0u, x, distance));
  return x;
#endif
}

// Integers in the order of the numbers; nothing comes after all of them.
__device__ __forceinline__ uint64_t ordered(const Nearest& n) {
  if (n.column < 0) return ~0ull;
  const uint64_t bits = static_cast<uint64_t>(__double_as_longlong(n.length + 0.0));  // -0 becomes 0
  return bits >> 63 ? ~bits : bits | 1ull << 63;
}

__device__ __forceinline__ Nearest nearest_of_warp(const Nearest& mine) {
  const uint64_t key = ordered(mine);
  const uint32_t high = static_cast<uint32_t>(key >> 32), low = static_cast<uint32_t>(key);
  const uint32_t least_high = least_of_warp(high);
  const uint32_t least_low = least_of_warp(high == least_high ? low : ~0u);
  const bool is_least = high == least_high && low == least_low;
  uint32_t lanes = __ballot_sync(~0u, is_least && mine.row < 0);
  if (!lanes) lanes = __ballot_sync(~0u, is_least);
  const int source = __ffs(lanes) - 1;
  return {__shfl_sync(~0u, mine.length, source), __shfl_sync(~0u, mine.column, source),
          __shfl_sync(~0u, mine.row, source)};
}

struct Warp {
  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ int lanes() const { return 32; }
  __device__ void sync() const { __syncwarp(); }
  __device__ Nearest nearest(const Nearest& mine) const { return nearest_of_warp(mine); }
};

struct Block {
  Nearest (*of_warps)[kThreads / 32];  // two sets in turn, so that one wait a call is enough
  int turn = 0;

  __device__ int lane() const { return static_cast<int>(threadIdx.x); }
  __device__ int lanes() const { return kThreads; }
  __device__ void sync() const { __syncthreads(); }
  __device__ Nearest nearest(const Nearest& mine) {
    const Nearest own = nearest_of_warp(mine);
    Nearest* all = of_warps[turn];
    turn ^= 1;
    if (threadIdx.x % 32 == 0) all[threadIdx.x / 32] = own;
    __syncthreads();
    Nearest best = all[0];
#pragma unroll
    for (int i = 1; i < kThreads / 32; ++i)
      if (all[i].before(best)) best = all[i];
    return best;
  }
};

struct Costs {
  const float* first;
  int64_t row_stride, column_stride;

  __device__ float operator()(int row, int column) const {
    return finite_cost(first[row * row_stride + column * column_stride]);
  }
};

// Odd, so that neighboring rows lie in different banks.
__host__ __device__ __forceinline__ int pitch_of(int columns) { return columns | 1; }

template <bool kAlone>
__global__ void assignment_kernel(const __grid_constant__ Assignment call, bool staged) {
  extern __shared__ double memory[];
  __shared__ Nearest of_warps[2][kThreads / 32];
  const int64_t given = call.counts[blockIdx.x];
  const int count = static_cast<int>(given < 0 ? 0 : given > call.objects ? call.objects : given);
  int64_t* out = call.out + static_cast<int64_t>(blockIdx.x) * call.objects;
  for (int n = threadIdx.x; n < call.objects; n += kThreads) out[n] = -1;
  // What there is less of takes turns, the other is searched.
  const bool objects_are_rows = count <= call.queries;
  const int rows = objects_are_rows ? count : call.queries, columns = objects_are_rows ? call.queries : count;
  if (rows == 0) return;
  const Assigning state(memory, rows, columns);
  const float* first = call.cost + blockIdx.x * call.problem_stride;
  Costs costs{first, call.query_stride, call.object_stride};
  if (objects_are_rows) costs = {first, call.object_stride, call.query_stride};
  if (staged) {
    float* table = reinterpret_cast<float*>(reinterpret_cast<char*>(memory) + Assigning::bytes(rows, columns));
    const int pitch = pitch_of(columns), total = call.queries * count;
#pragma unroll 4
    for (int k = threadIdx.x; k < total; k += kThreads) {
      const int query = k / count, object = k % count;
      const float value = first[query * call.query_stride + object * call.object_stride];
      table[objects_are_rows ? object * pitch + query : query * pitch + object] = value;
    }
    costs = {table, pitch, 1};
  }
  __syncthreads();
  int lanes = kThreads;
  if constexpr (kAlone) {
    if (threadIdx.x >= 32) return;
    lanes = 32;
    Warp team;
    assign(team, costs, rows, columns, state);
  } else {
    Block team{of_warps};
    assign(team, costs, rows, columns, state);
  }
  for (int i = threadIdx.x; i < rows; i += lanes) {
    if (objects_are_rows) out[i] = state.column_of[i];
    else out[state.column_of[i]] = i;
  }
}

}  // namespace

cudaError_t linear_assignment(const Assignment& call, int device, cudaStream_t stream) {
  const int rows = call.queries < call.objects ? call.queries : call.objects;
  const int columns = call.queries < call.objects ? call.objects : call.queries;
  auto kernel = columns <= kFewColumns ? assignment_kernel<true> : assignment_kernel<false>;
  int available = 0;
  cudaError_t error = cudaDeviceGetAttribute(&available, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  if (error != cudaSuccess) return error;
  // Room for any count: a problem with fewer objects has no more rows and columns than these, and the odd pitch adds at
  // most one float a row.
  const size_t state = Assigning::bytes(rows, columns);
  const size_t table = (static_cast<size_t>(call.queries) * call.objects + columns) * sizeof(float);
  const size_t kept = sizeof(Nearest) * 2 * (kThreads / 32);  // the static part
  const bool staged = state + table + kept <= static_cast<size_t>(available);
  const size_t bytes = staged ? state + table : state;
  // As much as there can be, not as much as this call needs: other threads launch the same kernel.
  const int most = available - static_cast<int>(kept);
  error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, most);
  if (error != cudaSuccess) return error;
  kernel<<<call.problems, kThreads, bytes, stream>>>(call, staged);
  return cudaGetLastError();
}

}  // namespace mask2former
