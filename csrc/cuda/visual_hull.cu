// Visual hull on the GPU: a thread per column of an image, then a thread per vertex that asks all views.
#include "../kernels/launch.h"
#include "launch.cuh"

namespace nsr::cuda {
namespace {

__global__ void columns_kernel(int64_t image_columns, int32_t height, int32_t width, const bool* masks,
                               int16_t* columns) {
  const int64_t i = thread_index();
  if (i >= image_columns) return;
  const int64_t first = i / width * height * width + i % width;
  int16_t last = before_column(masks[first]);
  for (int32_t row = 0; row < height; ++row) {
    const int64_t pixel = first + int64_t(row) * width;
    columns[pixel] = last = step_in_column(masks[pixel], last);
  }
  last = before_column(masks[first + int64_t(height - 1) * width]);
  for (int32_t row = height - 1; row >= 0; --row) {
    const int64_t pixel = first + int64_t(row) * width;
    last = step_in_column(masks[pixel], last);
    columns[pixel] = nearer_change(columns[pixel], last);
  }
}

template <typename T>
__global__ void visual_hull_kernel(HullViews<T> views, HullRules rules, int64_t resolution, const T* axis,
                                   bool* occupied) {
  const int64_t i = thread_index();
  if (i >= resolution * resolution * resolution) return;
  const T x = axis[i / (resolution * resolution)], y = axis[i / resolution % resolution], z = axis[i % resolution];
  int64_t seen = 0, misses = 0;
  for (int64_t view = 0; view < views.views && misses <= rules.max_misses; ++view) {
    const HullVerdict verdict = judge_point(views[view], T(rules.reach), x, y, z);
    seen += verdict != HullVerdict::kUnseen;
    misses += verdict == HullVerdict::kMissed;
  }
  occupied[i] = misses <= rules.max_misses && seen >= rules.min_views;
}

}  // namespace

void visual_hull_columns(void* stream, int64_t views, int32_t height, int32_t width, const bool* masks,
                         int16_t* columns) {
  launch_items(stream, views * width, columns_kernel, views * width, height, width, masks, columns);
}

template <typename T>
void visual_hull(void* stream, const HullViews<T>& views, const HullRules& rules, int64_t resolution, const T* axis,
                 bool* occupied) {
  launch_items(stream, resolution * resolution * resolution, visual_hull_kernel<T>, views, rules, resolution, axis,
                  occupied);
}

template void visual_hull<float>(void*, const HullViews<float>&, const HullRules&, int64_t, const float*, bool*);
template void visual_hull<double>(void*, const HullViews<double>&, const HullRules&, int64_t, const double*, bool*);

}  // namespace nsr::cuda
