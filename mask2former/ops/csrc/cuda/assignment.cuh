// Exact linear assignment by shortest augmenting paths (Jonker and Volgenant, Computing 38, 1987; Crouse, IEEE
// Transactions on Aerospace and Electronic Systems 52, 2016), for a team of lanes: a warp, a block, or threads of a CPU.
//
// Every row gets a column; there are at least as many columns as rows. Rows come one after another. Each searches the
// cheapest way to a column that no row has, over columns whose rows then move on (Dijkstra's algorithm on reduced costs,
// which the dual variables keep from being negative). The lanes look at all columns of one step together.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define MASK2FORMER_BOTH __host__ __device__
#else
#define MASK2FORMER_BOTH
#endif

namespace mask2former {

// Stands for costs that are not finite, so that such a pair is matched last; matcher.py has the same number.
constexpr float kWorstCost = 1e8f;

MASK2FORMER_BOTH inline float finite_cost(float cost) {
  if (cost - cost == 0.0f) return cost;
  return cost < 0.0f ? -kWorstCost : kWorstCost;
}

// The nearest column that a lane has found: how far it is, and the row that has it, or -1. `column` -1: none.
struct Nearest {
  double length;
  int column;
  int row;

  // Of columns that are equally far a free one ends the search.
  MASK2FORMER_BOTH bool before(const Nearest& other) const {
    if (column < 0 || other.column < 0) return other.column < 0 && column >= 0;
    return length < other.length || (length == other.length && row < 0 && other.row >= 0);
  }
};

// Memory that all lanes share. Lane k owns the columns k, k + lanes, ...
struct Assigning {
  double* row_dual;     // (rows,)
  double* column_dual;  // (columns,)
  double* length;       // (columns,) of the shortest way that is known so far
  int* column_of;       // (rows,) the result
  int* row_of;          // (columns,) the row that has a column, or -1
  int* previous;        // (columns,) the row before this column on its way
  uint8_t* done;        // (columns,) the way is known to be the shortest

  MASK2FORMER_BOTH Assigning(void* memory, int rows, int columns) {
    row_dual = static_cast<double*>(memory);
    column_dual = row_dual + rows;
    length = column_dual + columns;
    column_of = reinterpret_cast<int*>(length + columns);
    row_of = column_of + rows;
    previous = row_of + columns;
    done = reinterpret_cast<uint8_t*>(previous + columns);
  }

  // A multiple of 8.
  MASK2FORMER_BOTH static size_t bytes(int rows, int columns) {
    const size_t r = static_cast<size_t>(rows), c = static_cast<size_t>(columns);
    return (r * (sizeof(double) + sizeof(int)) + c * (2 * sizeof(double) + 2 * sizeof(int) + 1) + 7) / 8 * 8;
  }
};

// Fills `s.column_of`. All lanes of the team call this with the same arguments, and see the result.
//
// A team has `lane()`, `lanes()`, `sync()` (what lanes wrote before is seen by all after it) and `nearest(n)`, which
// returns the first of all lanes' `n` to all lanes. `cost(row, column)` must be finite.
template <class Team, class Cost>
MASK2FORMER_BOTH void assign(Team& team, const Cost& cost, int rows, int columns, const Assigning& s) {
  const int first = team.lane(), step = team.lanes();
  for (int j = first; j < columns; j += step) s.column_dual[j] = 0.0, s.row_of[j] = -1;
  for (int i = first; i < rows; i += step) s.row_dual[i] = 0.0, s.column_of[i] = -1;
  team.sync();
  for (int start = 0; start < rows; ++start) {
    for (int j = first; j < columns; j += step) s.length[j] = INFINITY, s.done[j] = 0;
    int row = start;
    Nearest end{0.0, -1, row};
    while (end.row >= 0) {
      const double base = end.length - s.row_dual[row];
      Nearest mine{0.0, -1, -1};
      for (int j = first; j < columns; j += step) {
        if (s.done[j]) continue;
        const double reached = base + static_cast<double>(cost(row, j)) - s.column_dual[j];
        if (reached < s.length[j]) s.length[j] = reached, s.previous[j] = row;
        const Nearest here{s.length[j], j, s.row_of[j]};
        if (here.before(mine)) mine = here;
      }
      end = team.nearest(mine);
      if (end.column % step == first) s.done[end.column] = 1;
      row = end.row;
    }
    // The rows on the ways that were followed, all but the first of which have one of the columns that are done.
    for (int j = first; j < columns; j += step) {
      if (!s.done[j] || j == end.column) continue;
      const double shorter = end.length - s.length[j];
      s.column_dual[j] -= shorter;
      s.row_dual[s.row_of[j]] += shorter;
    }
    if (first == 0) s.row_dual[start] += end.length;
    team.sync();
    if (first == 0) {
      int column = end.column;
      do {
        row = s.previous[column];
        const int left = s.column_of[row];
        s.row_of[column] = row;
        s.column_of[row] = column;
        column = left;
      } while (row != start);
    }
    team.sync();
  }
}

}  // namespace mask2former
