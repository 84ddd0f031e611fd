// Photometric consistency on the GPU, with the maths of kernels/patch_ncc.h: a warp per pair of point and source view, the
// samples of the patch in its lanes. The sums take the same order in every run, so the results are deterministic.
#include "../kernels/launch.h"
#include "launch.cuh"

namespace nsr::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kSamplesPerLane = (kMaxPatch * kMaxPatch + kWarp - 1) / kWarp;

template <typename T>
__device__ T sum_over_warp(T value) {
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAllLanes, value, step);
  return value;
}

// The part of a patch in one lane: samples lane, lane + 32, ... What lies beyond the patch is 0.
template <typename T>
struct LaneSamples {
  T reference[kSamplesPerLane], source[kSamplesPerLane];  // values, and after centre_values() without their mean
  T slide[kSamplesPerLane];                               // s_j of the header
  T ta[kSamplesPerLane], tb[kSamplesPerLane];
};

template <typename T>
__device__ PixelValue<T> read_image(const T* image, int32_t width, int32_t height, T u, T v) {
  const PixelCell<T> cell = locate_in_image(u, v, width, height);
  const T* pixel = image + cell.first;
  return interpolate_pixels(pixel[0], pixel[1], pixel[width], pixel[width + 1], cell.fu, cell.fv);
}

// False when a sample of this lane makes the pair invalid; values may be NaN.
template <typename T>
__device__ bool sample_patches(const PatchImages<T>& images, const TangentPlane<T>& plane, const PlaneInSource<T>& source,
                               const T* reference_image, const T* source_image, const T* pixel, int patch, int lane,
                               LaneSamples<T>& samples) {
  bool good = true;
#pragma unroll
  for (int i = 0; i < kSamplesPerLane; ++i) {
    const int j = lane + i * kWarp;
    samples.reference[i] = samples.source[i] = samples.slide[i] = samples.ta[i] = samples.tb[i] = T(0);
    if (j >= patch * patch) continue;
    const T a = T(j % patch - patch / 2), b = T(j / patch - patch / 2);
    const T u = pixel[0] + a, v = pixel[1] + b;
    const PatchRay<T> ray = ray_of_sample(plane, a, b);
    const PatchSample<T> sample = sample_in_source(source, ray, a, b);
    good = good && ray.meets && sample.ahead && inside_image(u, v, images.width, images.height) &&
           inside_image(sample.u, sample.v, images.width, images.height);
    const PixelValue<T> seen = read_image(source_image, images.width, images.height, sample.u, sample.v);
    samples.reference[i] = read_image(reference_image, images.width, images.height, u, v).value;
    samples.source[i] = seen.value;
    samples.slide[i] = seen.du * sample.du + seen.dv * sample.dv;
    samples.ta[i] = ray.ta;
    samples.tb[i] = ray.tb;
  }
  return good;
}

// Takes the patch's mean off the values, and returns the sum of squares: NaN when a value is NaN.
template <typename T>
__device__ T centre_values(T (&values)[kSamplesPerLane], int count, int lane) {
  T sum = 0, squares = 0;
#pragma unroll
  for (int i = 0; i < kSamplesPerLane; ++i) sum += values[i];
  const T mean = sum_over_warp(sum) / T(count);
#pragma unroll
  for (int i = 0; i < kSamplesPerLane; ++i) {
    values[i] = lane + i * kWarp < count ? values[i] - mean : T(0);
    squares += values[i] * values[i];
  }
  return sum_over_warp(squares);
}

template <typename T>
__device__ void differentiate(const Ncc<T>& ncc, const LaneSamples<T>& samples, const TangentPlane<T>& plane, int lane,
                              T* grad_x, T* grad_normal) {
  T sum = 0, sum_ta = 0, sum_tb = 0;
#pragma unroll
  for (int i = 0; i < kSamplesPerLane; ++i) {
    const T slope = ncc.of_reference * samples.reference[i] + ncc.of_source * samples.source[i];
    const T moved = slope * samples.slide[i];
    sum += moved;
    sum_ta += moved * samples.ta[i];
    sum_tb += moved * samples.tb[i];
  }
  sum = sum_over_warp(sum);
  sum_ta = sum_over_warp(sum_ta);
  sum_tb = sum_over_warp(sum_tb);
  if (lane == 0) ncc_gradient(plane, sum, sum_ta, sum_tb, grad_x, grad_normal);
}

template <typename T>
__global__ void patch_ncc_kernel(PatchImages<T> images, PatchOptions options, int64_t pairs, int64_t sources, const T* x,
                                 const T* normal, const T* pixels, const int64_t* view, const int64_t* source, T* ncc,
                                 bool* valid, T* jacobian_x, T* jacobian_normal) {
  const int64_t pair = thread_index() / kWarp;  // the same in all lanes, and so is every early return
  const int lane = int(threadIdx.x) % kWarp;
  if (pair >= pairs) return;
  if (lane == 0) {
    ncc[pair] = T(0);
    valid[pair] = false;
  }
  if (jacobian_x && lane < 3) jacobian_x[3 * pair + lane] = jacobian_normal[3 * pair + lane] = T(0);
  __syncwarp();

  const int64_t i = pair / sources, r = view[i], s = source[pair];
  if (!images.has(r) || !images.has(s)) return;
  const T* pixel = pixels + 2 * i;
  const TangentPlane<T> plane =
      plane_of_point(x + 3 * i, normal + 3 * i, pixel, images.ray_matrices + 9 * r, images.centers + 3 * r);
  const PlaneInSource<T> in_source = plane_in_source(plane, images.projections + 9 * s, images.centers + 3 * s);
  if (!plane.visible() || !in_source.faces) return;

  LaneSamples<T> samples;
  const bool good = sample_patches(images, plane, in_source, images.image(r), images.image(s), pixel, options.patch, lane,
                                   samples);
  if (!__all_sync(kAllLanes, good)) return;
  const int count = options.patch * options.patch;
  const T reference_squares = centre_values(samples.reference, count, lane);
  const T source_squares = centre_values(samples.source, count, lane);
  const T least = T(count) * T(options.min_std * options.min_std);
  if (!(reference_squares >= least) || !(source_squares >= T(0))) return;  // NaN too

  T mixed = 0;
#pragma unroll
  for (int k = 0; k < kSamplesPerLane; ++k) mixed += samples.reference[k] * samples.source[k];
  const Ncc<T> result =
      ncc_of_moments(reference_squares, source_squares, sum_over_warp(mixed), count, options.variance_floor);
  if (lane == 0) {
    ncc[pair] = result.value;
    valid[pair] = true;
  }
  if (jacobian_x) differentiate(result, samples, plane, lane, jacobian_x + 3 * pair, jacobian_normal + 3 * pair);
}

}  // namespace

template <typename T>
void patch_ncc(void* stream, const PatchImages<T>& images, const PatchOptions& options, int64_t n, int64_t sources,
               const T* x, const T* normal, const T* pixels, const int64_t* view, const int64_t* source, T* ncc,
               bool* valid, T* jacobian_x, T* jacobian_normal) {
  const int64_t pairs = n * sources;
  launch_items(stream, pairs * kWarp, patch_ncc_kernel<T>, images, options, pairs, sources, x, normal, pixels, view,
                  source, ncc, valid, jacobian_x, jacobian_normal);
}

#define NSR_INSTANTIATE(T)                                                                                            \
  template void patch_ncc<T>(void*, const PatchImages<T>&, const PatchOptions&, int64_t, int64_t, const T*, const T*, \
                             const T*, const int64_t*, const int64_t*, T*, bool*, T*, T*);
NSR_INSTANTIATE(float)
NSR_INSTANTIATE(double)
#undef NSR_INSTANTIATE

}  // namespace nsr::cuda
