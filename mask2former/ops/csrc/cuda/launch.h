// The kernels as library.cpp sees them: one plain description of a call, and one function per way to run it.
#pragma once

#include <cuda_runtime.h>

#include "../sizes.h"

namespace mask2former {

enum class Kind { f32, f64, bf16, f16 };

// Pointers to contiguous device memory. `reference` is null in the form with locations and weights; otherwise
// `sampling` and `attention` are raw projections of kind `projection`. Coordinates and sums are fp32, or fp64 with
// an fp64 value.
struct Call {
  Sizes sizes;
  Kind value_kind;
  Kind projection;
  const void* value;
  const void* reference;
  const void* sampling;
  const void* attention;
  void* out;  // forward
  // Backward. grad_sums are the sums for grad_value: fp32 (fp64), zero at the start, or int64 in fixed point.
  const void* grad;
  void* grad_sums;
  void* grad_sampling;   // the tiled kernel: kind `projection`; the general one: fp32 (fp64)
  void* grad_attention;  // likewise
  int multiprocessors;
};

// Any sizes.
cudaError_t forward_general(const Call& call, cudaStream_t stream);
cudaError_t backward_general(const Call& call, cudaStream_t stream);

// 16 or 32 channels, 4 points, 3 or 4 levels of at least 2 x 2 pixels, no fp64: see `fits_fast_path`.
bool fits_fast_path(const Call& call);
cudaError_t forward_fast(const Call& call, cudaStream_t stream);
// Where every pixel is a query.
cudaError_t backward_tiled(const Call& call, cudaStream_t stream);

// Deterministic backward: sums are int64 in fixed point. `scale` points to three doubles in device memory, zero at the
// start; `fixed_point_scale` leaves the scale in the first. `from_fixed_point` writes sums / scale to `grad_value`, of
// kind call.value_kind.
cudaError_t fixed_point_scale(const Call& call, double* scale, cudaStream_t stream);
cudaError_t backward_deterministic(const Call& call, const double* scale, cudaStream_t stream);
cudaError_t from_fixed_point(const Call& call, const double* scale, void* grad_value, cudaStream_t stream);

}  // namespace mask2former
