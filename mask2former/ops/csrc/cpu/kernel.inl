// The kernels, written once for every instruction set and precision. The file that includes this one defines
//   MASK2FORMER_ISA           the name of the table to define, such as kAvx2,
//   MASK2FORMER_ISA_NAME      its name in words,
//   MASK2FORMER_VECTOR_BYTES  the size of a register.
//
// A query of one head is worked on in two steps. First, vectors over its L * P samples: softmax, locations, the four
// pixels around each and their weights. Then, sample by sample, vectors over the D channels.
#include "kernel.h"

namespace mask2former {
namespace cpu {
namespace {  // internal linkage: the linker must not merge the copies of different instruction sets

#include "vector.inl"

// As many samples as a register has lanes. The first group is constant during a call.
template <class T>
struct Block {
  static constexpr int kLanes = kWidth<T>;
  using V = Vector<T, kLanes>;
  using I = Vector<Integer<T>, kLanes>;

  V width, height;      // of the level of the sample; negative in lanes without a sample, so nothing is inside
  V scale_x, scale_y;   // pixels per unit of `sampling`
  I level, first, row;  // number of the level, its first position, its width

  V weight;       // of the attention
  I inside;       // 0 where all four pixels are outside
  I position[4];  // the pixels: upper left, upper right, lower left, lower right; moved inside where they are not
  V scaled[4];    // their bilinear weights times `weight`; 0 outside
  // The rest is for the gradients. Bilinear weights; each is a y factor times an x factor; derivatives of the factors.
  V corner[4];
  V x_factor[2], y_factor[2], x_slope[2], y_slope[2];
  T dots[4 * kLanes];  // gradient * value of sample i and pixel c in 4 i + c
  V grad_x, grad_y, grad_weight;
};

template <class T>
constexpr int64_t block_count(int64_t samples) {
  return (samples + kWidth<T> - 1) / kWidth<T>;
}

template <class T>
int64_t scratch_bytes(int64_t samples) {
  return (block_count<T>(samples) + 1) * static_cast<int64_t>(sizeof(Block<T>));  // one more, for the alignment
}

template <class T>
Block<T>* aligned(void* scratch) {
  constexpr uintptr_t kTo = alignof(Block<T>);
  return reinterpret_cast<Block<T>*>((reinterpret_cast<uintptr_t>(scratch) + kTo - 1) / kTo * kTo);
}

template <class T>
void fill_constants(const Inputs<T>& in, Block<T>* blocks) {
  constexpr int kLanes = kWidth<T>;
  const int64_t samples = in.levels * in.points;
  for (int64_t k = 0; k < block_count<T>(samples) * kLanes; ++k) {
    Block<T>& block = blocks[k / kLanes];
    const int64_t i = k % kLanes;
    const bool real = k < samples;
    const int64_t level = real ? k / in.points : 0;
    const MapShape map = real ? in.maps[level] : MapShape{-2, -2, 0};
    block.width[i] = static_cast<T>(map.width);
    block.height[i] = static_cast<T>(map.height);
    block.scale_x[i] = in.reference ? T(1) : block.width[i];
    block.scale_y[i] = in.reference ? T(1) : block.height[i];
    block.level[i] = static_cast<Integer<T>>(level);
    block.first[i] = static_cast<Integer<T>>(map.start);
    block.row[i] = static_cast<Integer<T>>(map.width);
  }
}

// A vector, of which the last lanes may lie beyond the end of the tensor; those are 0.
template <class T, class V>
MASK2FORMER_INLINE V load_before_end(const T* from, int64_t available) {
  constexpr int64_t kLanes = sizeof(V) / sizeof(T);
  if (available >= kLanes) return load<V>(from);
  V v{};
  for (int64_t i = 0; i < available; ++i) v[i] = from[i];
  return v;
}

// Reads the attention of a query and head, whose first sample is number `start` of all; makes weights of logits.
template <class T>
MASK2FORMER_INLINE void read_attention(const Inputs<T>& in, int64_t start, Block<T>* blocks, int64_t count) {
  constexpr int kLanes = kWidth<T>;
  using V = typename Block<T>::V;
  using I = typename Block<T>::I;
  for (int64_t b = 0; b < count; ++b) {
    const int64_t at = start + b * kLanes;
    const V read = load_before_end<T, V>(in.attention + at, in.samples - at);
    const V none = V{} + (in.reference ? T(-3e38) : T(0));
    blocks[b].weight = blocks[b].width > T(0) ? read : none;
  }
  if (!in.reference) return;
  V highest = blocks[0].weight;
  for (int64_t b = 1; b < count; ++b) highest = larger(highest, blocks[b].weight);
  const T top = maximum<T, kLanes>(highest);
  V total{};
  for (int64_t b = 0; b < count; ++b) {
    blocks[b].weight = exponential<T, V, I>(blocks[b].weight - top);
    total += blocks[b].weight;
  }
  const T share = T(1) / sum<T, kLanes>(total);
  for (int64_t b = 0; b < count; ++b) blocks[b].weight *= share;
}

// One axis of a sample: its pixels, their weights and the derivatives of these.
template <class V, class I>
struct Axis {
  I low, high;
  V factor[2], slope[2];
};

template <class T, class V, class I>
MASK2FORMER_INLINE Axis<V, I> split_axis(V at, V size, I exists) {
  const V bounded = smaller(larger(at, V{} - T(1)), size);  // NaN becomes -1: no conversion overflows
  I low = __builtin_convertvector(bounded, I);
  low += (I)(__builtin_convertvector(low, V) > bounded);  // truncated -> floor; true is -1
  const V floor = __builtin_convertvector(low, V);
  const V fraction = bounded - floor;
  const I has_low = exists & (I)(floor >= T(0));
  const I has_high = exists & (I)(floor < size - T(1));
  const V zero{}, one = zero + T(1);
  const I last = __builtin_convertvector(size, I) - 1;
  Axis<V, I> axis;
  axis.low = low > 0 ? low : I{};
  axis.high = smaller(low + 1, last);
  axis.factor[0] = has_low ? one - fraction : zero;
  axis.factor[1] = has_high ? fraction : zero;
  axis.slope[0] = has_low ? -one : zero;
  axis.slope[1] = has_high ? one : zero;
  return axis;
}

// Reads the sampling points, finds their pixels and the weights of these. `reference` is that of the query, or null.
template <class T, bool kGradients>
MASK2FORMER_INLINE void place_samples(const Inputs<T>& in, int64_t start, const T* reference, Block<T>* blocks,
                                      int64_t count) {
  constexpr int kLanes = kWidth<T>;
  using V = typename Block<T>::V;
  using I = typename Block<T>::I;
  for (int64_t b = 0; b < count; ++b) {
    Block<T>& block = blocks[b];
    const int64_t at = start + b * kLanes;
    const int64_t available = 2 * (in.samples - at);
    V x, y;
    split_pairs<kLanes>(load_before_end<T, V>(in.sampling + 2 * at, available),
                        load_before_end<T, V>(in.sampling + 2 * at + kLanes, available - kLanes), x, y);
    V center_x{}, center_y{};
    if (reference && in.reference_level == 0) {
      center_x += reference[0];
      center_y += reference[1];
    } else if (reference) {
      for (int i = 0; i < kLanes; ++i) {
        const T* center = reference + block.level[i] * in.reference_level;
        center_x[i] = center[0];
        center_y[i] = center[1];
      }
    }
    x = x * block.scale_x + (center_x * block.width - T(0.5));
    y = y * block.scale_y + (center_y * block.height - T(0.5));
    block.inside = (I)(x >= T(-1)) & (I)(x < block.width) & (I)(y >= T(-1)) & (I)(y < block.height);
    const auto across = split_axis<T, V, I>(x, block.width, block.inside);
    const auto down = split_axis<T, V, I>(y, block.height, block.inside);
    for (int c = 0; c < 4; ++c) {
      block.position[c] = block.first + (c / 2 ? down.high : down.low) * block.row + (c % 2 ? across.high : across.low);
      const V corner = down.factor[c / 2] * across.factor[c % 2];
      block.scaled[c] = corner * block.weight;
      if constexpr (kGradients) block.corner[c] = corner;
    }
    if constexpr (kGradients) {
      for (int i = 0; i < 2; ++i) {
        block.x_factor[i] = across.factor[i];
        block.y_factor[i] = down.factor[i];
        block.x_slope[i] = across.slope[i];
        block.y_slope[i] = down.slope[i];
      }
      for (int c = 0; c < 4; ++c) store(block.dots + c * kLanes, V{});
    }
  }
}

// Runs `work` on all D channels: in groups of as many registers as help, then in ever smaller ones.
template <class T, int kLanes, int kVectors, class Work>
MASK2FORMER_INLINE void for_channels(int64_t dim, int64_t channel, const Work& work) {
  for (; channel + kLanes * kVectors <= dim; channel += kLanes * kVectors) work.template run<kLanes, kVectors>(channel);
  if constexpr (kVectors > 1) {
    for_channels<T, kLanes, kVectors / 2>(dim, channel, work);
  } else if constexpr (kLanes > 1) {
    for_channels<T, kLanes / 2, 1>(dim, channel, work);
  }
}

// What both directions need of a query and head once its samples are placed.
template <class T>
struct Placed {
  Block<T>* blocks;
  int64_t samples;
  const T* value;    // of the image and head
  int64_t position;  // stride of the value

  template <class Visit>
  MASK2FORMER_INLINE void for_inside(const Visit& visit) const {
    constexpr int kLanes = kWidth<T>;
    for (int64_t k = 0; k < samples; k += kLanes) {
      Block<T>& block = blocks[k / kLanes];
      const int count = samples - k < kLanes ? static_cast<int>(samples - k) : kLanes;
      for (int i = 0; i < count; ++i)
        if (block.inside[i]) visit(block, i);
    }
  }
};

template <class T>
struct ForwardWork {
  Placed<T> placed;
  T* out;

  template <int kLanes, int kVectors>
  MASK2FORMER_INLINE void run(int64_t channel) const {
    using V = Vector<T, kLanes>;
    V total[kVectors] = {};
    placed.for_inside([&](const Block<T>& block, int i) {
      const T* pixel[4];
      for (int c = 0; c < 4; ++c) pixel[c] = placed.value + block.position[c][i] * placed.position + channel;
      for (int j = 0; j < kVectors; ++j) {
        // The four are summed apart, so that samples wait for one addition only.
        V one = load<V>(pixel[0] + j * kLanes) * block.scaled[0][i];
        for (int c = 1; c < 4; ++c) one += load<V>(pixel[c] + j * kLanes) * block.scaled[c][i];
        total[j] += one;
      }
    });
    for (int j = 0; j < kVectors; ++j) store(out + channel + j * kLanes, total[j]);
  }
};

template <class T>
struct BackwardWork {
  Placed<T> placed;
  const T* grad_out;
  T* grad_value;  // as placed.value, but contiguous
  int64_t dim;

  template <int kLanes, int kVectors>
  MASK2FORMER_INLINE void run(int64_t channel) const {
    using V = Vector<T, kLanes>;
    V grad[kVectors];
    for (int j = 0; j < kVectors; ++j) grad[j] = load<V>(grad_out + channel + j * kLanes);
    placed.for_inside([&](Block<T>& block, int i) {
      V dot[4];
      for (int c = 0; c < 4; ++c) {
        const T* pixel = placed.value + block.position[c][i] * placed.position + channel;
        dot[c] = grad[0] * load<V>(pixel);
        for (int j = 1; j < kVectors; ++j) dot[c] += grad[j] * load<V>(pixel + j * kLanes);
      }
      for (int c = 0; c < 4; ++c) {
        T* pixel = grad_value + block.position[c][i] * dim + channel;
        const T scaled = block.scaled[c][i];
        for (int j = 0; j < kVectors; ++j) {
          T* at = pixel + j * kLanes;
          store(at, load<V>(at) + grad[j] * scaled);
        }
      }
      add_sums<T, kLanes>(dot, block.dots + 4 * i);
    });
  }
};

// From the dot products to the gradients of a query's sampling and attention.
template <class T>
MASK2FORMER_INLINE void finish_gradients(const Inputs<T>& in, int64_t start, Block<T>* blocks, int64_t count,
                                         const Gradients<T>& grads) {
  constexpr int kLanes = kWidth<T>;
  using V = typename Block<T>::V;
  const int64_t samples = in.levels * in.points;
  V total{};  // of weight * gradient of the weight, for the softmax
  for (int64_t b = 0; b < count; ++b) {
    Block<T>& block = blocks[b];
    V even[2], odd[2], dot[4];
    split_pairs<kLanes>(load<V>(block.dots), load<V>(block.dots + kLanes), even[0], odd[0]);
    split_pairs<kLanes>(load<V>(block.dots + 2 * kLanes), load<V>(block.dots + 3 * kLanes), even[1], odd[1]);
    split_pairs<kLanes>(even[0], even[1], dot[0], dot[2]);
    split_pairs<kLanes>(odd[0], odd[1], dot[1], dot[3]);
    V along_x{}, along_y{}, along_weight{};
    for (int c = 0; c < 4; ++c) {
      along_weight += block.corner[c] * dot[c];
      along_x += block.y_factor[c / 2] * block.x_slope[c % 2] * dot[c];
      along_y += block.y_slope[c / 2] * block.x_factor[c % 2] * dot[c];
    }
    block.grad_x = along_x * block.weight * block.scale_x;
    block.grad_y = along_y * block.weight * block.scale_y;
    block.grad_weight = along_weight;
    total += along_weight * block.weight;
  }
  const T mean = in.reference ? sum<T, kLanes>(total) : T(0);
  for (int64_t b = 0; b < count; ++b) {
    Block<T>& block = blocks[b];
    const V attention = in.reference ? block.weight * (block.grad_weight - mean) : block.grad_weight;
    const int64_t here = samples - b * kLanes < kLanes ? samples - b * kLanes : kLanes;
    for (int64_t i = 0; i < here; ++i) {
      const int64_t k = start + b * kLanes + i;
      grads.sampling[2 * k] = block.grad_x[i];
      grads.sampling[2 * k + 1] = block.grad_y[i];
      grads.attention[k] = attention[i];
    }
  }
}

// Places the samples of each query of the span and hands them to `then(placed, row)`, row = number of (b, n, head).
template <class T, bool kGradients, class Then>
MASK2FORMER_INLINE void for_queries(const Inputs<T>& in, const Span& span, Block<T>* blocks, const Then& then) {
  const int64_t samples = in.levels * in.points;
  const int64_t count = block_count<T>(samples);
  fill_constants(in, blocks);
  const T* value = in.value + span.batch * in.value_batch + span.head * in.value_head;
  const T* reference = in.reference ? in.reference + span.batch * in.reference_batch : nullptr;
  for (int64_t n = span.begin; n < span.end; ++n) {
    const int64_t row = (span.batch * in.queries + n) * in.heads + span.head;
    read_attention(in, row * samples, blocks, count);
    place_samples<T, kGradients>(in, row * samples, reference ? reference + n * in.reference_query : nullptr, blocks,
                                 count);
    then(Placed<T>{blocks, samples, value, in.value_position}, row);
  }
}

template <class T>
void forward(const Inputs<T>& in, const Span& span, T* out, void* scratch) {
  Block<T>* blocks = aligned<T>(scratch);
  for_queries<T, false>(in, span, blocks, [&](const Placed<T>& placed, int64_t row) {
    for_channels<T, kWidth<T>, 8>(in.dim, 0, ForwardWork<T>{placed, out + row * in.dim});
  });
}

template <class T>
void backward(const Inputs<T>& in, const Span& span, const Gradients<T>& grads, void* scratch) {
  Block<T>* blocks = aligned<T>(scratch);
  const int64_t samples = in.levels * in.points;
  for_queries<T, true>(in, span, blocks, [&](const Placed<T>& placed, int64_t row) {
    for_channels<T, kWidth<T>, 8>(in.dim, 0,
                                  BackwardWork<T>{placed, grads.out + row * in.dim, grads.value, in.dim});
    finish_gradients(in, row * samples, blocks, block_count<T>(samples), grads);
  });
}

}  // namespace

extern const Isa MASK2FORMER_ISA = {
    MASK2FORMER_ISA_NAME,
    {scratch_bytes<float>, forward<float>, backward<float>},
    {scratch_bytes<double>, forward<double>, backward<double>},
};

}  // namespace cpu
}  // namespace mask2former
