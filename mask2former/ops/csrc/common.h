// What the CPU and the CUDA back end share: the sizes of one call, read from its tensors.
//
// Letters as in the Python documentation: B batch, S positions of all levels, M heads, D channels of a head, N queries,
// L levels, P points. Two forms of input exist. Without reference points, `sampling` holds locations in [0, 1] and
// `attention` normalized weights. With them, `sampling` holds offsets in pixels of the level and `attention` logits;
// the location is reference + offset / (width, height), the weights are the softmax over L * P.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "sizes.h"

namespace mask2former {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The Python entry has checked everything with better words; this guards direct calls of torch.ops.
inline Sizes read_sizes(const Tensor& value, const std::vector<int64_t>& shapes,
                        const std::optional<Tensor>& reference, const Tensor& sampling, const Tensor& attention) {
  STD_TORCH_CHECK(value.dim() == 4, "value must be (B, S, heads, D), got ", value.dim(), " dimensions");
  STD_TORCH_CHECK(sampling.dim() == 6 && sampling.size(5) == 2, "sampling must be (B, N, heads, L, P, 2)");
  STD_TORCH_CHECK(attention.dim() == 5, "attention must be (B, N, heads, L, P)");
  STD_TORCH_CHECK(sampling.size(4) > 0, "sampling must hold at least one point");
  const ScalarType type = value.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
                      type == ScalarType::Half,
                  "value must be fp32, bf16, fp16 or fp64");
  Sizes s{};
  s.batch = value.size(0);
  s.length = value.size(1);
  s.heads = value.size(2);
  s.dim = value.size(3);
  s.queries = sampling.size(1);
  s.levels = static_cast<int64_t>(shapes.size()) / 2;
  s.points = sampling.size(4);
  STD_TORCH_CHECK(shapes.size() % 2 == 0 && s.levels >= 1 && s.levels <= kMaxLevels,
                  "spatial_shapes must hold 1 to ", kMaxLevels, " pairs, got ", shapes.size(), " numbers");
  STD_TORCH_CHECK(sampling.size(0) == s.batch && sampling.size(2) == s.heads && sampling.size(3) == s.levels,
                  "sampling does not fit value and spatial_shapes");
  for (int64_t i = 0; i < 5; ++i)
    STD_TORCH_CHECK(attention.size(i) == sampling.size(i), "attention must have the shape of sampling without the 2");
  int64_t start = 0;
  for (int64_t l = 0; l < s.levels; ++l) {
    STD_TORCH_CHECK(shapes[2 * l] > 0 && shapes[2 * l + 1] > 0, "spatial_shapes must be positive");
    s.level[l] = {shapes[2 * l], shapes[2 * l + 1], start};
    start += shapes[2 * l] * shapes[2 * l + 1];
  }
  STD_TORCH_CHECK(start == s.length, "spatial_shapes hold ", start, " positions, value has ", s.length);
  if (reference) {
    STD_TORCH_CHECK(reference->dim() == 4 && reference->size(1) == s.queries && reference->size(3) == 2 &&
                        (reference->size(0) == 1 || reference->size(0) == s.batch) &&
                        (reference->size(2) == 1 || reference->size(2) == s.levels),
                    "reference_points must be (B or 1, N, L or 1, 2)");
    STD_TORCH_CHECK(reference->is_contiguous(), "reference_points must be contiguous");
    s.reference_batch = reference->size(0) == 1 ? 0 : reference->stride(0);
    s.reference_query = reference->stride(1);
    s.reference_level = reference->size(2) == 1 ? 0 : reference->stride(2);
  }
  return s;
}

// Contiguous, and in `type`.
inline Tensor prepared(const Tensor& t, ScalarType type) {
  Tensor typed = t.scalar_type() == type ? t : torch::stable::to(t, type);
  return typed.is_contiguous() ? typed : torch::stable::contiguous(typed);
}

// The gradient of the output, contiguous and in `type`.
inline Tensor prepared_gradient(const Tensor& grad, const Sizes& s, ScalarType type) {
  STD_TORCH_CHECK(grad.numel() == s.batch * s.queries * s.heads * s.dim, "grad must be (B, N, heads * D)");
  return prepared(grad, type);
}

}  // namespace mask2former
