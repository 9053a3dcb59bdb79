// The CPU kernels of torch.ops.mask2former: tensors to plain memory, and the work to the threads.
#include <algorithm>
#include <cstring>
#include <limits>
#include <tuple>
#include <type_traits>

#include "../common.h"
#include "dispatch.h"

namespace mask2former {
namespace cpu {
namespace {

using Shapes = std::vector<int64_t>;
using Reference = std::optional<Tensor>;

template <class T>
constexpr ScalarType kType = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;

template <class T>
const Kernels<T>& kernels() {
  if constexpr (std::is_same_v<T, double>) {
    return choose_isa().f64;
  } else {
    return choose_isa().f32;
  }
}

// The inputs as the kernels take them: in one precision, contiguous. Keeps the tensors alive.
template <class T>
struct Call {
  Sizes sizes;
  Tensor value, sampling, attention;
  Reference reference;
  MapShape maps[kMaxLevels];
  const Kernels<T>& kernel;

  Call(const Tensor& value_, const Shapes& shapes, const Reference& reference_, const Tensor& sampling_,
       const Tensor& attention_)
      : sizes(read_sizes(value_, shapes, reference_, sampling_, attention_)),
        value(prepared(value_, kType<T>)),
        sampling(prepared(sampling_, kType<T>)),
        attention(prepared(attention_, kType<T>)),
        kernel(kernels<T>()) {
    STD_TORCH_CHECK(sizes.length < std::numeric_limits<int32_t>::max(), "value has too many positions");
    if (reference_) reference = prepared(*reference_, kType<T>);
    for (int64_t l = 0; l < sizes.levels; ++l)
      maps[l] = {sizes.level[l].height, sizes.level[l].width, sizes.level[l].start};
  }

  Inputs<T> inputs() const {
    Inputs<T> in{};
    in.heads = sizes.heads;
    in.dim = sizes.dim;
    in.queries = sizes.queries;
    in.levels = sizes.levels;
    in.points = sizes.points;
    in.maps = maps;
    in.value = value.const_data_ptr<T>();
    in.value_position = sizes.heads * sizes.dim;
    in.value_head = sizes.dim;
    in.value_batch = sizes.length * in.value_position;
    in.sampling = sampling.const_data_ptr<T>();
    in.samples = sizes.batch * sizes.queries * sizes.heads * sizes.levels * sizes.points;
    in.attention = attention.const_data_ptr<T>();
    in.reference = reference ? reference->const_data_ptr<T>() : nullptr;
    in.reference_batch = sizes.reference_batch;
    in.reference_query = sizes.reference_query;
    in.reference_level = sizes.reference_level;
    return in;
  }

  std::vector<char> scratch() const { return std::vector<char>(kernel.scratch_bytes(sizes.levels * sizes.points)); }
};

template <class T>
Tensor run_forward(const Tensor& value, const Shapes& shapes, const Reference& reference, const Tensor& sampling,
                   const Tensor& attention) {
  const Call<T> call(value, shapes, reference, sampling, attention);
  const Sizes& s = call.sizes;
  const Tensor out = torch::stable::new_empty(call.value, {s.batch, s.queries, s.heads * s.dim});
  const Inputs<T> in = call.inputs();
  T* const to = out.mutable_data_ptr<T>();
  // Head by head, because a head's share of the maps stays in the cache.
  torch::stable::parallel_for(0, s.batch * s.heads * s.queries, 64, [&](int64_t begin, int64_t end) {
    std::vector<char> scratch = call.scratch();
    while (begin < end) {
      const int64_t image_and_head = begin / s.queries, first = begin % s.queries;
      const int64_t count = std::min(end - begin, s.queries - first);
      call.kernel.forward(in, {image_and_head / s.heads, image_and_head % s.heads, first, first + count}, to,
                          scratch.data());
      begin += count;
    }
  });
  return out;
}

// Into how many parts to cut the queries, so that images * heads * parts keep the threads busy. Each part costs
// another buffer of the size of the value's gradient.
int64_t query_parts(int64_t rows, int64_t queries) {
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t most = std::max<int64_t>(1, std::min(threads, queries / 64));
  for (int64_t parts = 1; parts < most; ++parts) {
    const int64_t turns = (rows * parts + threads - 1) / threads;
    if (5 * rows * parts >= 4 * turns * threads) return parts;
  }
  return most;
}

template <class T>
std::tuple<Tensor, Tensor, Tensor> run_backward(const Tensor& grad, const Tensor& value, const Shapes& shapes,
                                                const Reference& reference, const Tensor& sampling,
                                                const Tensor& attention) {
  const Call<T> call(value, shapes, reference, sampling, attention);
  const Sizes& s = call.sizes;
  const Tensor grad_out = prepared_gradient(grad, s, kType<T>);
  const int64_t rows = s.batch * s.heads, map = s.length * s.dim;
  const int64_t parts = query_parts(rows, s.queries), part = (s.queries + parts - 1) / parts;
  const Tensor grad_value = torch::stable::new_empty(call.value, {s.batch, s.length, s.heads, s.dim});
  const Tensor buffers = torch::stable::new_empty(call.value, {parts, s.batch, s.heads, s.length, s.dim});
  const Tensor grad_sampling = torch::stable::empty_like(call.sampling);
  const Tensor grad_attention = torch::stable::empty_like(call.attention);
  const Inputs<T> in = call.inputs();
  const T* const from = grad_out.const_data_ptr<T>();
  T* const buffer = buffers.mutable_data_ptr<T>();
  T* const to_sampling = grad_sampling.mutable_data_ptr<T>();
  T* const to_attention = grad_attention.mutable_data_ptr<T>();

  // A task adds to a buffer of its own, so no two threads write to one place and the order of additions is fixed.
  torch::stable::parallel_for(0, rows * parts, 1, [&](int64_t begin, int64_t end) {
    std::vector<char> scratch = call.scratch();
    for (int64_t task = begin; task < end; ++task) {
      T* const own = buffer + task * map;
      std::memset(own, 0, map * sizeof(T));
      const int64_t row = task % rows, first = std::min(task / rows * part, s.queries);
      const Span span{row / s.heads, row % s.heads, first, std::min(first + part, s.queries)};
      call.kernel.backward(in, span, {from, own, to_sampling, to_attention}, scratch.data());
    }
  });

  T* const to_value = grad_value.mutable_data_ptr<T>();
  torch::stable::parallel_for(0, s.batch * s.length, 64, [&](int64_t begin, int64_t end) {
    for (int64_t at = begin; at < end; ++at) {
      for (int64_t head = 0; head < s.heads; ++head) {
        const T* own = buffer + (at / s.length * s.heads + head) * map + at % s.length * s.dim;
        T* to = to_value + (at * s.heads + head) * s.dim;
        std::memcpy(to, own, s.dim * sizeof(T));
        for (int64_t p = 1; p < parts; ++p)
          for (int64_t d = 0; d < s.dim; ++d) to[d] += own[p * rows * map + d];
      }
    }
  });
  return {grad_value, grad_sampling, grad_attention};
}

Tensor forward(const Tensor& value, const Shapes& shapes, const Reference& reference, const Tensor& sampling,
               const Tensor& attention) {
  const ScalarType type = value.scalar_type();
  return type == ScalarType::Double ? run_forward<double>(value, shapes, reference, sampling, attention)
                                    : prepared(run_forward<float>(value, shapes, reference, sampling, attention), type);
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& value, const Shapes& shapes,
                                            const Reference& reference, const Tensor& sampling,
                                            const Tensor& attention, bool /*deterministic: it always is*/) {
  const auto [to_value, to_sampling, to_attention] =
      value.scalar_type() == ScalarType::Double
          ? run_backward<double>(grad, value, shapes, reference, sampling, attention)
          : run_backward<float>(grad, value, shapes, reference, sampling, attention);
  return {prepared(to_value, value.scalar_type()), prepared(to_sampling, sampling.scalar_type()),
          prepared(to_attention, attention.scalar_type())};
}

}  // namespace
}  // namespace cpu
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&mask2former::cpu::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&mask2former::cpu::backward));
}
