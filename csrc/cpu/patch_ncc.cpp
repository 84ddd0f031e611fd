// Photometric consistency on the CPU: points in parallel, the samples of a patch in SIMD lanes, with the maths of
// kernels/patch_ncc.h. A point's reference patch is read once for all its sources.
#include "../kernels/launch.h"
#include "parallel.h"

namespace nsr::cpu {
namespace {

constexpr int64_t kGrain = 32;  // points per thread below which another thread does not pay
constexpr int kSimd = 8;        // samples are padded to a multiple
constexpr int kMaxSamples = (kMaxPatch * kMaxPatch + kSimd - 1) / kSimd * kSimd;

template <typename T>
using Lanes = T[kMaxSamples];

// The offsets of the samples from the patch's centre; weight is 1, and 0 for the padding, which repeats the centre.
template <typename T>
struct PatchGrid {
  alignas(64) Lanes<T> a, b, weight;
  int count, padded;

  explicit PatchGrid(int patch) : count(patch * patch), padded((count + kSimd - 1) / kSimd * kSimd) {
    for (int j = 0; j < padded; ++j) {
      a[j] = j < count ? T(j % patch - patch / 2) : T(0);
      b[j] = j < count ? T(j / patch - patch / 2) : T(0);
      weight[j] = T(j < count);
    }
  }
};

// Values of an image at places in it, and their derivatives where they are asked for.
template <typename T>
struct PatchValues {
  alignas(64) Lanes<T> value, du, dv;

  template <bool kDerivatives>
  void read(const PatchGrid<T>& grid, const T* image, int32_t width, int32_t height, const T* u, const T* v) {
    alignas(64) Lanes<int32_t> first;
    alignas(64) Lanes<T> fu, fv, v00, v10, v01, v11;
#pragma GCC ivdep
    for (int j = 0; j < grid.padded; ++j) {
      const PixelCell<T> cell = locate_in_image(u[j], v[j], width, height);
      first[j] = cell.first;
      fu[j] = cell.fu;
      fv[j] = cell.fv;
    }
    for (int j = 0; j < grid.padded; ++j) {
      const T* pixel = image + first[j];
      v00[j] = pixel[0];
      v10[j] = pixel[1];
      v01[j] = pixel[width];
      v11[j] = pixel[width + 1];
    }
#pragma GCC ivdep
    for (int j = 0; j < grid.padded; ++j) {
      const PixelValue<T> at = interpolate_pixels(v00[j], v10[j], v01[j], v11[j], fu[j], fv[j]);
      value[j] = at.value;
      if constexpr (kDerivatives) {
        du[j] = at.du;
        dv[j] = at.dv;
      }
    }
  }

  // Takes the mean off the values, sets the padding to 0, and returns the sum of squares: NaN when a value is NaN.
  T centre(const PatchGrid<T>& grid) {
    T sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int j = 0; j < grid.padded; ++j) sum += value[j] * grid.weight[j];
    const T mean = sum / T(grid.count);
#pragma omp simd reduction(+ : squares)
    for (int j = 0; j < grid.padded; ++j) {
      value[j] = (value[j] - mean) * grid.weight[j];
      squares += value[j] * value[j];
    }
    return squares;
  }
};

// One point in its reference view: what its sources have in common.
template <typename T>
class ReferencePatch {
 public:
  ReferencePatch(const PatchGrid<T>& grid, const PatchImages<T>& images, const PatchOptions& options)
      : grid_(grid), images_(images), options_(options) {}

  // False: nothing to compare, whatever the source.
  bool set(const T* x, const T* normal, const T* pixel, int64_t view) {
    if (!images_.has(view)) return false;
    plane_ = plane_of_point(x, normal, pixel, images_.ray_matrices + 9 * view, images_.centers + 3 * view);
    if (!plane_.visible()) return false;
    alignas(64) Lanes<T> u, v;
    int good = 1;
#pragma GCC ivdep
    for (int j = 0; j < grid_.padded; ++j) {
      const PatchRay<T> ray = ray_of_sample(plane_, grid_.a[j], grid_.b[j]);
      inverse_slope_[j] = ray.inverse_slope;
      ta_[j] = ray.ta;
      tb_[j] = ray.tb;
      u[j] = pixel[0] + grid_.a[j];
      v[j] = pixel[1] + grid_.b[j];
      good &= int(ray.meets) & int(inside_image(u[j], v[j], images_.width, images_.height));
    }
    if (!good) return false;
    values_.template read<false>(grid_, images_.image(view), images_.width, images_.height, u, v);
    squares_ = values_.centre(grid_);
    return squares_ >= T(grid_.count) * T(options_.min_std * options_.min_std);  // false for NaN
  }

  // False: nothing to compare. Gradients, where asked for: 3 of x, 3 of the normal.
  template <bool kDerivatives>
  bool compare(int64_t view, T* ncc, T* grad_x, T* grad_normal) const {
    if (!images_.has(view)) return false;
    const PlaneInSource<T> source =
        plane_in_source(plane_, images_.projections + 9 * view, images_.centers + 3 * view);
    alignas(64) Lanes<T> u, v, du, dv;
    if (!source.faces || !project<kDerivatives>(source, u, v, du, dv)) return false;
    PatchValues<T> values;
    values.template read<kDerivatives>(grid_, images_.image(view), images_.width, images_.height, u, v);
    const T squares = values.centre(grid_);
    if (!(squares >= T(0))) return false;
    T mixed = 0;
#pragma omp simd reduction(+ : mixed)
    for (int j = 0; j < grid_.padded; ++j) mixed += values_.value[j] * values.value[j];
    const Ncc<T> result = ncc_of_moments(squares_, squares, mixed, grid_.count, options_.variance_floor);
    *ncc = result.value;
    if constexpr (kDerivatives) differentiate(result, values, du, dv, grad_x, grad_normal);
    return true;
  }

 private:
  template <bool kDerivatives>
  bool project(const PlaneInSource<T>& source, T* u, T* v, T* du, T* dv) const {
    int good = 1;
#pragma GCC ivdep
    for (int j = 0; j < grid_.padded; ++j) {
      const PatchRay<T> ray{inverse_slope_[j], ta_[j], tb_[j], true};
      const PatchSample<T> sample = sample_in_source(source, ray, grid_.a[j], grid_.b[j]);
      u[j] = sample.u;
      v[j] = sample.v;
      if constexpr (kDerivatives) {
        du[j] = sample.du;
        dv[j] = sample.dv;
      }
      good &= int(sample.ahead) & int(inside_image(sample.u, sample.v, images_.width, images_.height));
    }
    return good;
  }

  void differentiate(const Ncc<T>& ncc, const PatchValues<T>& values, const T* du, const T* dv, T* grad_x,
                     T* grad_normal) const {
    T sum = 0, sum_ta = 0, sum_tb = 0;
#pragma omp simd reduction(+ : sum, sum_ta, sum_tb)
    for (int j = 0; j < grid_.padded; ++j) {
      const T slope = ncc.of_reference * values_.value[j] + ncc.of_source * values.value[j];  // 0 in the padding
      const T moved = slope * (values.du[j] * du[j] + values.dv[j] * dv[j]);
      sum += moved;
      sum_ta += moved * ta_[j];
      sum_tb += moved * tb_[j];
    }
    ncc_gradient(plane_, sum, sum_ta, sum_tb, grad_x, grad_normal);
  }

  const PatchGrid<T>& grid_;
  const PatchImages<T>& images_;
  const PatchOptions& options_;
  TangentPlane<T> plane_{};
  alignas(64) Lanes<T> inverse_slope_, ta_, tb_;
  PatchValues<T> values_;
  T squares_ = 0;
};

}  // namespace

template <typename T>
void patch_ncc(const PatchImages<T>& images, const PatchOptions& options, int64_t n, int64_t sources, const T* x,
               const T* normal, const T* pixels, const int64_t* view, const int64_t* source, T* ncc, bool* valid,
               T* jacobian_x, T* jacobian_normal) {
  const PatchGrid<T> grid(options.patch);
  parallel_for(0, n, kGrain, [=, &images, &options, &grid](int64_t first, int64_t last) {
    ReferencePatch<T> patch(grid, images, options);
    for (int64_t i = first; i < last; ++i) {
      const bool comparable = patch.set(x + 3 * i, normal + 3 * i, pixels + 2 * i, view[i]);
      for (int64_t at = i * sources; at < (i + 1) * sources; ++at) {
        T gradient[6] = {};
        ncc[at] = T(0);
        valid[at] = comparable && (jacobian_x ? patch.template compare<true>(source[at], ncc + at, gradient, gradient + 3)
                                              : patch.template compare<false>(source[at], ncc + at, nullptr, nullptr));
        for (int d = 0; jacobian_x && d < 3; ++d) {
          jacobian_x[3 * at + d] = gradient[d];
          jacobian_normal[3 * at + d] = gradient[3 + d];
        }
      }
    }
  });
}

#define NSR_INSTANTIATE(T)                                                                                            \
  template void patch_ncc<T>(const PatchImages<T>&, const PatchOptions&, int64_t, int64_t, const T*, const T*,        \
                             const T*, const int64_t*, const int64_t*, T*, bool*, T*, T*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cpu
