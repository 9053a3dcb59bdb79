// Queries in square tiles. Neighbouring queries look at neighbouring pixels, so a block that holds a square of them
// reads few rows often: from the L1 cache in the forward, out of a list per pixel in the backward.
#pragma once

#include "device.cuh"

namespace mask2former {

constexpr int kChannels = 32;    // of a head
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
  int parts;
  int tiles;        // of one image and head
  int tile_width;   // 16, or 256 for a row
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
  t.tile_width = grid ? kTile : kTileQueries;
  t.parts = grid ? static_cast<int>(s.levels) : 1;
  const int tile_height = kTileQueries / t.tile_width;
  for (int i = 0; i < t.parts; ++i) {
    const FastLevel whole_row{1, t.queries, 0};
    const FastLevel rectangle = grid ? t.level[i] : whole_row;
    const int tiles_x = (rectangle.width + t.tile_width - 1) / t.tile_width;
    t.part[i] = {rectangle.height, rectangle.width, rectangle.start, tiles_x, t.tiles};
    t.tiles += tiles_x * ((rectangle.height + tile_height - 1) / tile_height);
  }
  return t;
}

// The tile and head of a block. Heads of a tile follow each other, so that the lines of `sampling`, which all heads
// share, are read once.
struct Tile {
  const Part* area;
  int number;  // of the part
  int batch, head;
  int top, left;  // in the part

  __device__ Tile(const Tiling& t, int block) {
    head = block % t.heads;
    const int of_all = block / t.heads;
    batch = of_all / t.tiles;
    const int tile = of_all % t.tiles;
    number = 0;
    while (number + 1 < t.parts && tile >= t.part[number + 1].first_tile) ++number;
    area = &t.part[number];
    const int inside = tile - area->first_tile;
    top = inside / area->tiles_x * (kTileQueries / t.tile_width);
    left = inside % area->tiles_x * t.tile_width;
  }
};

// One sample, ready to be gathered. The four pixels are those at `offset` and one to the right and below. At a border
// they are moved inside the map; then `fx`, `fy` are 0 or 1 and the missing part of the weight is in `weight`.
struct __align__(16) Sample {
  int offset;  // bytes
  float fx;
  float fy;
  float weight;
};

__device__ __forceinline__ void place(float x, int size, int& first, float& fraction, float& inside) {
  first = min(max(whole(x), 0), size - 2);
  fraction = fminf(fmaxf(x - first, 0.0f), 1.0f);
  inside = fminf(fmaxf(fminf(1.0f + x, size - x), 0.0f), 1.0f);  // a NaN becomes 0
}

}  // namespace mask2former
