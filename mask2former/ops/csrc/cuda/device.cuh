// Device helpers of all kernels: numbers, sampling positions, and the choice of types.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "launch.h"

namespace mask2former {

__device__ __forceinline__ float to_float(float x) { return x; }
__device__ __forceinline__ double to_float(double x) { return x; }
__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }

template <class T>
__device__ __forceinline__ T from_float(float x);
template <>
__device__ __forceinline__ float from_float<float>(float x) { return x; }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float x) { return __float2bfloat16_rn(x); }
template <>
__device__ __forceinline__ __half from_float<__half>(float x) { return __float2half_rn(x); }

// A bf16 is the upper half of an fp32: one instruction each, where the library's function takes three for both.
__device__ __forceinline__ float2 unpack(const __nv_bfloat162& x) {
  const uint32_t bits = reinterpret_cast<const uint32_t&>(x);
  return make_float2(__uint_as_float(bits << 16), __uint_as_float(bits & 0xffff0000u));
}
__device__ __forceinline__ float2 unpack(const __half2& x) { return __half22float2(x); }

template <class T>
struct Pair;  // two 16-bit numbers in one register
template <>
struct Pair<__nv_bfloat16> { using type = __nv_bfloat162; };
template <>
struct Pair<__half> { using type = __half2; };

// 16 bytes of a row as floats: 4 of fp32, 8 of a 16-bit type.
__device__ __forceinline__ void widen(uint4 bits, float (&x)[4], float) {
  x[0] = __uint_as_float(bits.x), x[1] = __uint_as_float(bits.y);
  x[2] = __uint_as_float(bits.z), x[3] = __uint_as_float(bits.w);
}

template <class T>
__device__ __forceinline__ void widen(uint4 bits, float (&x)[8], T) {
  const uint32_t words[4] = {bits.x, bits.y, bits.z, bits.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 two = unpack(reinterpret_cast<const typename Pair<T>::type&>(words[i]));
    x[2 * i] = two.x, x[2 * i + 1] = two.y;
  }
}

// 4 channels as floats.
__device__ __forceinline__ float4 load4(const float* p) { return __ldg(reinterpret_cast<const float4*>(p)); }
template <class T>
__device__ __forceinline__ float4 load4(const T* p) {
  const uint2 bits = __ldg(reinterpret_cast<const uint2*>(p));
  const float2 a = unpack(reinterpret_cast<const typename Pair<T>::type&>(bits.x));
  const float2 b = unpack(reinterpret_cast<const typename Pair<T>::type&>(bits.y));
  return make_float4(a.x, a.y, b.x, b.y);
}

// Two numbers that lie together: one point's offset or location. Read once, so the cache need not keep them.
__device__ __forceinline__ float2 load_point(const float* p) { return __ldcs(reinterpret_cast<const float2*>(p)); }
template <class T>
__device__ __forceinline__ float2 load_point(const T* p) {
  return unpack(__ldcs(reinterpret_cast<const typename Pair<T>::type*>(p)));
}

__device__ __forceinline__ void store_point(float* p, float x, float y) {
  __stcs(reinterpret_cast<float2*>(p), make_float2(x, y));
}
template <class T>
__device__ __forceinline__ void store_point(T* p, float x, float y) {
  typename Pair<T>::type two;
  two.x = from_float<T>(x), two.y = from_float<T>(y);
  *reinterpret_cast<typename Pair<T>::type*>(p) = two;
}

// 16 bytes of a result, written once and not read again here.
__device__ __forceinline__ void store(float* out, const float (&sum)[4]) {
  __stcs(reinterpret_cast<float4*>(out), make_float4(sum[0], sum[1], sum[2], sum[3]));
}

template <class T>
__device__ __forceinline__ void store(T* out, const float (&sum)[8]) {
  uint32_t words[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    typename Pair<T>::type two;
    two.x = from_float<T>(sum[2 * i]), two.y = from_float<T>(sum[2 * i + 1]);
    words[i] = reinterpret_cast<const uint32_t&>(two);
  }
  __stcs(reinterpret_cast<uint4*>(out), make_uint4(words[0], words[1], words[2], words[3]));
}

// Position in pixels of a map of `size`; a pixel's center is a whole number. With a reference point the offset is in
// pixels, so no division is needed, and one rounding less.
template <bool kFused, class F>
__device__ __forceinline__ F pixel(F sampling, F reference, F size) {
  return kFused ? fma(reference, size, sampling - F(0.5)) : fma(sampling, size, F(-0.5));
}

// Whole part of a coordinate, and where anything that is not near the map ends up: far outside, but a safe integer.
template <class F>
__device__ __forceinline__ int whole(F x) {
  return static_cast<int>(fmin(fmax(floor(x), F(-4)), F(1 << 30)));
}

// Softmax over the samples of a query: a quad of lanes holds them, a lane one point of each level.
template <int kLevels>
__device__ __forceinline__ void softmax_of_quad(float (&x)[kLevels]) {
  float top = x[0];
#pragma unroll
  for (int l = 1; l < kLevels; ++l) top = fmaxf(top, x[l]);
  top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
  top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
  float sum = 0.0f;
#pragma unroll
  for (int l = 0; l < kLevels; ++l) sum += x[l] = __expf(x[l] - top);
  sum += __shfl_xor_sync(~0u, sum, 1);
  sum += __shfl_xor_sync(~0u, sum, 2);
  const float scale = 1.0f / sum;
#pragma unroll
  for (int l = 0; l < kLevels; ++l) x[l] *= scale;
}

template <class Run>
cudaError_t for_types(const Call& call, Run run) {
  const bool same = call.projection == call.value_kind;
  switch (call.value_kind) {
    case Kind::f32: return run(float{}, float{});
    case Kind::bf16: return same ? run(__nv_bfloat16{}, __nv_bfloat16{}) : run(__nv_bfloat16{}, float{});
    case Kind::f16: return same ? run(__half{}, __half{}) : run(__half{}, float{});
    case Kind::f64: break;
  }
  return cudaErrorInvalidValue;
}

}  // namespace mask2former
