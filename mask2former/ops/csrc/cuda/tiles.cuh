// Queries in square tiles. Neighboring queries look at neighboring pixels, so a block that holds a square of them
// reads few rows often: from the L1 cache in the forward, out of a list per pixel in the backward.
#pragma once

#include <type_traits>

#include "device.cuh"

namespace mask2former {

constexpr int kPoints = 4;
constexpr int kFastLevels = 4;   // at most
constexpr int kTile = 16;        // a tile is 16 x 16 queries
constexpr int kTileQueries = kTile * kTile;

struct FastLevel {
  int height;
  int width;
  int start;
};

// A rectangle of queries: one of the levels where each pixel is a query, otherwise all of them in one row.
struct Part {
  int height;
  int width;
  int start;
  int tiles_x;
  int first_tile;
};

struct Tiling {
  FastLevel level[kFastLevels];
  Part part[kFastLevels];
  // Pixels of a level for one query of a part.
  float scale_x[kFastLevels][kFastLevels];
  float scale_y[kFastLevels][kFastLevels];
  int parts;
  int tiles;       // of one image and head
  int tile_shift;  // a tile's width is 16 = 1 << 4, or 256 = 1 << 8 for a row
  int heads;
  int queries;
  int length;
  int64_t reference_batch, reference_query, reference_level;
};

inline Tiling make_tiling(const Sizes& s) {
  Tiling t{};
  t.heads = static_cast<int>(s.heads);
  t.queries = static_cast<int>(s.queries);
  t.length = static_cast<int>(s.length);
  t.reference_batch = s.reference_batch;
  t.reference_query = s.reference_query;
  t.reference_level = s.reference_level;
  for (int l = 0; l < s.levels; ++l)
    t.level[l] = {static_cast<int>(s.level[l].height), static_cast<int>(s.level[l].width),
                  static_cast<int>(s.level[l].start)};
  const bool grid = s.queries == s.length;
  t.tile_shift = grid ? 4 : 8;
  t.parts = grid ? static_cast<int>(s.levels) : 1;
  const int tile_width = 1 << t.tile_shift, tile_height = kTileQueries >> t.tile_shift;
  for (int i = 0; i < t.parts; ++i) {
    const FastLevel whole_row{1, t.queries, 0};
    const FastLevel rectangle = grid ? t.level[i] : whole_row;
    const int tiles_x = (rectangle.width + tile_width - 1) / tile_width;
    t.part[i] = {rectangle.height, rectangle.width, rectangle.start, tiles_x, t.tiles};
    for (int l = 0; l < s.levels; ++l) {
      t.scale_x[i][l] = static_cast<float>(t.level[l].width) / rectangle.width;
      t.scale_y[i][l] = static_cast<float>(t.level[l].height) / rectangle.height;
    }
    t.tiles += tiles_x * ((rectangle.height + tile_height - 1) / tile_height);
  }
  return t;
}

// The tile and head of a block. Heads of a tile follow each other, so that the lines of `sampling`, which all heads
// share, are read once.
struct Tile {
  int number;  // of the part
  int batch, head;
  int top, left;  // in the part
  int height, width, start;  // of the part

  __device__ explicit Tile(const Tiling& t) : number(0), batch(blockIdx.z), head(blockIdx.x) {
    const int tile = blockIdx.y;
#pragma unroll
    for (int i = 1; i < kFastLevels; ++i)
      if (i < t.parts && tile >= t.part[i].first_tile) number = i;
    const Part& part = t.part[number];
    height = part.height, width = part.width, start = part.start;
    const unsigned inside = tile - part.first_tile, row = inside / static_cast<unsigned>(part.tiles_x);
    top = row * (kTileQueries >> t.tile_shift);
    left = (inside - row * part.tiles_x) << t.tile_shift;
  }
};

inline dim3 blocks_of(const Tiling& t, const Sizes& s) {
  return dim3(static_cast<unsigned>(s.heads), static_cast<unsigned>(t.tiles), static_cast<unsigned>(s.batch));
}

template <int kNumber>
using Constant = std::integral_constant<int, kNumber>;

// The channels of a head, points and levels that the fast kernels are compiled for. Their code is right for 64 channels
// too, which only cost time to compile and space.
inline bool has_fast_sizes(const Sizes& s) {
  return (s.dim == 16 || s.dim == 32) && s.points == kPoints && (s.levels == 3 || s.levels == kFastLevels);
}

// Calls `run` with a value and a projection, as `for_types`, and then, as constants, the channels of a head, the
// levels, and whether reference points are given. Without them projections are fp32.
template <class Run>
cudaError_t for_fast_kernels(const Call& call, Run run) {
  return for_types(call, [&](auto value, auto projection) {
    const auto with_levels = [&](auto channels, auto levels) {
      return call.reference ? run(value, projection, channels, levels, std::true_type{})
                            : run(value, float{}, channels, levels, std::false_type{});
    };
    const auto with_channels = [&](auto channels) {
      return call.sizes.levels == 3 ? with_levels(channels, Constant<3>{}) : with_levels(channels, Constant<4>{});
    };
    return call.sizes.dim == 16 ? with_channels(Constant<16>{}) : with_channels(Constant<32>{});
  });
}

}  // namespace mask2former
