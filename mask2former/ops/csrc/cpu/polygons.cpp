// torch.ops.mask2former.fill_polygons: the masks of objects that polygons outline, equal to those of pycocotools.
//
// pycocotools walks along the outline in steps of a fifth of a pixel. Where the walk crosses the middle of a column of
// pixels, the column changes between outside and inside. Here the crossings are marked in the bounding box of an object
// and the parity is summed down the columns; an object's polygons are united.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <tuple>
#include <vector>

#include "../common.h"

namespace mask2former {
namespace cpu {
namespace {

constexpr int64_t kScale = 5;

struct Point {
  double x, y;
};

struct Polygon {
  const Point* points;
  int64_t count;
};

struct Crossing {
  int64_t row, column;
};

// Part of the image that is visible: rows [top, bottom), columns [left, right).
struct Window {
  int64_t top, bottom, left, right;
};

// The result for one object: its bounding box, and where its pixels begin; all 0 for an empty mask.
using Box = int64_t[5];  // start, top, left, height, width

int64_t scaled(double value) { return static_cast<int64_t>(kScale * value + .5); }

// The crossings of one outline with the middles of the columns. Shifts by full pixels keep the coordinates positive,
// because conversion to integers rounds towards zero.
class Outline {
 public:
  Outline(const Window& window, std::vector<Crossing>& crossings) : window_(window), crossings_(crossings) {}

  void follow(const Polygon& polygon, double shift_x, double shift_y) {
    const Point& last = polygon.points[polygon.count - 1];
    int64_t x0 = scaled(last.x + shift_x), y0 = scaled(last.y + shift_y);
    for (int64_t i = 0; i < polygon.count; ++i) {
      const int64_t x1 = scaled(polygon.points[i].x + shift_x), y1 = scaled(polygon.points[i].y + shift_y);
      const int64_t dx = std::abs(x1 - x0), dy = std::abs(y1 - y0);
      // A line has the same points in both directions.
      if (dx >= dy && dx) {
        x0 < x1 ? flat(x0, y0, x1, y1) : flat(x1, y1, x0, y0);
      } else if (dx) {
        y0 < y1 ? steep(x0, y0, x1, y1) : steep(x1, y1, x0, y0);
      }
      x0 = x1;
      y0 = y1;
    }
  }

 private:
  // The columns whose middle, between positions 2 and 3 of 5, lies between two positions.
  int64_t first_column(int64_t low) const { return std::max((low + 2) / kScale, window_.left); }
  int64_t end_column(int64_t high) const { return std::min((high + 2) / kScale, window_.right); }

  // A step to the right in every column; the row is rounded.
  void flat(int64_t x0, int64_t y0, int64_t x1, int64_t y1) {
    const double slope = static_cast<double>(y1 - y0) / (x1 - x0);
    const auto row = [&](int64_t t) { return static_cast<int64_t>(y0 + slope * t + .5); };
    for (int64_t column = first_column(x0), end = end_column(x1); column < end; ++column) {
      const int64_t t = column * kScale + 2 - x0;
      cross(column, std::min(row(t), row(t + 1)));
    }
  }

  // A step down in every row; the column is rounded.
  void steep(int64_t x0, int64_t y0, int64_t x1, int64_t y1) {
    const double slope = static_cast<double>(x1 - x0) / (y1 - y0);
    const bool rising = x0 < x1;
    for (int64_t column = first_column(std::min(x0, x1)), end = end_column(std::max(x0, x1)); column < end; ++column) {
      const int64_t middle = column * kScale + 3;
      const auto beyond = [&](int64_t t) { return (static_cast<int64_t>(x0 + slope * t + .5) >= middle) == rising; };
      // Nearly the first step beyond the middle; rounding decides.
      int64_t t = std::clamp<int64_t>(static_cast<int64_t>((middle - .5 - x0) / slope), 1, y1 - y0);
      while (t > 1 && beyond(t - 1)) --t;
      while (!beyond(t)) ++t;
      cross(column, t - 1 + y0);
    }
  }

  void cross(int64_t column, int64_t y) {
    const int64_t row = y < 2 ? 0 : (y + 2) / kScale;
    crossings_.push_back({std::clamp(row, window_.top, window_.bottom), column});
  }

  const Window window_;
  std::vector<Crossing>& crossings_;
};

class Filler {
 public:
  explicit Filler(std::vector<uint8_t>& pixels) : pixels_(pixels) {}

  // Appends the pixels of an object, in rows of its bounding box.
  void fill(const Polygon* polygons, int64_t count, int64_t height, int64_t width, const Window& visible, Box& box) {
    crossings_.clear();
    ends_.clear();
    double low_x = std::numeric_limits<double>::infinity(), low_y = low_x;
    touching_.clear();
    for (int64_t i = 0; i < count; ++i) {
      double min_x = std::numeric_limits<double>::infinity(), min_y = min_x, max_x = -min_x, max_y = -min_x;
      for (int64_t p = 0; p < polygons[i].count; ++p) {
        const Point& point = polygons[i].points[p];
        min_x = std::min(min_x, point.x), max_x = std::max(max_x, point.x);
        min_y = std::min(min_y, point.y), max_y = std::max(max_y, point.y);
      }
      if (!(max_x > 0 && max_y > 0 && min_x < width && min_y < height)) continue;
      touching_.push_back(polygons[i]);
      low_x = std::min(low_x, min_x);
      low_y = std::min(low_y, min_y);
    }
    if (touching_.empty()) return;
    const double left = std::max(0.0, std::ceil(-low_x)), top = std::max(0.0, std::ceil(-low_y));
    const int64_t dx = static_cast<int64_t>(left), dy = static_cast<int64_t>(top);
    const Window window{visible.top + dy, visible.bottom + dy, visible.left + dx, visible.right + dx};
    for (const Polygon& polygon : touching_) {
      Outline(window, crossings_).follow(polygon, left, top);
      ends_.push_back(crossings_.size());
    }
    if (crossings_.empty()) return;
    paint();
    append(dy, dx, box);
  }

 private:
  // Unites the polygons in `mask_`, which covers all crossings.
  void paint() {
    const auto [first, last] = std::minmax_element(crossings_.begin(), crossings_.end(),
                                                   [](auto& a, auto& b) { return a.column < b.column; });
    const auto [high, low] = std::minmax_element(crossings_.begin(), crossings_.end(),
                                                 [](auto& a, auto& b) { return a.row < b.row; });
    left_ = first->column, top_ = high->row;
    width_ = last->column - left_ + 1, height_ = low->row - top_;
    mask_.assign(height_ * width_, 0);
    std::size_t begin = 0;
    for (const std::size_t end : ends_) {
      std::vector<uint8_t>& layer = begin ? layer_ : mask_;
      if (begin) layer.assign(mask_.size(), 0);
      for (std::size_t i = begin; i < end; ++i)
        if (crossings_[i].row < top_ + height_)
          layer[(crossings_[i].row - top_) * width_ + crossings_[i].column - left_] ^= 1;
      for (int64_t y = 1; y < height_; ++y) add_parity(layer.data() + (y - 1) * width_, layer.data() + y * width_);
      if (begin)
        for (std::size_t i = 0; i < mask_.size(); ++i) mask_[i] |= layer[i];
      begin = end;
    }
  }

  void add_parity(const uint8_t* __restrict above, uint8_t* __restrict row) const {
    for (int64_t x = 0; x < width_; ++x) row[x] ^= above[x];
  }

  // Copies what `mask_` has inside its bounding box.
  void append(int64_t shift_y, int64_t shift_x, Box& box) {
    std::vector<uint8_t>& columns = layer_;
    columns.assign(width_, 0);
    int64_t top = -1, bottom = 0;
    for (int64_t y = 0; y < height_; ++y) {
      if (!gather(mask_.data() + y * width_, columns.data())) continue;
      if (top < 0) top = y;
      bottom = y + 1;
    }
    if (top < 0) return;
    const int64_t left = std::find(columns.begin(), columns.end(), 1) - columns.begin();
    const int64_t right = columns.rend() - std::find(columns.rbegin(), columns.rend(), 1);
    box[0] = static_cast<int64_t>(pixels_.size());
    box[1] = top_ + top - shift_y;
    box[2] = left_ + left - shift_x;
    box[3] = bottom - top;
    box[4] = right - left;
    for (int64_t y = top; y < bottom; ++y) {
      const uint8_t* row = mask_.data() + y * width_;
      pixels_.insert(pixels_.end(), row + left, row + right);
    }
  }

  // Adds a row to the columns that have a pixel; returns whether it has one.
  bool gather(const uint8_t* __restrict row, uint8_t* __restrict columns) const {
    uint8_t any = 0;
    for (int64_t x = 0; x < width_; ++x) {
      columns[x] |= row[x];
      any |= row[x];
    }
    return any;
  }

  std::vector<uint8_t>& pixels_;
  std::vector<Polygon> touching_;
  std::vector<Crossing> crossings_;
  std::vector<std::size_t> ends_;
  std::vector<uint8_t> mask_, layer_;
  int64_t top_ = 0, left_ = 0, height_ = 0, width_ = 0;
};

// points: float64 (P, 2), those of all polygons. polygons: how many points each has. objects: how many polygons each
// has. size: height and width of the canvas. window: rows and columns that are kept, top, bottom, left, right.
// Returns uint8 (S), the pixels of all objects, and int64 (N, 5): start in them, top, left, height, width.
std::tuple<Tensor, Tensor> fill_polygons(const Tensor& points, const std::vector<int64_t>& polygons,
                                         const std::vector<int64_t>& objects, const std::vector<int64_t>& size,
                                         const std::vector<int64_t>& window) {
  STD_TORCH_CHECK(points.dim() == 2 && points.size(1) == 2 && points.scalar_type() == ScalarType::Double &&
                      points.is_contiguous(),
                  "points must be float64 (P, 2), contiguous");
  STD_TORCH_CHECK(size.size() == 2 && window.size() == 4, "a size and a window are two and four numbers");
  const Window visible{std::max<int64_t>(window[0], 0), std::min(window[1], size[0]), std::max<int64_t>(window[2], 0),
                       std::min(window[3], size[1])};
  std::vector<Polygon> all;
  int64_t used = 0;
  for (const int64_t count : polygons) {
    STD_TORCH_CHECK(count > 0 && used + count <= points.size(0), "the polygons have more points than there are");
    all.push_back({reinterpret_cast<const Point*>(points.const_data_ptr()) + used, count});
    used += count;
  }
  const int64_t number = static_cast<int64_t>(objects.size());
  const Tensor boxes = torch::stable::new_empty(points, {number, 5}, ScalarType::Long);
  int64_t* const to = static_cast<int64_t*>(boxes.mutable_data_ptr());
  std::fill(to, to + 5 * number, 0);
  std::vector<uint8_t> pixels;
  Filler filler(pixels);
  std::size_t next = 0;
  for (int64_t i = 0; i < number; ++i) {
    STD_TORCH_CHECK(objects[i] >= 0 && next + objects[i] <= all.size(), "the objects have more polygons than there are");
    if (visible.top < visible.bottom && visible.left < visible.right)
      filler.fill(all.data() + next, objects[i], size[0], size[1], visible, *reinterpret_cast<Box*>(to + 5 * i));
    next += objects[i];
  }
  const Tensor flat = torch::stable::new_empty(points, {static_cast<int64_t>(pixels.size())}, ScalarType::Byte);
  if (!pixels.empty()) std::memcpy(flat.mutable_data_ptr(), pixels.data(), pixels.size());
  return {flat, boxes};
}

}  // namespace
}  // namespace cpu
}  // namespace mask2former

STABLE_TORCH_LIBRARY_FRAGMENT(mask2former, m) {
  m.def(
      "fill_polygons(Tensor points, int[] polygons, int[] objects, int[] size, int[] window) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(mask2former, CPU, m) { m.impl("fill_polygons", TORCH_BOX(&mask2former::cpu::fill_polygons)); }
