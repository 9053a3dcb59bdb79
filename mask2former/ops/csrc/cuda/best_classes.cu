// Semantic segmentation in one kernel: the class with the largest sum over queries of class score x mask probability.
//
// A warp has 4 x 8 pixels, and nothing in common with other warps: its lanes compute the probabilities of 16 queries
// where tensor cores want them, in their own registers, multiply them with the scores of all classes, and keep the sums
// in registers too; then the next 16 queries. Neither probabilities nor sums are ever written to memory. Scores are
// stored in the order in which lanes read them, 16 bytes each.
//
// Products are as exact as in fp32: each factor is a sum of two fp16 numbers, high and low, and only the product of the
// two low parts, 2^-22 of the result, is left out. Factors are scaled so that low parts are normal numbers.
#include <cuda_fp16.h>

#include "mask_results.cuh"
#include "tensor_cores.cuh"

namespace mask2former {
namespace {

using torch::stable::new_empty;

constexpr int kRows = 4, kColumns = 8;  // pixels of a warp
constexpr int kOwnWarps = 4;            // of a block, side by side
constexpr int kQueries = 16;            // of a round: the inner length of a product of matrices
constexpr int kOfLane = 4;              // queries of them whose probabilities a lane computes
constexpr float kScale = 1024.0f;       // of scores and probabilities, both at most 1
constexpr float kLog2E = 1.4426950408889634f;
constexpr float kLowest = -1e30f;       // of logits: a weight of zero makes no NaN of it, as it does of -inf

__device__ __forceinline__ uint32_t bits_of(__half2 two) { return reinterpret_cast<const uint32_t&>(two); }

// Two numbers as high and low parts.
__device__ __forceinline__ void split(float a, float b, uint32_t& high, uint32_t& low) {
  const __half2 rounded = __floats2half2_rn(a, b);
  const float2 back = __half22float2(rounded);
  high = bits_of(rounded);
  low = bits_of(__floats2half2_rn(a - back.x, b - back.y));
}

// 1024 / (1 + e^-x) to 4 ulp: the scale is a power of two, which costs nothing.
__device__ __forceinline__ float scaled_sigmoid(float x) {
  return __fdividef(1.0f, fmaf(power_of_two(-kLog2E * x), 1.0f / kScale, 1.0f / kScale));
}

// Scores (K, Q) as fragments B of `multiply`, whose rows are queries and whose columns are classes: for each 16 queries,
// 8 classes and lane the two registers of high parts, then those of low parts. Zeros fill up.
__global__ void split_scores(const float* scores, int K, int Q, int tiles, int rounds, uint4* parts) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= rounds * tiles * 32) return;
  const int lane = i % 32, k = i / 32 % tiles * 8 + lane / 4, q = i / 32 / tiles * kQueries + lane % 4 * 2;
  const auto score = [&](int offset) {
    return k < K && q + offset < Q ? kScale * scores[static_cast<int64_t>(k) * Q + q + offset] : 0.0f;
  };
  uint4 own;
  split(score(0), score(1), own.x, own.z);
  split(score(8), score(9), own.y, own.w);
  parts[i] = own;
}

// The logits that 4 rows and one column of the output are means of, where these are few: a window of kHigh x kWide. As
// all interpolation is linear, each row and each column has one weight for each line of the window.
template <int kHigh, int kWide>
struct Window {
  float raw[kOfLane][kHigh][kWide];

  __device__ __forceinline__ void load(const float* (&values)[kOfLane], const int (&rows)[kHigh],
                                       const int (&columns)[kWide]) {
#pragma unroll
    for (int i = 0; i < kOfLane; ++i)
#pragma unroll
      for (int y = 0; y < kHigh; ++y)
#pragma unroll
        for (int x = 0; x < kWide; ++x) raw[i][y][x] = __ldg(values[i] + (rows[y] + columns[x]));
  }
};

// Adds up the weights that a row or column has for the lines from `first` on.
template <int kLines>
__device__ __forceinline__ void weigh(const Line& line, bool twice, int first, float* weights) {
  for (int i = 0; i < kLines; ++i) weights[i] = 0.0f;
  const float second = twice ? line.weight[2] : 0.0f;
  const float each[4] = {(1.0f - second) * (1.0f - line.weight[0]), (1.0f - second) * line.weight[0],
                         second * (1.0f - line.weight[1]), second * line.weight[1]};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (j >= 2 && !twice) break;
#pragma unroll
    for (int i = 0; i < kLines; ++i)
      if (line.at[j] - first == i) weights[i] += each[j];
  }
}

__device__ __forceinline__ Line line_at(const Axis& axis, int index, bool twice) {
  return twice ? line_of<true>(axis, index) : line_of<false>(axis, index);
}

// The pixels of a warp: 4 rows from `first`, 8 columns from `left`. A lane has a column.
struct Place {
  int first, left, lane;

  __device__ __forceinline__ Place()
      : first(blockIdx.y * kRows),
        left((blockIdx.x * kOwnWarps + threadIdx.x / 32) * kColumns),
        lane(threadIdx.x % 32) {}

  __device__ __forceinline__ int column(int width) const { return min(left + lane / 4, width - 1); }
  // The lane's queries of a round; the scores of those that do not exist are 0.
  __device__ __forceinline__ void values(const float* logits, int start, int Q, int64_t plane,
                                         const float* (&out)[kOfLane]) const {
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
      const int query = start + lane % 4 * 2 + i % 2 + i / 2 * 8;
      out[i] = logits + min(query, Q - 1) * plane;
    }
  }
};

// Scores x probabilities: the sums of 8 x Tiles classes. Of 16 pixels each, rows 2 m and 2 m + 1 of the warp, which are
// rows 0 to 7 and 8 to 15 of fragments A and C.
template <int Tiles>
struct Sums {
  float of[Tiles][2][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int t = 0; t < Tiles; ++t)
#pragma unroll
      for (int i = 0; i < 8; ++i) of[t][i / 4][i % 4] = 0.0f;
  }

  __device__ __forceinline__ void add(const uint4* scores, const uint32_t (&high)[2][4], const uint32_t (&low)[2][4]) {
#pragma unroll
    for (int t = 0; t < Tiles; ++t) {
      const uint4 classes = __ldg(scores + 32 * t);
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply(of[t][m], high[m], classes.x, classes.y, __half());
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply(of[t][m], low[m], classes.x, classes.y, __half());
#pragma unroll
      for (int m = 0; m < 2; ++m) multiply(of[t][m], high[m], classes.z, classes.w, __half());
    }
  }

  // Writes the best class of each pixel; of equal sums the first one. A lane has two of each 8 classes of a pixel, and
  // the four lanes of its column have them all.
  __device__ __forceinline__ void write_best(const Place& place, int K, const Geometry& g, uint8_t* labels) const {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      float best = -1.0f;
      int label = 0;
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int k = 8 * t + place.lane % 4 * 2 + i;
          const float sum = of[t][r / 2][r % 2 * 2 + i];
          if (k < K && sum > best) best = sum, label = k;
        }
      }
#pragma unroll
      for (int step = 1; step < 4; step *= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, best, step);
        const int other_label = __shfl_xor_sync(0xffffffffu, label, step);
        if (other > best || (other == best && other_label < label)) best = other, label = other_label;
      }
      const int y = place.first + r, x = place.left + place.lane / 4;
      if (place.lane % 4 == 0 && y < g.rows.output && x < g.columns.output)
        labels[static_cast<int64_t>(y) * g.columns.output + x] = static_cast<uint8_t>(label);
    }
  }
};

// Sizes whose pixels need few logits (`fits`), as those of results usually do.
template <int kHigh, int kWide, int Tiles>
__global__ void __launch_bounds__(32 * kOwnWarps)
    window_kernel(const float* logits, int Q, const uint4* scores, int K, Geometry g, bool twice, uint8_t* labels) {
  constexpr bool kAhead = kHigh * kWide <= 9;  // logits of the next round are on their way during products
  __shared__ __align__(16) float weights[kRows][(kHigh + 3) / 4 * 4];
  __shared__ int top;
  const Place place;
  if (threadIdx.x < kRows) {
    const int base = line_at(g.rows, place.first, twice).at[0];
    const int row = min(place.first + static_cast<int>(threadIdx.x), g.rows.output - 1);
    weigh<kHigh>(line_at(g.rows, row, twice), twice, base, weights[threadIdx.x]);
    if (threadIdx.x == 0) top = base;
  }
  __syncthreads();
  if (place.left >= g.columns.output) return;

  int rows[kHigh], columns[kWide];
  float across[kWide];
  const Line column = line_at(g.columns, place.column(g.columns.output), twice);
  weigh<kWide>(column, twice, column.at[0], across);
#pragma unroll
  for (int x = 0; x < kWide; ++x) columns[x] = min(column.at[0] + x, g.columns.logits - 1);
#pragma unroll
  for (int y = 0; y < kHigh; ++y) rows[y] = min(top + y, g.rows.logits - 1) * g.columns.logits;
  const int64_t plane = static_cast<int64_t>(g.rows.logits) * g.columns.logits;
  const float* values[kOfLane];
  Window<kHigh, kWide> window;
  Sums<Tiles> sums;
  sums.clear();
  scores += place.lane;
  if (kAhead && Q) {
    place.values(logits, 0, Q, plane, values);
    window.load(values, rows, columns);
  }
#pragma unroll 1
  for (int start = 0; start < Q; start += kQueries, scores += 32 * Tiles) {
    if (!kAhead) {
      place.values(logits, start, Q, plane, values);
      window.load(values, rows, columns);
    }
    uint32_t high[2][4], low[2][4];
#pragma unroll
    for (int pair = 0; pair < kOfLane / 2; ++pair) {
      float lines[2][kHigh];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
#pragma unroll
        for (int y = 0; y < kHigh; ++y) {
          float sum = across[0] * window.raw[2 * pair + i][y][0];
#pragma unroll
          for (int x = 1; x < kWide; ++x) sum = fmaf(across[x], window.raw[2 * pair + i][y][x], sum);
          lines[i][y] = fmaxf(sum, kLowest);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float own[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float sum = weights[r][0] * lines[i][0];
#pragma unroll
          for (int y = 1; y < kHigh; ++y) sum = fmaf(weights[r][y], lines[i][y], sum);
          own[i] = scaled_sigmoid(sum);
        }
        split(own[0], own[1], high[r / 2][2 * pair + r % 2], low[r / 2][2 * pair + r % 2]);
      }
    }
    if (kAhead) {
      place.values(logits, start + kQueries, Q, plane, values);
      window.load(values, rows, columns);
    }
    sums.add(scores, high, low);
  }
  sums.write_best(place, K, g, labels);
}

// Any sizes.
template <bool Twice, int Tiles>
__global__ void __launch_bounds__(32 * kOwnWarps)
    general_kernel(const float* logits, int Q, const uint4* scores, int K, Geometry g, uint8_t* labels) {
  __shared__ Line rows[kRows];
  const Place place;
  place_rows<Twice>(g.rows, place.first, g.rows.output, rows);
  if (place.left >= g.columns.output) return;
  const Line column = line_of<Twice>(g.columns, place.column(g.columns.output));
  const int64_t plane = static_cast<int64_t>(g.rows.logits) * g.columns.logits;
  Sums<Tiles> sums;
  sums.clear();
  scores += place.lane;
#pragma unroll 1
  for (int start = 0; start < Q; start += kQueries, scores += 32 * Tiles) {
    const float* values[kOfLane];
    place.values(logits, start, Q, plane, values);
    uint32_t high[2][4], low[2][4];
#pragma unroll
    for (int pair = 0; pair < kOfLane / 2; ++pair) {
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        float own[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          Sampler<Twice> sampler;
          sampler.load(values[2 * pair + i], g.columns.logits, rows[r], column);
          own[i] = scaled_sigmoid(sampler.at(rows[r], column));
        }
        split(own[0], own[1], high[r / 2][2 * pair + r % 2], low[r / 2][2 * pair + r % 2]);
      }
    }
    sums.add(scores, high, low);
  }
  sums.write_best(place, K, g, labels);
}

// Whether 4 rows, and one column, of the output are means of so many lines of logits, whatever rounding does.
bool fits(const Geometry& g, bool twice, int high, int wide) {
  const float span = twice ? (3.0f * g.rows.to_output + 2.0f) * g.rows.to_padded : 3.0f * g.rows.to_padded;
  return span <= static_cast<float>(high - 2) - 0.1f && (twice ? wide >= 3 && g.columns.to_padded <= 0.9f : wide >= 2);
}

template <int Tiles>
void launch(const Call& call, const Tensor& scores, Tensor& labels) {
  const int K = static_cast<int>(scores.size(0)), Q = call.count, rounds = (Q + kQueries - 1) / kQueries;
  const cudaStream_t stream = stream_of(call.logits);
  const int entries = rounds * Tiles * 32;  // of 16 bytes
  Tensor parts = new_empty(call.logits, {max(entries, 1), 8}, ScalarType::Half);
  auto* fragments = static_cast<uint4*>(parts.mutable_data_ptr());
  if (entries) {
    split_scores<<<(entries + 255) / 256, 256, 0, stream>>>(static_cast<const float*>(scores.const_data_ptr()), K, Q,
                                                            Tiles, rounds, fragments);
    check_launch(cudaGetLastError(), "scores of classes");
  }
  const dim3 grid = call.grid(call.geometry.rows.output, kRows, 1, kColumns * kOwnWarps);
  const int threads = 32 * kOwnWarps;
  auto* out = static_cast<uint8_t*>(labels.mutable_data_ptr());
  const Geometry& g = call.geometry;
  if (fits(g, call.twice, 3, 2)) {
    window_kernel<3, 2, Tiles><<<grid, threads, 0, stream>>>(call.values(), Q, fragments, K, g, call.twice, out);
  } else if (fits(g, call.twice, 3, 3)) {
    window_kernel<3, 3, Tiles><<<grid, threads, 0, stream>>>(call.values(), Q, fragments, K, g, call.twice, out);
  } else if (fits(g, call.twice, 5, 3)) {
    window_kernel<5, 3, Tiles><<<grid, threads, 0, stream>>>(call.values(), Q, fragments, K, g, call.twice, out);
  } else if (call.twice) {
    general_kernel<true, Tiles><<<grid, threads, 0, stream>>>(call.values(), Q, fragments, K, g, out);
  } else {
    general_kernel<false, Tiles><<<grid, threads, 0, stream>>>(call.values(), Q, fragments, K, g, out);
  }
  check_launch(cudaGetLastError(), "best classes");
}

Tensor best_classes(const Tensor& logits, const Tensor& given, std::vector<int64_t> padded, std::vector<int64_t> image,
                    std::vector<int64_t> output) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Call call(logits, padded, image, output);
  const Tensor scores = prepared(given, ScalarType::Float);
  STD_TORCH_CHECK(scores.is_cuda() && scores.dim() == 2 && scores.size(1) == call.count,
                  "scores must be (K, Q) on a GPU, for Q masks");
  STD_TORCH_CHECK(scores.size(0) >= 1 && scores.size(0) <= 160, "1 to 160 classes");
  Tensor labels = new_empty(call.logits, {output[0], output[1]}, ScalarType::Byte);
  const int64_t classes = scores.size(0);
  if (classes <= 32) {
    launch<4>(call, scores, labels);
  } else if (classes <= 80) {
    launch<10>(call, scores, labels);
  } else if (classes <= 136) {
    launch<17>(call, scores, labels);
  } else {
    launch<20>(call, scores, labels);
  }
  return labels;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former, CUDA, m) { m.impl("best_classes", TORCH_BOX(&mask2former::best_classes)); }
