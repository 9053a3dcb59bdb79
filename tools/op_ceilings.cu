// What a GPU can do at most for the deformable-attention op; the table of docs/op_notes.md.
//
//   nvcc -O3 -arch=sm_90 -o op_ceilings tools/op_ceilings.cu && ./op_ceilings
//
// Rows of 64 or 128 bytes are read at random out of a window that fits the L1 cache, or out of shared memory; or added
// to at random in global memory. Times are in clocks of one multiprocessor for an instruction of a warp, at the card's
// highest clock rate.
#include <cuda_runtime.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

constexpr int kThreads = 1024, kTurns = 400, kUnroll = 8;

void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s\n", cudaGetErrorString(error));
  std::exit(1);
}

__device__ uint32_t next(uint32_t& s) { return s ^= s << 13, s ^= s >> 17, s ^= s << 5; }

__device__ uint32_t seed(int more) {
  uint32_t s = threadIdx.x / 32 * 977 + blockIdx.x * 31337 + more * 7919 + 12345;
  for (int i = 0; i < 5; ++i) next(s);
  return s;
}

// kLanes lanes read a row, V bytes each: float4 or float2.
template <class V, int kLanes>
__global__ void l1_rows(const char* memory, int rows, int pitch, float* out) {
  __shared__ uint32_t offsets[4096];
  uint32_t s = seed(threadIdx.x);
  for (int i = threadIdx.x; i < 4096; i += blockDim.x) offsets[i] = next(s) % rows * pitch;
  __syncthreads();
  const int group = threadIdx.x / kLanes;
  const char* window = memory + static_cast<size_t>(blockIdx.x) * rows * pitch + threadIdx.x % kLanes * sizeof(V);
  float sum = 0;
  for (int i = 0; i < kTurns; ++i)
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const V v = __ldg(reinterpret_cast<const V*>(window + offsets[((group + i * 67) & 511) * 8 + k]));
      sum += v.x + v.y;
    }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

enum class Shared { rows, same_for_8, add };

template <Shared kWhat>
__global__ void shared_memory(float* out) {
  extern __shared__ int memory[];
  for (int i = threadIdx.x; i < 16384; i += blockDim.x) memory[i] = i * 16 & 16383;
  __syncthreads();
  const int lane = threadIdx.x % 32;
  uint32_t s = seed(kWhat == Shared::rows ? lane / 8 : 0);
  int sum = lane;
  for (int i = 0; i < kTurns; ++i) {
    const uint32_t r = next(s);
#pragma unroll
    for (int k = 0; k < kUnroll; ++k) {
      const uint32_t at = r + k * 5u * (1 + (r >> 20));
      if (kWhat == Shared::add) {
        atomicAdd(&memory[(at & 511) * 32 + lane], 1);
      } else {
        const int place = kWhat == Shared::rows ? (at & 511) * 32 + lane % 8 * 4 : (at + lane / 8 * 12 & 4095) * 4;
        const int4 v = *reinterpret_cast<const int4*>(&memory[place]);
        sum += v.x ^ v.y ^ v.z ^ v.w;
      }
    }
  }
  out[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

template <bool kHalf>
__global__ void additions(char* memory, uint32_t rows) {
  constexpr int kLanes = kHalf ? 4 : 8;
  const int lane = threadIdx.x % 32;
  uint32_t s = seed(lane / kLanes);
  for (int i = 0; i < kTurns; ++i) {
    char* p = memory + static_cast<size_t>(next(s) % rows) * (kHalf ? 512 : 1024) + lane % kLanes * 16;
#if __CUDA_ARCH__ >= 900
    if (kHalf)
      asm volatile("red.global.add.noftz.v4.bf16x2 [%0], {%1, %1, %1, %1};" ::"l"(p), "r"(0x3f803f80) : "memory");
    else
      asm volatile("red.global.add.v4.f32 [%0], {%1, %1, %1, %1};" ::"l"(p), "f"(1.0f) : "memory");
#endif
  }
}

template <class Run>
double seconds(Run run) {
  cudaEvent_t start, end;
  check(cudaEventCreate(&start)), check(cudaEventCreate(&end));
  float best = 1e9f;
  for (int turn = 0; turn < 4; ++turn) {
    check(cudaEventRecord(start));
    run();
    check(cudaGetLastError());
    check(cudaEventRecord(end)), check(cudaEventSynchronize(end));
    float milliseconds;
    check(cudaEventElapsedTime(&milliseconds, start, end));
    if (turn && milliseconds < best) best = milliseconds;
  }
  return best / 1e3;
}

int main() {
  cudaDeviceProp card;
  int kilohertz = 0;
  check(cudaGetDeviceProperties(&card, 0));
  check(cudaDeviceGetAttribute(&kilohertz, cudaDevAttrClockRate, 0));
  const int blocks = card.multiProcessorCount;
  std::printf("%s, %d multiprocessors, %.2f GHz\n", card.name, blocks, kilohertz / 1e6);
  char* memory;
  float* out;
  check(cudaMalloc(&memory, size_t{1} << 30)), check(cudaMemset(memory, 0, size_t{1} << 30));
  check(cudaMalloc(&out, size_t{64} << 20));
  const double instructions = kThreads / 32.0 * kTurns * kUnroll;  // of a multiprocessor
  const auto clocks = [&](const char* what, double time) {
    std::printf("%-62s %5.2f clocks\n", what, time * kilohertz * 1e3 / instructions);
  };
  clocks("L1 cache, 4 rows of 128 bytes, 16 bytes a lane",
         seconds([&] { l1_rows<float4, 8><<<blocks, kThreads>>>(memory, 768, 1024, out); }));
  clocks("L1 cache, 8 rows of 64 bytes, 16 bytes a lane",
         seconds([&] { l1_rows<float4, 4><<<blocks, kThreads>>>(memory, 768, 512, out); }));
  clocks("L1 cache, 4 rows of 64 bytes, 8 bytes a lane",
         seconds([&] { l1_rows<float2, 8><<<blocks, kThreads>>>(memory, 768, 512, out); }));
  const auto in_shared = [&](auto kernel, const char* what) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536));
    clocks(what, seconds([&] { kernel<<<blocks, kThreads, 65536>>>(out); }));
  };
  in_shared(shared_memory<Shared::rows>, "shared memory, 4 rows of 128 bytes");
  in_shared(shared_memory<Shared::same_for_8>, "shared memory, 16 bytes a lane, the same for 8 lanes");
  in_shared(shared_memory<Shared::add>, "shared memory, integer add, 32 lanes");
  const double bytes = blocks * 4.0 * 512 * 16 * kTurns;  // 16 bytes a thread and turn
  const auto rate = [&](const char* what, double time) { std::printf("%-62s %5.2f TB/s\n", what, bytes / time / 1e12); };
  if (card.major < 9) return 0;
  rate("additions in the L2 cache, fp32", seconds([&] { additions<false><<<blocks * 4, 512>>>(memory, 172032); }));
  rate("additions in the L2 cache, bf16", seconds([&] { additions<true><<<blocks * 4, 512>>>(memory, 172032); }));
  return 0;
}
