// What the program knows of a kernel: plain data and function pointers.
//
// The kernels are compiled several times with different instruction sets. Were an inline function of the standard
// library or of torch compiled there too, the linker could keep that copy for the whole program, which then stops on
// an older machine. So this header and kernel.inl include nothing that has code.
#pragma once

#include <cstdint>

namespace mask2former {
namespace cpu {

struct MapShape {
  int64_t height;
  int64_t width;
  int64_t start;  // first position of the level among the S
};

// The inputs of one call; letters and the two forms as in common.h. All but the value are contiguous.
template <class T>
struct Inputs {
  int64_t heads, dim, queries, levels, points;
  const MapShape* maps;  // L of them
  const T* value;
  int64_t value_batch, value_head, value_position;  // strides; the D channels of a position lie side by side
  const T* sampling;    // (B, N, M, L, P, 2)
  int64_t samples;      // B * N * M * L * P
  const T* attention;   // (B, N, M, L, P)
  const T* reference;   // (B or 1, N, L or 1, 2), or null: `sampling` are locations then, `attention` weights
  int64_t reference_batch, reference_query, reference_level;  // strides, 0 where broadcast
};

// One query after another of one head of one image.
struct Span {
  int64_t batch, head, begin, end;
};

template <class T>
struct Gradients {
  const T* out;  // (B, N, M, D), given
  T* value;      // (S, D) of the span's image and head, added to
  T* sampling;   // as the inputs
  T* attention;
};

template <class T>
struct Kernels {
  // Bytes of scratch memory that one thread needs for the samples of a query.
  int64_t (*scratch_bytes)(int64_t samples);
  // out (B, N, M, D)
  void (*forward)(const Inputs<T>&, const Span&, T* out, void* scratch);
  void (*backward)(const Inputs<T>&, const Span&, const Gradients<T>&, void* scratch);
};

struct Isa {
  const char* name;
  Kernels<float> f32;
  Kernels<double> f64;
};

extern const Isa kBaseline;
#ifndef MASK2FORMER_BASELINE_ONLY
extern const Isa kAvx2;
extern const Isa kAvx512;
#endif

}  // namespace cpu
}  // namespace mask2former
