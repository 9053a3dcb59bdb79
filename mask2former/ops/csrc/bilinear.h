// Bilinear interpolation of one pixel, in the arithmetic of PyTorch's upsample_bilinear2d (align_corners=False, fp32).
//
// Mask logits become masks in two steps: resize to the padded size and crop to the image, then resize to the output. A
// pixel of the output is a mean of 2 x 2 pixels of the image, each of which is a mean of 2 x 2 logits. One step is left
// where image and output have one size.
#pragma once

#ifdef __CUDACC__
#define MASK2FORMER_BOTH __host__ __device__ __forceinline__
#else
#define MASK2FORMER_BOTH inline
#endif

namespace mask2former {

// Lengths along one axis, and source / target of both steps.
struct Axis {
  int logits, image, output;
  float to_padded, to_output;
};

// The logits that a row or column of the output is a mean of: 2 in one step; in two steps 2 for each of the 2
// neighbors in the image. Weights are those of the second of two: of the logits for each neighbor, then of neighbors.
struct Line {
  int at[4];
  float weight[3];
};

MASK2FORMER_BOTH void place(int index, int source, float scale, int& low, int& high, float& weight) {
  float position = scale * (static_cast<float>(index) + 0.5f) - 0.5f;
  if (position < 0.0f) position = 0.0f;
  low = static_cast<int>(position);
  if (low > source - 1) low = source - 1;
  high = low + 1 < source ? low + 1 : low;
  weight = position - static_cast<float>(low);
}

template <bool Twice>
MASK2FORMER_BOTH Line line_of(const Axis& axis, int index) {
  Line line{};
  if (!Twice) {
    place(index, axis.logits, axis.to_padded, line.at[0], line.at[1], line.weight[0]);
    return line;
  }
  int low, high;
  place(index, axis.image, axis.to_output, low, high, line.weight[2]);
  place(low, axis.logits, axis.to_padded, line.at[0], line.at[1], line.weight[0]);
  place(high, axis.logits, axis.to_padded, line.at[2], line.at[3], line.weight[1]);
  return line;
}

MASK2FORMER_BOTH float blend(float low, float high, float weight) { return (1.0f - weight) * low + weight * high; }

// One column of the output, interpolated along the rows of the logits that one row of the output needs. Neighboring
// rows of a large output need the same ones.
template <bool Twice>
struct Sampler {
  static constexpr int kRows = Twice ? 4 : 2, kColumns = Twice ? 2 : 1;
  float across[kRows][kColumns];

  MASK2FORMER_BOTH void load(const float* logits, int width, const Line& row, const Line& column) {
    for (int r = 0; r < kRows; ++r) {
      const float* values = logits + row.at[r] * width;
      for (int c = 0; c < kColumns; ++c)
        across[r][c] = blend(values[column.at[2 * c]], values[column.at[2 * c + 1]], column.weight[c]);
    }
  }

  MASK2FORMER_BOTH float at(const Line& row, const Line& column) const {
    if (!Twice) return blend(across[0][0], across[1][0], row.weight[0]);
    const int last = kColumns - 1;
    const float upper = blend(blend(across[0][0], across[1][0], row.weight[0]),
                              blend(across[0][last], across[1][last], row.weight[0]), column.weight[2]);
    const float lower = blend(blend(across[kRows - 2][0], across[kRows - 1][0], row.weight[1]),
                              blend(across[kRows - 2][last], across[kRows - 1][last], row.weight[1]), column.weight[2]);
    return blend(upper, lower, row.weight[2]);
  }
};

}  // namespace mask2former
