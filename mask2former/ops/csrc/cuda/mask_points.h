// Points of the mask losses, and the losses there, as mask_points_op.cu sees them: plain descriptions of calls.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mask2former {

// Pointers to contiguous device memory. For each row of `logits` (rows, height, width): the `important` of `candidates`
// random points whose logit is nearest to 0, in the order in which they were drawn, then random ones up to `points`, of
// which the first `inside` lie in the row's box of `regions` (rows, 4; null without). `keys` is memory to work with,
// (rows, candidates), where a block has too little of its own; see `keys_fit`.
struct PointDraw {
  const float* logits;
  const int64_t* seed;
  const float* regions;
  float* out;  // (rows, points, 2)
  uint16_t* keys;
  int64_t rows;
  int height, width, points, candidates, important, inside;
};

bool keys_fit(const PointDraw& call, int32_t device);
cudaError_t draw_points(const PointDraw& call, int32_t device, cudaStream_t stream);

// Row r of `logits` (rows, height, width) is compared with mask index[r] at row r of `places` (rows, points, 2). Masks are
// as in mask_sampling.h, of an image of image_height x image_width. `sums` (rows, 2) keeps numerator and denominator of
// the dice loss for the backward pass, which fills `grad_logits`, of rows of at most 16,384 values.
struct PointLosses {
  const float* logits;
  const float* places;
  const void* data;
  bool soft, large;
  const int64_t* table;
  const int64_t* index;
  float* cross_entropy;  // (rows,)
  float* dice;           // (rows,)
  float* sums;
  const float* grad_cross_entropy;
  const float* grad_dice;
  float* grad_logits;
  int64_t masks, rows, points;
  int height, width;
  float image_height, image_width;
};

cudaError_t point_losses(const PointLosses& call, cudaStream_t stream);
cudaError_t point_losses_backward(const PointLosses& call, cudaStream_t stream);

// What matching multiplies with masks: of each logit, and of its sigmoid, two bf16 numbers whose sum it is to 16 bits.
// `terms` (rows, 2, 2, points): logit or sigmoid, upper or lower part; `sums` (rows, 2): of softplus and of sigmoid.
struct MatchingTerms {
  const float* logits;  // (rows, points)
  uint16_t* terms;
  float* sums;
  int64_t rows, points;
};

cudaError_t matching_terms(const MatchingTerms& call, cudaStream_t stream);

}  // namespace mask2former
