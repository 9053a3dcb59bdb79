// torch.ops.mask2former.draw_points, point_losses and matching_terms on CUDA: reads tensors, and launches on the current
// stream.
#include <tuple>

#include "../common.h"
#include "entries.h"
#include "mask_points.h"

namespace mask2former {
namespace {

using torch::stable::new_empty;

void check_logits(const Tensor& logits) {
  STD_TORCH_CHECK(logits.is_cuda() && logits.dim() == 3 && logits.scalar_type() == ScalarType::Float,
                  "logits must be (M, H, W), fp32, on a GPU");
  STD_TORCH_CHECK(logits.size(1) * logits.size(2) < int64_t{1} << 31 && logits.size(0) < int64_t{1} << 31,
                  "logits must have less than 2^31 rows, and values in each");
}

Tensor draw_points_cuda(const Tensor& given_logits, const Tensor& seed, std::optional<Tensor> regions, int64_t points,
                        int64_t candidates, int64_t important, int64_t inside) {
  check_logits(given_logits);
  STD_TORCH_CHECK(seed.is_cuda() && seed.get_device_index() == given_logits.get_device_index() && seed.numel() == 1 &&
                      seed.scalar_type() == ScalarType::Long,
                  "seed must be one int64 on the device of logits");
  STD_TORCH_CHECK(0 <= important && important <= points && important <= candidates && 0 <= inside &&
                      inside <= points - important && points < int64_t{1} << 30 && candidates < int64_t{1} << 30,
                  "numbers of points do not fit");
  const int32_t device = given_logits.get_device_index();
  const torch::stable::accelerator::DeviceGuard guard(device);
  const Tensor logits = prepared(given_logits, ScalarType::Float);
  std::optional<Tensor> boxes;
  if (regions) {
    STD_TORCH_CHECK(regions->is_cuda() && regions->get_device_index() == device && regions->dim() == 2 &&
                        regions->size(0) == logits.size(0) && regions->size(1) == 4,
                    "regions must be (M, 4) on the device of logits");
    boxes = prepared(*regions, ScalarType::Float);
    if (reinterpret_cast<uintptr_t>(boxes->const_data_ptr()) % 16) boxes = torch::stable::clone(*boxes);
  }
  STD_TORCH_CHECK(regions || inside == 0, "points inside need regions");
  Tensor out = new_empty(logits, {logits.size(0), points, 2});
  if (out.numel() == 0) return out;
  PointDraw call{static_cast<const float*>(logits.const_data_ptr()), static_cast<const int64_t*>(seed.const_data_ptr()),
                 boxes ? static_cast<const float*>(boxes->const_data_ptr()) : nullptr,
                 static_cast<float*>(out.mutable_data_ptr()), nullptr, logits.size(0), static_cast<int>(logits.size(1)),
                 static_cast<int>(logits.size(2)), static_cast<int>(points), static_cast<int>(candidates),
                 static_cast<int>(important), static_cast<int>(inside)};
  Tensor keys = out;
  if (!keys_fit(call, device)) {
    keys = new_empty(logits, {logits.size(0), candidates}, ScalarType::Short);
    call.keys = static_cast<uint16_t*>(keys.mutable_data_ptr());
  }
  check_launch(draw_points(call, device, stream_of(logits)), "drawing of points");
  return out;
}

// All tensors of a call, contiguous and in kinds that kernels exist for.
struct LossInputs {
  Tensor logits, points, data, table, index;
  PointLosses call{};

  LossInputs(const Tensor& given_logits, const Tensor& given_points, const Tensor& given_data, const Tensor& given_table,
             const Tensor& given_index, int64_t height, int64_t width)
      : logits(given_logits), points(given_points), data(given_data), table(given_table), index(given_index) {
    check_logits(logits);
    const ScalarType type = data.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Byte || type == ScalarType::Float, "data must be uint8 or fp32");
    STD_TORCH_CHECK(points.dim() == 3 && points.size(0) == logits.size(0) && points.size(2) == 2,
                    "points must be (M, P, 2)");
    STD_TORCH_CHECK(data.dim() == 1 && table.dim() == 2 && table.size(0) == 3 && index.dim() == 1 &&
                        index.size(0) == logits.size(0),
                    "data must be flat, table (3, masks), index (M,)");
    for (const Tensor& t : {points, data, table, index})
      STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == logits.get_device_index(),
                      "all tensors must be on the device of logits");
    logits = prepared(logits, ScalarType::Float);
    points = prepared(points, ScalarType::Float);
    if (reinterpret_cast<uintptr_t>(points.const_data_ptr()) % 8) points = torch::stable::clone(points);
    data = prepared(data, type);
    table = prepared(table, ScalarType::Long);
    index = prepared(index, ScalarType::Long);
    call.logits = static_cast<const float*>(logits.const_data_ptr());
    call.places = static_cast<const float*>(points.const_data_ptr());
    call.data = data.const_data_ptr();
    call.soft = type == ScalarType::Float;
    call.large = data.numel() >= int64_t{1} << 31;
    call.table = static_cast<const int64_t*>(table.const_data_ptr());
    call.index = static_cast<const int64_t*>(index.const_data_ptr());
    call.masks = table.size(1), call.rows = logits.size(0), call.points = points.size(1);
    call.height = static_cast<int>(logits.size(1)), call.width = static_cast<int>(logits.size(2));
    call.image_height = static_cast<float>(height), call.image_width = static_cast<float>(width);
  }
};

std::tuple<Tensor, Tensor, Tensor> point_losses_cuda(const Tensor& logits, const Tensor& points, const Tensor& data,
                                                     const Tensor& table, const Tensor& index, int64_t height,
                                                     int64_t width) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  LossInputs in(logits, points, data, table, index, height, width);
  Tensor cross_entropy = new_empty(in.logits, {in.call.rows}), dice = new_empty(in.logits, {in.call.rows});
  Tensor sums = new_empty(in.logits, {in.call.rows, 2});
  if (in.call.rows) {
    in.call.cross_entropy = static_cast<float*>(cross_entropy.mutable_data_ptr());
    in.call.dice = static_cast<float*>(dice.mutable_data_ptr());
    in.call.sums = static_cast<float*>(sums.mutable_data_ptr());
    check_launch(point_losses(in.call, stream_of(in.logits)), "losses at points");
  }
  return {cross_entropy, dice, sums};
}

Tensor point_losses_backward_cuda(const Tensor& given_cross_entropy, const Tensor& given_dice, const Tensor& given_sums,
                                  const Tensor& logits, const Tensor& points, const Tensor& data, const Tensor& table,
                                  const Tensor& index, int64_t height, int64_t width) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  LossInputs in(logits, points, data, table, index, height, width);
  for (const Tensor& t : {given_cross_entropy, given_dice, given_sums})
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == logits.get_device_index() &&
                        t.numel() == (t.dim() == 2 ? 2 : 1) * in.call.rows,
                    "gradients must be (M,) and sums (M, 2), on the device of logits");
  const Tensor grad_cross_entropy = prepared(given_cross_entropy, ScalarType::Float);
  const Tensor grad_dice = prepared(given_dice, ScalarType::Float), kept = prepared(given_sums, ScalarType::Float);
  Tensor grad = new_empty(in.logits, in.logits.sizes());
  if (grad.numel() == 0) return grad;
  in.call.grad_cross_entropy = static_cast<const float*>(grad_cross_entropy.const_data_ptr());
  in.call.grad_dice = static_cast<const float*>(grad_dice.const_data_ptr());
  in.call.sums = const_cast<float*>(static_cast<const float*>(kept.const_data_ptr()));
  in.call.grad_logits = static_cast<float*>(grad.mutable_data_ptr());
  check_launch(point_losses_backward(in.call, stream_of(in.logits)), "gradients of losses at points");
  return grad;
}

std::tuple<Tensor, Tensor> matching_terms_cuda(const Tensor& given_logits) {
  check_logits(given_logits);
  STD_TORCH_CHECK(given_logits.size(0) * given_logits.size(1) < int64_t{1} << 31, "logits must have less than 2^31 rows");
  const torch::stable::accelerator::DeviceGuard guard(given_logits.get_device_index());
  Tensor logits = prepared(given_logits, ScalarType::Float);
  if (reinterpret_cast<uintptr_t>(logits.const_data_ptr()) % 8) logits = torch::stable::clone(logits);
  const int64_t images = logits.size(0), rows = logits.size(1), points = logits.size(2);
  Tensor terms = new_empty(logits, {images, rows, 2, 2 * points}, ScalarType::BFloat16);
  Tensor sums = new_empty(logits, {images, rows, 2});
  if (sums.numel() == 0) return {terms, sums};
  const MatchingTerms call{static_cast<const float*>(logits.const_data_ptr()),
                           static_cast<uint16_t*>(terms.mutable_data_ptr()), static_cast<float*>(sums.mutable_data_ptr()),
                           images * rows, points};
  check_launch(matching_terms(call, stream_of(logits)), "terms of matching");
  return {terms, sums};
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former, CUDA, m) {
  m.impl("draw_points", TORCH_BOX(&mask2former::draw_points_cuda));
  m.impl("point_losses", TORCH_BOX(&mask2former::point_losses_cuda));
  m.impl("matching_terms", TORCH_BOX(&mask2former::matching_terms_cuda));
  m.impl("point_losses_backward", TORCH_BOX(&mask2former::point_losses_backward_cuda));
}
