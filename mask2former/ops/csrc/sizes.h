// The sizes of one call, as plain data.
#pragma once

#include <cstdint>

namespace mask2former {

constexpr int kMaxLevels = 32;

struct Level {
  int64_t height;
  int64_t width;
  int64_t start;  // first position of the level among the S
};

// Plain data, so that it can be a kernel parameter.
struct Sizes {
  int64_t batch;
  int64_t length;
  int64_t heads;
  int64_t dim;
  int64_t queries;
  int64_t levels;
  int64_t points;
  Level level[kMaxLevels];
  // Strides of the reference points (B or 1, N, L or 1, 2) in elements; 0 where a dimension is broadcast.
  int64_t reference_batch;
  int64_t reference_query;
  int64_t reference_level;
};

}  // namespace mask2former
