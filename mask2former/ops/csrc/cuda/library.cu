// The CUDA kernels of torch.ops.mask2former: reads tensors, chooses a kernel, launches it on the current stream.
#include <tuple>

#include "../common.h"
#include "assignment.h"
#include "entries.h"
#include "launch.h"
#include "mask_sampling.h"

namespace mask2former {
namespace {

using torch::stable::new_empty;
using torch::stable::new_zeros;

Kind kind_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float: return Kind::f32;
    case ScalarType::Double: return Kind::f64;
    case ScalarType::BFloat16: return Kind::bf16;
    case ScalarType::Half: return Kind::f16;
    default: STD_TORCH_CHECK(false, "value must be fp32, bf16, fp16 or fp64");
  }
  return Kind::f32;
}

int multiprocessors(int32_t device) {
  int number = 0;
  check_launch(cudaDeviceGetAttribute(&number, cudaDevAttrMultiProcessorCount, device), "device attributes");
  return number;
}

// The inputs of a call, contiguous and in kinds that kernels exist for.
struct Inputs {
  Tensor value, sampling, attention;
  std::optional<Tensor> reference;
  Call call{};

  Inputs(const Tensor& given_value, const std::vector<int64_t>& shapes, const std::optional<Tensor>& given_reference,
         const Tensor& given_sampling, const Tensor& given_attention)
      : value(prepared(given_value, given_value.scalar_type())),
        sampling(given_sampling),
        attention(given_attention),
        reference(given_reference) {
    const ScalarType type = value.scalar_type();
    const ScalarType full = type == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    // Raw projections may come in the value's type; anything else is widened.
    const bool raw = reference && sampling.scalar_type() == type && attention.scalar_type() == type;
    sampling = prepared(given_sampling, raw ? type : full);
    attention = prepared(given_attention, raw ? type : full);
    if (reference) reference = prepared(*given_reference, full);
    for (const Tensor& t : {sampling, attention, reference ? *reference : value})
      STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == value.get_device_index(),
                      "all tensors must be on the device of value");
    call.sizes = read_sizes(value, shapes, reference, sampling, attention);
    call.value_kind = kind_of(type);
    call.projection = kind_of(raw ? type : full);
    call.value = value.const_data_ptr();
    call.reference = reference ? reference->const_data_ptr() : nullptr;
    call.sampling = sampling.const_data_ptr();
    call.attention = attention.const_data_ptr();
    call.multiprocessors = multiprocessors(value.get_device_index());
  }

  bool is_grid() const { return call.sizes.queries == call.sizes.length; }
};

Tensor forward(const Tensor& value, std::vector<int64_t> spatial_shapes, std::optional<Tensor> reference_points,
               const Tensor& sampling, const Tensor& attention) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  Inputs in(value, spatial_shapes, reference_points, sampling, attention);
  const Sizes& s = in.call.sizes;
  const std::vector<int64_t> shape{s.batch, s.queries, s.heads * s.dim};
  if (s.batch * s.queries * s.heads * s.dim == 0) return new_zeros(in.value, shape);
  Tensor out = new_empty(in.value, shape);
  in.call.out = out.mutable_data_ptr();
  const cudaStream_t stream = stream_of(value);
  check_launch(fits_fast_path(in.call) ? forward_fast(in.call, stream) : forward_general(in.call, stream),
               "deformable attention, forward");
  return out;
}

// Returns grad_value; the other gradients are written where the call says.
Tensor deterministic_backward(Inputs& in, cudaStream_t stream) {
  const Sizes& s = in.call.sizes;
  Tensor sums = new_zeros(in.value, {s.batch, s.length, s.heads, s.dim}, ScalarType::Long);
  Tensor scale = new_zeros(in.value, {3}, ScalarType::Double);
  auto* number = static_cast<double*>(scale.mutable_data_ptr());
  in.call.grad_sums = sums.mutable_data_ptr();
  check_launch(fixed_point_scale(in.call, number, stream), "deformable attention, scale of the deterministic backward");
  check_launch(backward_deterministic(in.call, number, stream), "deformable attention, deterministic backward");
  Tensor grad_value = new_empty(in.value, in.value.sizes());
  check_launch(from_fixed_point(in.call, number, grad_value.mutable_data_ptr(), stream),
               "deformable attention, deterministic backward");
  return grad_value;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& value, std::vector<int64_t> spatial_shapes,
                   std::optional<Tensor> reference_points, const Tensor& sampling, const Tensor& attention,
                   bool deterministic) {
  const torch::stable::accelerator::DeviceGuard guard(value.get_device_index());
  Inputs in(value, spatial_shapes, reference_points, sampling, attention);
  Call& call = in.call;
  const Tensor grad_out = prepared_gradient(grad, call.sizes, value.scalar_type());
  if (grad_out.numel() == 0)
    return {new_zeros(value, value.sizes()), new_zeros(sampling, sampling.sizes()),
            new_zeros(attention, attention.sizes())};
  call.grad = grad_out.const_data_ptr();
  const cudaStream_t stream = stream_of(value);

  const ScalarType full = call.value_kind == Kind::f64 ? ScalarType::Double : ScalarType::Float;
  const bool tiled = !deterministic && in.is_grid() && fits_fast_path(call);
  const ScalarType written = tiled ? in.sampling.scalar_type() : full;
  Tensor grad_sampling = new_empty(in.sampling, sampling.sizes(), written);
  Tensor grad_attention = new_empty(in.attention, attention.sizes(), written);
  call.grad_sampling = grad_sampling.mutable_data_ptr();
  call.grad_attention = grad_attention.mutable_data_ptr();
  Tensor grad_value;
  if (deterministic) {
    grad_value = deterministic_backward(in, stream);
  } else {
    grad_value = new_zeros(in.value, in.value.sizes(), full);
    call.grad_sums = grad_value.mutable_data_ptr();
    check_launch(tiled ? backward_tiled(call, stream) : backward_general(call, stream), "deformable attention, backward");
  }
  return {prepared(grad_value, value.scalar_type()), prepared(grad_sampling, sampling.scalar_type()),
          prepared(grad_attention, attention.scalar_type())};
}

Tensor assignment(const Tensor& cost, const Tensor& counts) {
  STD_TORCH_CHECK(cost.is_cuda() && cost.dim() == 3 && cost.scalar_type() == ScalarType::Float,
                  "cost must be (problems, queries, objects), fp32, on a GPU");
  STD_TORCH_CHECK(counts.is_cuda() && counts.get_device_index() == cost.get_device_index() && counts.dim() == 1 &&
                      counts.size(0) == cost.size(0) && counts.scalar_type() == ScalarType::Long,
                  "counts must be (problems,), int64, on the device of cost");
  STD_TORCH_CHECK(cost.size(1) <= kMaxAssigned && cost.size(2) <= kMaxAssigned && cost.size(0) < 1ll << 31,
                  "cost must have at most ", kMaxAssigned, " queries and objects");
  const torch::stable::accelerator::DeviceGuard guard(cost.get_device_index());
  Tensor out = new_empty(cost, {cost.size(0), cost.size(2)}, ScalarType::Long);
  if (out.numel() == 0) return out;
  const Tensor numbers = prepared(counts, ScalarType::Long);
  const Assignment call{static_cast<const float*>(cost.const_data_ptr()),
                        static_cast<const int64_t*>(numbers.const_data_ptr()),
                        static_cast<int64_t*>(out.mutable_data_ptr()),
                        cost.stride(0), cost.stride(1), cost.stride(2),
                        static_cast<int>(cost.size(0)), static_cast<int>(cost.size(1)), static_cast<int>(cost.size(2))};
  const int32_t device = cost.get_device_index();
  check_launch(linear_assignment(call, device, stream_of(cost)), "linear assignment");
  return out;
}

Tensor masks_at_points(const Tensor& data, const Tensor& table, const Tensor& index, const Tensor& points,
                       std::optional<Tensor> point_rows, int64_t height, int64_t width) {
  const ScalarType type = data.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Byte || type == ScalarType::Float, "data must be uint8 or fp32");
  STD_TORCH_CHECK(data.dim() == 1 && table.dim() == 2 && table.size(0) == 3 && index.dim() == 1,
                  "data must be flat, table (3, masks), index (rows,)");
  STD_TORCH_CHECK(points.dim() == 3 && points.size(2) == 2, "points must be (sets, points, 2)");
  STD_TORCH_CHECK(point_rows ? point_rows->dim() == 1 && point_rows->size(0) == index.size(0)
                             : points.size(0) == 1 || points.size(0) == index.size(0),
                  "points must fit index");
  for (const Tensor& t : {data, table, index, points, point_rows ? *point_rows : data})
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == data.get_device_index(),
                    "all tensors must be on the device of data");
  const torch::stable::accelerator::DeviceGuard guard(data.get_device_index());
  const Tensor values = prepared(data, type), places = prepared(points, ScalarType::Float);
  const Tensor sizes = prepared(table, ScalarType::Long), masks = prepared(index, ScalarType::Long);
  const Tensor rows = point_rows ? prepared(*point_rows, ScalarType::Long) : masks;
  Tensor out = new_empty(places, {index.size(0), points.size(1)});
  const MaskSampling call{values.const_data_ptr(), type == ScalarType::Float, values.numel() >= int64_t{1} << 31,
                          static_cast<const int64_t*>(sizes.const_data_ptr()),
                          static_cast<const int64_t*>(masks.const_data_ptr()),
                          point_rows ? static_cast<const int64_t*>(rows.const_data_ptr()) : nullptr,
                          static_cast<const float*>(places.const_data_ptr()),
                          static_cast<float*>(out.mutable_data_ptr()), table.size(1), index.size(0), points.size(1),
                          points.size(0), static_cast<float>(height), static_cast<float>(width)};
  check_launch(sample_masks(call, stream_of(data)), "sampling of masks");
  return out;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former, CUDA, m) {
  m.impl("ms_deform_attn", TORCH_BOX(&mask2former::forward));
  m.impl("ms_deform_attn_backward", TORCH_BOX(&mask2former::backward));
  m.impl("sample_masks", TORCH_BOX(&mask2former::masks_at_points));
  m.impl("linear_assignment", TORCH_BOX(&mask2former::assignment));
}
