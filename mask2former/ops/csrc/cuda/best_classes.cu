// Semantic segmentation in one kernel: the class with the largest sum over queries of class score x mask probability.
//
// A block has 4 x 32 pixels. Its threads compute probabilities of 64 queries into shared memory, its warps multiply them
// with the class scores on tensor cores, 16 pixels each, and keep the sums of all classes in registers; then the next 64
// queries. Neither probabilities nor sums are ever written to memory.
//
// Products are as exact as in fp32: each factor is a sum of two fp16 numbers, high and low, and only the product of the
// two low parts, 2^-22 of the result, is left out. Factors are scaled so that low parts are normal numbers.
#include <cuda_fp16.h>
#include <mma.h>

#include "mask_results.cuh"

namespace mask2former {
namespace {

using torch::stable::new_empty;
namespace wmma = nvcuda::wmma;

constexpr int kTile = 16;                    // edge of the matrices that a warp multiplies
constexpr int kRows = 4, kPixels = 4 * 32;   // of a block
constexpr int kQueries = 64;                 // of a round
constexpr int kPitch = kPixels + 8;          // of shared memory, without conflicts of banks
constexpr float kScale = 1024.0f;            // of scores and probabilities, both at most 1

struct Parts {
  __half high, low;
};

__device__ __forceinline__ Parts split(float x) {
  x *= kScale;
  const __half high = __float2half_rn(x);
  return {high, __float2half_rn(x - __half2float(high))};
}

// Scores (K, Q) to their parts (classes, queries), filled up with zeros; first all high parts, then all low ones.
__global__ void split_scores(const float* scores, int K, int Q, int classes, int queries, __half* parts) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= classes * queries) return;
  const int k = i / queries, q = i % queries;
  const Parts own = split(k < K && q < Q ? scores[static_cast<int64_t>(k) * Q + q] : 0.0f);
  parts[i] = own.high;
  parts[i + classes * queries] = own.low;
}

template <bool Twice, int Tiles>
__global__ void __launch_bounds__(kThreads, 2)
    best_classes_kernel(const float* logits, int Q, const __half* scores, int K, int queries, Geometry g,
                        uint8_t* labels) {
  __shared__ Line rows[kRows];
  __shared__ __align__(32) __half high[kQueries * kPitch];
  __shared__ __align__(32) __half low[kQueries * kPitch];
  __shared__ __align__(32) float sums[kWarps][kTile * kTile];
  const int height = g.rows.output, width = g.columns.output;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int first = blockIdx.y * kRows, left = blockIdx.x * 32;
  place_rows<Twice>(g.rows, first, height, rows);
  const Line column = line_of<Twice>(g.columns, min(left + lane, width - 1));
  const __half* scores_low = scores + Tiles * kTile * queries;

  wmma::fragment<wmma::accumulator, kTile, kTile, kTile, float> total[Tiles];
#pragma unroll
  for (int t = 0; t < Tiles; ++t) wmma::fill_fragment(total[t], 0.0f);
  for (int start = 0; start < queries; start += kQueries) {
    const int end = min(kQueries, queries - start);  // a multiple of 16
    for (int q = warp; q < end; q += kWarps) {
      const float* values = logits + static_cast<int64_t>(start + q) * g.rows.logits * g.columns.logits;
      Sampler<Twice> sampler;
#pragma unroll 1  // the sums take most of the registers
      for (int r = 0; r < kRows; ++r) {
        Parts own = {__half(0.0f), __half(0.0f)};
        if (start + q < Q) {  // the same for the warp
          if (r == 0 || !same_rows<Twice>(rows[r], rows[r - 1]))
            sampler.load(values, g.columns.logits, rows[r], column);
          own = split(sigmoid(sampler.at(rows[r], column)));
        }
        high[q * kPitch + r * 32 + lane] = own.high;
        low[q * kPitch + r * 32 + lane] = own.low;
      }
    }
    __syncthreads();
    for (int q = 0; q < end; q += kTile) {
      wmma::fragment<wmma::matrix_b, kTile, kTile, kTile, __half, wmma::row_major> pixels_high, pixels_low;
      wmma::load_matrix_sync(pixels_high, high + q * kPitch + warp * kTile, kPitch);
      wmma::load_matrix_sync(pixels_low, low + q * kPitch + warp * kTile, kPitch);
#pragma unroll
      for (int t = 0; t < Tiles; ++t) {
        wmma::fragment<wmma::matrix_a, kTile, kTile, kTile, __half, wmma::row_major> classes;
        wmma::load_matrix_sync(classes, scores + t * kTile * queries + start + q, queries);
        wmma::mma_sync(total[t], classes, pixels_high, total[t]);
        wmma::mma_sync(total[t], classes, pixels_low, total[t]);
        wmma::load_matrix_sync(classes, scores_low + t * kTile * queries + start + q, queries);
        wmma::mma_sync(total[t], classes, pixels_high, total[t]);
      }
    }
    __syncthreads();
  }

  // Two threads for a pixel: one has the upper eight classes of each tile, one the lower eight.
  const int pixel = lane % kTile, part = lane / kTile * 8;
  float best = -1.0f;
  int label = 0;
#pragma unroll
  for (int t = 0; t < Tiles; ++t) {
    wmma::store_matrix_sync(sums[warp], total[t], kTile, wmma::mem_row_major);
    __syncwarp();
    for (int i = part; i < part + 8; ++i) {
      const float sum = sums[warp][i * kTile + pixel];
      if (t * kTile + i < K && sum > best) best = sum, label = t * kTile + i;
    }
    __syncwarp();
  }
  const float other = __shfl_down_sync(0xffffffffu, best, kTile);
  const int other_label = __shfl_down_sync(0xffffffffu, label, kTile);
  if (other > best || (other == best && other_label < label)) label = other_label;
  const int place = warp * kTile + pixel, y = first + place / 32, x = left + place % 32;
  if (lane < kTile && y < height && x < width) labels[static_cast<int64_t>(y) * width + x] = static_cast<uint8_t>(label);
}

template <int Tiles>
void launch(const Call& call, const Tensor& scores, Tensor& labels) {
  const int K = static_cast<int>(scores.size(0)), Q = call.count, classes = Tiles * kTile;
  const int queries = (Q + kTile - 1) / kTile * kTile;
  const cudaStream_t stream = stream_of(call.logits);
  Tensor parts = new_empty(call.logits, {2, classes, queries}, ScalarType::Half);
  auto* halves = static_cast<__half*>(parts.mutable_data_ptr());
  split_scores<<<(classes * queries + 255) / 256, 256, 0, stream>>>(static_cast<const float*>(scores.const_data_ptr()),
                                                                    K, Q, classes, queries, halves);
  check("scores of classes");
  const auto kernel = call.twice ? best_classes_kernel<true, Tiles> : best_classes_kernel<false, Tiles>;
  kernel<<<call.grid(call.geometry.rows.output, kRows, 1, 32), kThreads, 0, stream>>>(
      call.values(), Q, halves, K, queries, call.geometry, static_cast<uint8_t*>(labels.mutable_data_ptr()));
  check("best classes");
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
  if (scores.size(0) <= 32) {
    launch<2>(call, scores, labels);
  } else if (scores.size(0) <= 80) {
    launch<5>(call, scores, labels);
  } else if (scores.size(0) <= 144) {
    launch<9>(call, scores, labels);
  } else {
    launch<10>(call, scores, labels);
  }
  return labels;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former, CUDA, m) { m.impl("best_classes", TORCH_BOX(&mask2former::best_classes)); }
