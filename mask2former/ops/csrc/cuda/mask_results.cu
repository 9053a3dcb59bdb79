// Mask logits to results in one pass over the pixels of the output; see ops/mask_results.py. Nothing of the output's
// size is written but the results: binary masks, the winning query of each pixel, or a band of resized masks.
//
// A block has a strip of columns and some rows; a thread has a column, and keeps what it read of the logits for the
// next row. Sums are integers, so that they do not depend on the order of blocks.
#include <tuple>

#include "mask_results.cuh"

namespace mask2former {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

constexpr int kRows = 16;         // of a block
constexpr int kPanopticRows = 4;  // likewise, where each thread keeps the best query of its pixels
constexpr int kMaxQueries = 4000;  // three counters of each fit into shared memory
constexpr int kColumns = 6;       // of the numbers of a mask: area, total, left, top, right, bottom
constexpr double kUnit = 4294967296.0;  // of `total`

__global__ void clear_numbers(long long* numbers, int count, int height, int width) {
  const int n = blockIdx.x * blockDim.x + threadIdx.x;
  if (n >= count) return;
  long long* own = numbers + static_cast<int64_t>(n) * kColumns;
  own[0] = own[1] = own[4] = own[5] = 0;
  own[2] = width, own[3] = height;
}

template <bool Twice, bool Packed>
__global__ void __launch_bounds__(kThreads)
    binary_kernel(const float* logits, const int64_t* queries, Geometry g, uint8_t* masks, long long* numbers) {
  __shared__ Line rows[kRows];
  __shared__ float totals[kWarps];
  __shared__ int area, left, top, right, bottom;
  const int height = g.rows.output, width = g.columns.output;
  const int64_t mask = blockIdx.z, query = queries[mask];
  const int first = blockIdx.y * kRows, last = min(first + kRows, height);
  const int x = blockIdx.x * kThreads + threadIdx.x, lane = threadIdx.x % 32;
  const int64_t row_bytes = Packed ? (width + 7) / 8 : width;
  uint8_t* out = masks + mask * height * row_bytes;
  if (threadIdx.x == 0) area = right = bottom = 0, left = width, top = height;
  place_rows<Twice>(g.rows, first, height, rows);

  const Line column = line_of<Twice>(g.columns, min(x, width - 1));
  const float* values = logits + query * g.rows.logits * g.columns.logits;
  Sampler<Twice> sampler;
  float total = 0.0f;
  int inside = 0, from = height, to = 0;
  uint32_t hit = 0;
  for (int y = first; y < last; ++y) {
    bool positive = false;
    if (query >= 0) {
      const Line& row = rows[y - first];
      if (y == first || !same_rows<Twice>(row, rows[y - first - 1]))
        sampler.load(values, g.columns.logits, row, column);
      const float value = sampler.at(row, column);
      positive = value > 0.0f && x < width;
      if (positive) total += sigmoid(value);
    }
    const uint32_t bits = __ballot_sync(0xffffffffu, positive);
    if (Packed) {
      const int64_t byte = (x - lane) / 8 + lane;
      if (lane < 4 && byte < row_bytes) out[y * row_bytes + byte] = static_cast<uint8_t>(bits >> (8 * lane));
    } else if (x < width) {
      out[y * row_bytes + x] = positive;
    }
    if (bits) {
      inside += __popc(bits);
      hit |= bits;
      from = min(from, y);
      to = y + 1;
    }
  }
  if (query < 0) return;  // of all threads of the block
  for (int step = 16; step; step /= 2) total += __shfl_down_sync(0xffffffffu, total, step);
  if (lane == 0) {
    totals[threadIdx.x / 32] = total;
    if (hit) {
      atomicAdd(&area, inside);
      atomicMin(&left, x + __ffs(hit) - 1);
      atomicMax(&right, x + 32 - __clz(hit));
      atomicMin(&top, from);
      atomicMax(&bottom, to);
    }
  }
  __syncthreads();
  if (threadIdx.x || !area) return;
  double sum = 0.0;
  for (int warp = 0; warp < kWarps; ++warp) sum += totals[warp];
  long long* own = numbers + mask * kColumns;
  atomicAdd(reinterpret_cast<unsigned long long*>(own), static_cast<unsigned long long>(area));
  atomicAdd(reinterpret_cast<unsigned long long*>(own + 1), static_cast<unsigned long long>(llrint(sum * kUnit)));
  atomicMin(own + 2, static_cast<long long>(left));
  atomicMin(own + 3, static_cast<long long>(top));
  atomicMax(own + 4, static_cast<long long>(right));
  atomicMax(own + 5, static_cast<long long>(bottom));
}

template <bool Twice>
__global__ void __launch_bounds__(kThreads)
    panoptic_kernel(const float* logits, const float* weights, int count, Geometry g, int* winners, long long* numbers) {
  extern __shared__ int counters[];  // of each query: area, pixels won, pixels won inside its mask
  __shared__ Line rows[kPanopticRows];
  const int height = g.rows.output, width = g.columns.output;
  const int first = blockIdx.y * kPanopticRows;
  const int x = blockIdx.x * kThreads + threadIdx.x, lane = threadIdx.x % 32;
  for (int i = threadIdx.x; i < 3 * count; i += kThreads) counters[i] = 0;
  place_rows<Twice>(g.rows, first, height, rows);

  const Line column = line_of<Twice>(g.columns, min(x, width - 1));
  float best[kPanopticRows];
  int winner[kPanopticRows];
  bool inside[kPanopticRows];
#pragma unroll
  for (int r = 0; r < kPanopticRows; ++r) best[r] = -1.0f, winner[r] = -1, inside[r] = false;
  for (int q = 0; q < count; ++q) {
    const float weight = __ldg(weights + q);
    if (!(weight >= 0.0f)) continue;
    const float* values = logits + static_cast<int64_t>(q) * g.rows.logits * g.columns.logits;
    Sampler<Twice> sampler;
    int area = 0;
#pragma unroll
    for (int r = 0; r < kPanopticRows; ++r) {
      if (r == 0 || !same_rows<Twice>(rows[r], rows[r - 1]))
        sampler.load(values, g.columns.logits, rows[r], column);
      const float probability = sigmoid(sampler.at(rows[r], column));
      const float score = probability * weight;
      const bool own = probability >= 0.5f;
      area += __popc(__ballot_sync(0xffffffffu, own && x < width && first + r < height));
      if (score > best[r]) best[r] = score, winner[r] = q, inside[r] = own;
    }
    if (lane == 0 && area) atomicAdd(counters + 3 * q, area);
  }
#pragma unroll
  for (int r = 0; r < kPanopticRows; ++r) {
    const bool exists = x < width && first + r < height;
    if (exists) winners[static_cast<int64_t>(first + r) * width + x] = inside[r] ? winner[r] : -1;
    const uint32_t equal = __match_any_sync(0xffffffffu, exists ? winner[r] : -1);
    const uint32_t own = __ballot_sync(0xffffffffu, inside[r]) & equal;
    if (exists && winner[r] >= 0 && lane == __ffs(equal) - 1) {
      atomicAdd(counters + 3 * winner[r] + 1, __popc(equal));
      if (own) atomicAdd(counters + 3 * winner[r] + 2, __popc(own));
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < 3 * count; i += kThreads)
    if (counters[i])
      atomicAdd(reinterpret_cast<unsigned long long*>(numbers + i), static_cast<unsigned long long>(counters[i]));
}

template <bool Twice>
__global__ void __launch_bounds__(kThreads)
    rows_kernel(const float* logits, Geometry g, int begin, int end, bool as_probability, float* out) {
  __shared__ Line rows[kRows];
  const int width = g.columns.output;
  const int64_t mask = blockIdx.z;
  const int first = begin + blockIdx.y * kRows, last = min(first + kRows, end);
  const int x = blockIdx.x * kThreads + threadIdx.x;
  place_rows<Twice>(g.rows, first, end, rows);
  if (x >= width) return;

  const Line column = line_of<Twice>(g.columns, x);
  const float* values = logits + mask * g.rows.logits * g.columns.logits;
  float* own = out + (mask * (end - begin) + first - begin) * width + x;
  Sampler<Twice> sampler;
  for (int y = first; y < last; ++y, own += width) {
    const Line& row = rows[y - first];
    if (y == first || !same_rows<Twice>(row, rows[y - first - 1]))
      sampler.load(values, g.columns.logits, row, column);
    const float value = sampler.at(row, column);
    *own = as_probability ? sigmoid(value) : value;
  }
}

// ------------------------------------------------------------------ calls
std::tuple<Tensor, Tensor> binary_masks(const Tensor& logits, const Tensor& queries, std::vector<int64_t> padded,
                                        std::vector<int64_t> image, std::vector<int64_t> output, bool packed) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Call call(logits, padded, image, output);
  const Tensor chosen = prepared(queries, ScalarType::Long);
  STD_TORCH_CHECK(chosen.is_cuda() && chosen.dim() == 1 && chosen.size(0) < (1 << 16), "queries must be (N,) on a GPU");
  const int64_t masks = chosen.size(0);
  const int height = call.geometry.rows.output, width = call.geometry.columns.output;
  Tensor out = new_empty(call.logits, {masks, height, packed ? (width + 7) / 8 : width},
                         packed ? ScalarType::Byte : ScalarType::Bool);
  Tensor numbers = new_empty(call.logits, {masks, kColumns}, ScalarType::Long);
  if (masks == 0) return {out, numbers};
  const cudaStream_t stream = stream_of(call.logits);
  auto* sums = static_cast<long long*>(numbers.mutable_data_ptr());
  clear_numbers<<<static_cast<unsigned>((masks + 255) / 256), 256, 0, stream>>>(sums, static_cast<int>(masks), height,
                                                                               width);
  check_launch(cudaGetLastError(), "binary masks");
  const auto kernel = call.twice ? (packed ? binary_kernel<true, true> : binary_kernel<true, false>)
                                 : (packed ? binary_kernel<false, true> : binary_kernel<false, false>);
  kernel<<<call.grid(height, kRows, masks), kThreads, 0, stream>>>(
      call.values(), static_cast<const int64_t*>(chosen.const_data_ptr()), call.geometry,
      static_cast<uint8_t*>(out.mutable_data_ptr()), sums);
  check_launch(cudaGetLastError(), "binary masks");
  return {out, numbers};
}

std::tuple<Tensor, Tensor> panoptic_argmax(const Tensor& logits, const Tensor& weights, std::vector<int64_t> padded,
                                           std::vector<int64_t> image, std::vector<int64_t> output) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Call call(logits, padded, image, output);
  const Tensor weight = prepared(weights, ScalarType::Float);
  STD_TORCH_CHECK(weight.is_cuda() && weight.dim() == 1 && weight.size(0) == call.count, "weights must be (N,) on a GPU");
  STD_TORCH_CHECK(call.count <= kMaxQueries, "at most ", kMaxQueries, " queries");
  const int height = call.geometry.rows.output, width = call.geometry.columns.output;
  Tensor winners = new_empty(call.logits, {height, width}, ScalarType::Int);
  Tensor numbers = new_zeros(call.logits, {call.count, 3}, ScalarType::Long);
  const auto kernel = call.twice ? panoptic_kernel<true> : panoptic_kernel<false>;
  kernel<<<call.grid(height, kPanopticRows, 1), kThreads, 3 * sizeof(int) * call.count, stream_of(call.logits)>>>(
      call.values(), static_cast<const float*>(weight.const_data_ptr()), call.count, call.geometry,
      static_cast<int*>(winners.mutable_data_ptr()), static_cast<long long*>(numbers.mutable_data_ptr()));
  check_launch(cudaGetLastError(), "panoptic argmax");
  return {winners, numbers};
}

Tensor resize_rows(const Tensor& logits, std::vector<int64_t> padded, std::vector<int64_t> image,
                   std::vector<int64_t> output, int64_t begin, int64_t end, bool as_probability) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  const Call call(logits, padded, image, output);
  STD_TORCH_CHECK(0 <= begin && begin < end && end <= output[0], "rows are out of range");
  Tensor out = new_empty(call.logits, {call.count, end - begin, output[1]});
  if (call.count == 0) return out;
  const auto kernel = call.twice ? rows_kernel<true> : rows_kernel<false>;
  kernel<<<call.grid(end - begin, kRows, call.count), kThreads, 0, stream_of(call.logits)>>>(
      call.values(), call.geometry, static_cast<int>(begin), static_cast<int>(end), as_probability,
      static_cast<float*>(out.mutable_data_ptr()));
  check_launch(cudaGetLastError(), "resizing of masks");
  return out;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former, CUDA, m) {
  m.impl("binary_masks", TORCH_BOX(&mask2former::binary_masks));
  m.impl("panoptic_argmax", TORCH_BOX(&mask2former::panoptic_argmax));
  m.impl("resize_rows", TORCH_BOX(&mask2former::resize_rows));
}
