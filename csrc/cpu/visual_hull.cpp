// Visual hull on the CPU: blocks of vertices first ask the views as a whole (judge_block), and their vertices then only
// those views that did not answer for all of them. Nearly all blocks are outside or inside for nearly all views.
#include <cstring>
#include <vector>

#include "../kernels/launch.h"
#include "parallel.h"

namespace nsr::cpu {
namespace {

constexpr int32_t kStrip = 256;  // columns of an image that are walked together
constexpr int64_t kBlock = 8;    // vertices per side of a block

// Signed distances along the columns [first, first + count) of one image.
void walk_columns(const uint8_t* mask, int16_t* columns, int32_t height, int32_t width, int32_t first, int32_t count) {
  int16_t last[kStrip];
  for (int32_t i = 0; i < count; ++i) last[i] = before_column(mask[first + i]);
  for (int32_t row = 0; row < height; ++row) {
    const uint8_t* object = mask + int64_t(row) * width + first;
    int16_t* value = columns + int64_t(row) * width + first;
#pragma omp simd
    for (int32_t i = 0; i < count; ++i) {
      const int16_t next = step_in_column(object[i], last[i]);
      value[i] = last[i] = next;
    }
  }
  const int64_t bottom = int64_t(height - 1) * width + first;
  for (int32_t i = 0; i < count; ++i) last[i] = before_column(mask[bottom + i]);
  for (int32_t row = height - 1; row >= 0; --row) {
    const uint8_t* object = mask + int64_t(row) * width + first;
    int16_t* value = columns + int64_t(row) * width + first;
#pragma omp simd
    for (int32_t i = 0; i < count; ++i) {
      const int16_t next = step_in_column(object[i], last[i]);
      last[i] = next;
      value[i] = nearer_change(value[i], next);
    }
  }
}

// Vertices [first, last) of the grid along one axis.
struct VertexRange {
  int64_t first, last;
};

template <typename T>
class BlockCarver {
 public:
  BlockCarver(const HullViews<T>& views, const HullRules& rules, int64_t resolution, const T* axis, bool* occupied)
      : views_(views), rules_(rules), resolution_(resolution), axis_(axis), occupied_(occupied) {
    open_.reserve(size_t(views.views));
  }

  void carve(int64_t bx, int64_t by, int64_t bz) {
    const VertexRange x = vertices(bx), y = vertices(by), z = vertices(bz);
    const bool hopeless = !ask_views(x, y, z);
    for (int64_t i = x.first; i < x.last; ++i)
      for (int64_t j = y.first; j < y.last; ++j) {
        bool* row = occupied_ + (i * resolution_ + j) * resolution_;
        if (hopeless || open_.empty())
          std::memset(row + z.first, !hopeless && seen_ >= rules_.min_views, size_t(z.last - z.first));
        else
          for (int64_t k = z.first; k < z.last; ++k) row[k] = stays(axis_[i], axis_[j], axis_[k]);
      }
  }

 private:
  VertexRange vertices(int64_t block) const {
    const int64_t end = (block + 1) * kBlock;
    return {block * kBlock, end < resolution_ ? end : resolution_};
  }

  // Sets what the views say of all vertices together; false when too many miss them.
  bool ask_views(VertexRange x, VertexRange y, VertexRange z) {
    HullBlock<T> block;
    const VertexRange ranges[3] = {x, y, z};
    for (int k = 0; k < 3; ++k) {
      const T low = axis_[ranges[k].first], high = axis_[ranges[k].last - 1];
      block.c[k] = (low + high) / T(2);
      block.half[k] = (high - low) / T(2);
    }
    seen_ = misses_ = 0;
    open_.clear();
    for (int64_t i = 0; i < views_.views; ++i) {
      const HullView<T> view = views_[i];
      const HullVerdict verdict = judge_block(view, T(rules_.reach), block);
      if (verdict == HullVerdict::kOpen) open_.push_back(view);
      if (verdict == HullVerdict::kKept || verdict == HullVerdict::kMissed) ++seen_;
      if (verdict == HullVerdict::kMissed && ++misses_ > rules_.max_misses) return false;
    }
    return true;
  }

  bool stays(T x, T y, T z) {
    int64_t seen = seen_, misses = misses_;
    for (const HullView<T>& view : open_) {
      const HullVerdict verdict = judge_point(view, T(rules_.reach), x, y, z);
      seen += verdict != HullVerdict::kUnseen;
      if (verdict == HullVerdict::kMissed && ++misses > rules_.max_misses) return false;
    }
    return seen >= rules_.min_views;
  }

  const HullViews<T>& views_;
  const HullRules& rules_;
  const int64_t resolution_;
  const T* axis_;
  bool* occupied_;
  std::vector<HullView<T>> open_;  // views that have to be asked about each vertex of the block
  int64_t seen_ = 0, misses_ = 0;  // what the others said of all of them
};

}  // namespace

void visual_hull_columns(int64_t views, int32_t height, int32_t width, const bool* masks, int16_t* columns) {
  const int64_t strips = (width + kStrip - 1) / kStrip;
  parallel_for(0, views * strips, 1, [=](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t image = item / strips * height * width;
      const int32_t first = int32_t(item % strips) * kStrip;
      const int32_t count = width - first < kStrip ? width - first : kStrip;
      walk_columns(reinterpret_cast<const uint8_t*>(masks) + image, columns + image, height, width, first, count);
    }
  });
}

template <typename T>
void visual_hull(const HullViews<T>& views, const HullRules& rules, int64_t resolution, const T* axis, bool* occupied) {
  const int64_t blocks = (resolution + kBlock - 1) / kBlock;
  parallel_for(0, blocks * blocks, 1, [&, resolution, axis, occupied](int64_t first, int64_t last) {
    BlockCarver<T> carver(views, rules, resolution, axis, occupied);
    for (int64_t column = first; column < last; ++column)
      for (int64_t bz = 0; bz < blocks; ++bz) carver.carve(column / blocks, column % blocks, bz);
  });
}

template void visual_hull<float>(const HullViews<float>&, const HullRules&, int64_t, const float*, bool*);
template void visual_hull<double>(const HullViews<double>&, const HullRules&, int64_t, const double*, bool*);

}  // namespace nsr::cpu
