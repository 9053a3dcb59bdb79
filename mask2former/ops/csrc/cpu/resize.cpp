// torch.ops.mask2former.resize_window: a window of a resized 8-bit color image, equal to Pillow's bilinear resize.
//
// Pillow changes the width, rounds to 8 bits, then changes the height; a pixel is a sum of 8-bit values with weights of
// 22 bits. All of this happens here in the same arithmetic, but only for the pixels of the window. Images are not made
// lower: Pillow 13 then changes the height first where that is cheaper, which rounds differently.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "../common.h"

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__GLIBC__)
#define MASK2FORMER_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define MASK2FORMER_CLONES
#endif

namespace mask2former {
namespace cpu {
namespace {

constexpr int kBits = 22;
constexpr int32_t kHalf = 1 << (kBits - 1);
constexpr int kChannels = 3;

// Weights are not negative and add up to 1, so the sum needs no clamp.
inline uint8_t rounded(int32_t sum) { return static_cast<uint8_t>(static_cast<uint32_t>(sum) >> kBits); }

// For each pixel of [begin, end) in a line that is resized from `from` to `to` pixels: the first input pixel that it
// depends on, how many there are, and their weights, `most` for each pixel.
struct Taps {
  int64_t most;
  std::vector<int64_t> first, count;
  std::vector<int32_t> weights;

  Taps(int64_t from, int64_t to, int64_t begin, int64_t end) : first(end - begin), count(end - begin) {
    const double scale = static_cast<double>(from) / to, reach = std::max(scale, 1.0), inverse = 1.0 / reach;
    most = 2 * static_cast<int64_t>(std::ceil(reach)) + 1;
    weights.assign((end - begin) * most, 0);
    std::vector<double> exact(most);
    for (int64_t i = begin; i < end; ++i) {
      const double center = (i + 0.5) * scale;
      const int64_t low = std::max<int64_t>(static_cast<int64_t>(center - reach + 0.5), 0);
      const int64_t high = std::min(static_cast<int64_t>(center + reach + 0.5), from);
      double sum = 0;
      for (int64_t k = 0; k < high - low; ++k) {
        const double distance = std::abs((k + low - center + 0.5) * inverse);
        exact[k] = distance < 1.0 ? 1.0 - distance : 0.0;
        sum += exact[k];
      }
      for (int64_t k = 0; k < high - low; ++k)
        weights[(i - begin) * most + k] = static_cast<int32_t>(0.5 + exact[k] / (sum != 0.0 ? sum : 1.0) * (1 << kBits));
      first[i - begin] = low;
      count[i - begin] = high - low;
    }
  }
};

// The channels of a pixel, and a fourth value that is not used.
typedef int32_t Pixel __attribute__((vector_size(16)));

// Resizes one row of the input to `out`, a pixel for each of the taps.
MASK2FORMER_CLONES
void resize_columns(const Pixel* in, const int64_t* first, const int64_t* count, const int32_t* weights, int64_t most,
                    int64_t width, Pixel* __restrict out) {
  for (int64_t x = 0; x < width; ++x, weights += most) {
    const Pixel* const at = in + first[x];
    Pixel sum = {kHalf, kHalf, kHalf, kHalf};
    if (count[x] == 2) {  // every enlargement, but for the borders
      sum += weights[0] * at[0] + weights[1] * at[1];
    } else {
      for (int64_t k = 0; k < count[x]; ++k) sum += weights[k] * at[k];
    }
    out[x] = sum >> kBits;
  }
}

MASK2FORMER_CLONES
void split_channels(const Pixel* in, int64_t width, uint8_t* __restrict red, uint8_t* __restrict green,
                    uint8_t* __restrict blue) {
  for (int64_t x = 0; x < width; ++x) {
    red[x] = static_cast<uint8_t>(in[x][0]);
    green[x] = static_cast<uint8_t>(in[x][1]);
    blue[x] = static_cast<uint8_t>(in[x][2]);
  }
}

MASK2FORMER_CLONES
void mix_two(const uint8_t* a, const uint8_t* b, int32_t weight_a, int32_t weight_b, int64_t width, uint8_t* out) {
  for (int64_t x = 0; x < width; ++x) out[x] = rounded(kHalf + weight_a * a[x] + weight_b * b[x]);
}

MASK2FORMER_CLONES
void mix(const uint8_t* in, int64_t row, const int32_t* weights, int64_t count, int64_t width, int32_t* sums,
         uint8_t* out) {
  for (int64_t x = 0; x < width; ++x) sums[x] = kHalf;
  for (int64_t k = 0; k < count; ++k, in += row) {
    const int32_t weight = weights[k];
    for (int64_t x = 0; x < width; ++x) sums[x] += weight * in[x];
  }
  for (int64_t x = 0; x < width; ++x) out[x] = rounded(sums[x]);
}

// image: uint8 (h, w, 3) of any strides. backwards: whether rows, columns, channels are read backwards. size: height and
// width of the resized image. origin: row and column in it where the window begins. out: uint8 (3, H, W), the window.
void resize_window(const Tensor& image, const std::vector<int64_t>& backwards, const std::vector<int64_t>& size,
                   const std::vector<int64_t>& origin, const Tensor& out) {
  STD_TORCH_CHECK(image.dim() == 3 && image.size(2) == kChannels && image.scalar_type() == ScalarType::Byte,
                  "image must be uint8 (h, w, 3)");
  STD_TORCH_CHECK(out.dim() == 3 && out.size(0) == kChannels && out.scalar_type() == ScalarType::Byte &&
                      out.stride(2) == 1,
                  "out must be uint8 (3, H, W), contiguous in its rows");
  STD_TORCH_CHECK(backwards.size() == 3 && size.size() == 2 && origin.size() == 2, "three flags, two sizes, two origins");
  const int64_t height = out.size(1), width = out.size(2);
  for (int axis = 0; axis < 2; ++axis)
    STD_TORCH_CHECK(image.size(axis) > 0 && origin[axis] >= 0 && origin[axis] + out.size(axis + 1) <= size[axis],
                    "the window must lie inside the resized image");
  STD_TORCH_CHECK(size[0] >= image.size(0), "the height must not shrink");
  if (!height || !width) return;

  int64_t strides[3];
  const uint8_t* in = static_cast<const uint8_t*>(image.const_data_ptr());
  for (int axis = 0; axis < 3; ++axis) {
    strides[axis] = image.stride(axis);
    if (backwards[axis]) {
      in += (image.size(axis) - 1) * strides[axis];
      strides[axis] = -strides[axis];
    }
  }
  const Taps columns(image.size(1), size[1], origin[1], origin[1] + width);
  const Taps rows(image.size(0), size[0], origin[0], origin[0] + height);
  const int64_t first = rows.first.front(), count = rows.first.back() + rows.count.back() - first;
  std::vector<uint8_t> narrow(kChannels * count * width);
  std::vector<Pixel> wide(image.size(1)), line(width);
  for (int64_t y = 0; y < count; ++y) {
    const uint8_t* at = in + (first + y) * strides[0];
    for (Pixel& pixel : wide) {
      pixel = Pixel{at[0], at[strides[2]], at[2 * strides[2]], 0};
      at += strides[1];
    }
    resize_columns(wide.data(), columns.first.data(), columns.count.data(), columns.weights.data(), columns.most, width,
                   line.data());
    split_channels(line.data(), width, &narrow[y * width], &narrow[(count + y) * width],
                   &narrow[(2 * count + y) * width]);
  }
  std::vector<int32_t> sums(width);
  uint8_t* const to = static_cast<uint8_t*>(out.mutable_data_ptr());
  for (int64_t c = 0; c < kChannels; ++c) {
    for (int64_t y = 0; y < height; ++y) {
      const uint8_t* at = &narrow[(c * count + rows.first[y] - first) * width];
      const int32_t* weights = &rows.weights[y * rows.most];
      uint8_t* line = to + c * out.stride(0) + y * out.stride(1);
      if (rows.count[y] == 2) {
        mix_two(at, at + width, weights[0], weights[1], width, line);
      } else {
        mix(at, width, weights, rows.count[y], width, sums.data(), line);
      }
    }
  }
}

}  // namespace
}  // namespace cpu
}  // namespace mask2former

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, m) {
  m.def("resize_window(Tensor image, int[] backwards, int[] size, int[] origin, Tensor(a!) out) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, m) { m.impl("resize_window", TORCH_BOX(&mask2former::cpu::resize_window)); }
