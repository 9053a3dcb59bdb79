// Any number of heads, channels, levels and points, fp64 too, for what `fits_fast_path` refuses; and the deterministic
// backward.
//
// Forward: a thread for each output number. Backward: a warp for each query and head, a lane for each channel.
#include "device.cuh"

namespace mask2former {
namespace {

constexpr int kThreads = 256;

template <class T>
struct ComputeOf { using type = float; };
template <>
struct ComputeOf<double> { using type = double; };
template <class T>
using Compute = typename ComputeOf<T>::type;

template <class F>
struct Position {
  int64_t x, y;
  F fx, fy;
  bool near;  // a corner may lie in the map
};

// Sample `index` = level * P + point of a row (batch, query, head).
template <bool kFused, class F, class P>
__device__ Position<F> locate(const Sizes& s, const F* reference, const P* sampling, int64_t batch, int64_t query,
                              int64_t row, int64_t index) {
  const int64_t l = index / s.points;
  const P* at = sampling + (row * s.levels * s.points + index) * 2;
  F center_x = 0, center_y = 0;
  if (kFused) {
    const F* p = reference + batch * s.reference_batch + query * s.reference_query + l * s.reference_level;
    center_x = p[0], center_y = p[1];
  }
  const F width = static_cast<F>(s.level[l].width), height = static_cast<F>(s.level[l].height);
  const F x = pixel<kFused>(static_cast<F>(to_float(at[0])), center_x, width);
  const F y = pixel<kFused>(static_cast<F>(to_float(at[1])), center_y, height);
  Position<F> p{};
  p.near = x > -1 && y > -1 && x < width && y < height;  // false for a NaN
  if (p.near) {
    p.x = static_cast<int64_t>(floor(x)), p.y = static_cast<int64_t>(floor(y));
    p.fx = x - p.x, p.fy = y - p.y;
  }
  return p;
}

template <class F>
__device__ F corner_weight(const Position<F>& p, int corner) {
  return (corner & 1 ? p.fx : 1 - p.fx) * (corner & 2 ? p.fy : 1 - p.fy);
}

// Place of a corner among the S positions, or -1 outside the map.
template <class F>
__device__ int64_t corner_place(const Level& level, const Position<F>& p, int corner) {
  const int64_t x = p.x + (corner & 1), y = p.y + corner / 2;
  return x < 0 || y < 0 || x >= level.width || y >= level.height ? -1 : level.start + y * level.width + x;
}

template <class T, class P, bool kFused>
__global__ void forward_kernel(const __grid_constant__ Sizes s, const T* value, const Compute<T>* reference,
                               const P* sampling, const P* attention, T* out) {
  using F = Compute<T>;
  const int64_t samples = s.levels * s.points, total = s.batch * s.queries * s.heads * s.dim;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < total; i += step) {
    const int64_t row = i / s.dim, channel = i % s.dim, head = row % s.heads;
    const int64_t query = row / s.heads % s.queries, batch = row / s.heads / s.queries;
    const P* weights = attention + row * samples;
    F top = 0, norm = 1;
    if (kFused) {
      top = static_cast<F>(to_float(weights[0]));
      for (int64_t k = 1; k < samples; ++k) top = fmax(top, static_cast<F>(to_float(weights[k])));
      norm = 0;
      for (int64_t k = 0; k < samples; ++k) norm += exp(static_cast<F>(to_float(weights[k])) - top);
    }
    F sum = 0;
    for (int64_t k = 0; k < samples; ++k) {
      const Position<F> p = locate<kFused>(s, reference, sampling, batch, query, row, k);
      if (!p.near) continue;
      F read = 0;
      for (int c = 0; c < 4; ++c) {
        const int64_t place = corner_place(s.level[k / s.points], p, c);
        if (place < 0) continue;
        read += corner_weight(p, c) *
                static_cast<F>(to_float(value[((batch * s.length + place) * s.heads + head) * s.dim + channel]));
      }
      const F w = static_cast<F>(to_float(weights[k]));
      sum += (kFused ? exp(w - top) / norm : w) * read;
    }
    out[i] = static_cast<T>(sum);
  }
}

template <class F>
__device__ F sum_of_warp(F x) {
  for (int step = 16; step; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

template <class F>
__device__ F max_of_warp(F x) {
  for (int step = 16; step; step /= 2) x = fmax(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

__device__ void add(float* p, float x, double) { atomicAdd(p, x); }
__device__ void add(double* p, double x, double) { atomicAdd(p, x); }
// Fixed point: sums of integers do not depend on their order.
__device__ void add(long long* p, double x, double scale) {
  atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(llrint(x * scale)));
}

template <class T, class P, class Sum, bool kFused>
__global__ void backward_kernel(const __grid_constant__ Sizes s, const T* value, const Compute<T>* reference,
                                const P* sampling, const P* attention, const T* grad, Sum* sums, const double* scale,
                                Compute<T>* grad_sampling, Compute<T>* grad_attention) {
  using F = Compute<T>;
  const int lane = threadIdx.x % 32;
  const int64_t samples = s.levels * s.points, rows = s.batch * s.queries * s.heads;
  const int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / 32);
  const double fixed = scale ? *scale : 1.0;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / 32) + threadIdx.x / 32; row < rows; row += step) {
    const int64_t head = row % s.heads, query = row / s.heads % s.queries, batch = row / s.heads / s.queries;
    const P* weights = attention + row * samples;
    const T* g = grad + row * s.dim;
    F top = 0, norm = 1;
    if (kFused) {
      top = static_cast<F>(to_float(weights[0]));
      for (int64_t k = lane; k < samples; k += 32) top = fmax(top, static_cast<F>(to_float(weights[k])));
      top = max_of_warp(top);
      norm = 0;
      for (int64_t k = lane; k < samples; k += 32) norm += exp(static_cast<F>(to_float(weights[k])) - top);
      norm = sum_of_warp(norm);
    }
    F mean = 0;
    for (int64_t k = 0; k < samples; ++k) {
      const Position<F> p = locate<kFused>(s, reference, sampling, batch, query, row, k);
      const F raw = static_cast<F>(to_float(weights[k]));
      const F w = kFused ? exp(raw - top) / norm : raw;
      const Level& level = s.level[k / s.points];
      F dot[4] = {};
      for (int c = 0; c < 4 && p.near; ++c) {
        const int64_t place = corner_place(level, p, c);
        if (place < 0) continue;
        const int64_t base = ((batch * s.length + place) * s.heads + head) * s.dim;
        for (int64_t d = lane; d < s.dim; d += 32) {
          const F gd = static_cast<F>(to_float(g[d]));
          dot[c] += gd * static_cast<F>(to_float(value[base + d]));
          add(sums + base + d, w * corner_weight(p, c) * gd, fixed);
        }
      }
      for (int c = 0; c < 4; ++c) dot[c] = sum_of_warp(dot[c]);
      const F upper = dot[0] + p.fx * (dot[1] - dot[0]), lower = dot[2] + p.fx * (dot[3] - dot[2]);
      const F grad_weight = upper + p.fy * (lower - upper);
      mean += w * grad_weight;
      if (lane == 0) {
        const F x = w * ((dot[1] - dot[0]) + p.fy * ((dot[3] - dot[2]) - (dot[1] - dot[0]))), y = w * (lower - upper);
        grad_sampling[(row * samples + k) * 2] = kFused ? x : x * level.width;
        grad_sampling[(row * samples + k) * 2 + 1] = kFused ? y : y * level.height;
        grad_attention[row * samples + k] = grad_weight;
      }
    }
    if (kFused) {
      __syncwarp();
      for (int64_t k = lane; k < samples; k += 32) {
        const F w = exp(static_cast<F>(to_float(weights[k])) - top) / norm;
        grad_attention[row * samples + k] = w * (grad_attention[row * samples + k] - mean);
      }
    }
  }
}

// The largest magnitudes of `x`, as bits: those of non-negative doubles are in their order, a NaN on top.
template <class T>
__global__ void largest_kernel(const T* x, int64_t count, unsigned long long* largest) {
  double most = 0;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step) {
    const double y = fabs(static_cast<double>(to_float(x[i])));
    if (!(y <= most)) most = y;
  }
  atomicMax(largest, static_cast<unsigned long long>(__double_as_longlong(most)));
}

// scale[1], scale[2]: the largest gradient and weight. A pixel gets at most one addition from each of `additions` samples,
// so its sum stays below 2^62. A power of two, so that scaling is exact.
__global__ void scale_kernel(double* scale, double additions, bool normalized) {
  const double bound = additions * scale[1] * (normalized ? 1.0 : scale[2]);
  scale[0] = bound > 0 ? exp2(floor(62 - log2(bound))) : (bound == 0 ? 1.0 : bound);
}

template <class T>
__global__ void from_fixed_kernel(const long long* sums, const double* scale, int64_t count, T* out) {
  const double factor = 1 / *scale;  // NaN where a gradient was not finite
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < count; i += step)
    out[i] = static_cast<T>(static_cast<Compute<T>>(static_cast<double>(sums[i]) * factor));
}

unsigned blocks_for(const Call& call, int64_t items) {
  const int64_t wanted = (items + kThreads - 1) / kThreads, most = int64_t{call.multiprocessors} * 64;
  return static_cast<unsigned>(wanted < most ? (wanted > 0 ? wanted : 1) : most);
}

int64_t value_count(const Sizes& s) { return s.batch * s.length * s.heads * s.dim; }
int64_t row_count(const Sizes& s) { return s.batch * s.queries * s.heads; }

// fp64 as well: `for_types` knows the other kinds.
template <class Run>
cudaError_t for_all_types(const Call& call, Run run) {
  return call.value_kind == Kind::f64 ? run(double{}, double{}) : for_types(call, run);
}

template <class T, class P, bool kFused>
void run_forward(const Call& call, cudaStream_t stream) {
  forward_kernel<T, P, kFused><<<blocks_for(call, row_count(call.sizes) * call.sizes.dim), kThreads, 0, stream>>>(
      call.sizes, static_cast<const T*>(call.value), static_cast<const Compute<T>*>(call.reference),
      static_cast<const P*>(call.sampling), static_cast<const P*>(call.attention), static_cast<T*>(call.out));
}

template <class T, class P, class Sum, bool kFused>
void run_backward(const Call& call, const double* scale, cudaStream_t stream) {
  using F = Compute<T>;
  backward_kernel<T, P, Sum, kFused><<<blocks_for(call, row_count(call.sizes) * 32), kThreads, 0, stream>>>(
      call.sizes, static_cast<const T*>(call.value), static_cast<const F*>(call.reference),
      static_cast<const P*>(call.sampling), static_cast<const P*>(call.attention), static_cast<const T*>(call.grad),
      static_cast<Sum*>(call.grad_sums), scale, static_cast<F*>(call.grad_sampling),
      static_cast<F*>(call.grad_attention));
}

}  // namespace

cudaError_t forward_general(const Call& call, cudaStream_t stream) {
  return for_all_types(call, [&](auto value, auto projection) {
    using T = decltype(value);
    if (call.reference) run_forward<T, decltype(projection), true>(call, stream);
    else run_forward<T, Compute<T>, false>(call, stream);
    return cudaGetLastError();
  });
}

cudaError_t backward_general(const Call& call, cudaStream_t stream) {
  return for_all_types(call, [&](auto value, auto projection) {
    using T = decltype(value);
    if (call.reference) run_backward<T, decltype(projection), Compute<T>, true>(call, nullptr, stream);
    else run_backward<T, Compute<T>, Compute<T>, false>(call, nullptr, stream);
    return cudaGetLastError();
  });
}

cudaError_t backward_deterministic(const Call& call, const double* scale, cudaStream_t stream) {
  return for_all_types(call, [&](auto value, auto projection) {
    using T = decltype(value);
    if (call.reference) run_backward<T, decltype(projection), long long, true>(call, scale, stream);
    else run_backward<T, Compute<T>, long long, false>(call, scale, stream);
    return cudaGetLastError();
  });
}

cudaError_t fixed_point_scale(const Call& call, double* scale, cudaStream_t stream) {
  const Sizes& s = call.sizes;
  return for_all_types(call, [&](auto value, auto) {
    using T = decltype(value);
    using F = Compute<T>;
    const int64_t grads = row_count(s) * s.dim, weights = row_count(s) * s.levels * s.points;
    auto* bits = reinterpret_cast<unsigned long long*>(scale);
    largest_kernel<<<blocks_for(call, grads), kThreads, 0, stream>>>(static_cast<const T*>(call.grad), grads, bits + 1);
    const bool normalized = call.reference != nullptr;  // the weights of a softmax are at most 1
    if (!normalized)
      largest_kernel<<<blocks_for(call, weights), kThreads, 0, stream>>>(static_cast<const F*>(call.attention), weights,
                                                                         bits + 2);
    scale_kernel<<<1, 1, 0, stream>>>(scale, static_cast<double>(s.queries * s.points), normalized);
    return cudaGetLastError();
  });
}

cudaError_t from_fixed_point(const Call& call, const double* scale, void* grad_value, cudaStream_t stream) {
  return for_all_types(call, [&](auto value, auto) {
    using T = decltype(value);
    const int64_t count = value_count(call.sizes);
    from_fixed_kernel<<<blocks_for(call, count), kThreads, 0, stream>>>(static_cast<const long long*>(call.grad_sums),
                                                                        scale, count, static_cast<T*>(grad_value));
    return cudaGetLastError();
  });
}

}  // namespace mask2former
