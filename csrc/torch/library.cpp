// Schemas of every op, and what this library was built with. Derivatives and fake kernels are attached in nsr/ops/*.py.
#include <torch/library.h>
#include <torch/version.h>

#include <sstream>
#include <string>

#ifndef NSR_BUILD_FLAGS
#define NSR_BUILD_FLAGS "unknown"
#endif

namespace {

// One "key=value" per line.
std::string build_info() {
  std::ostringstream info;
  info << "torch=" << TORCH_VERSION << "\n";
#if defined(__clang__)
  info << "compiler=clang " << __clang_version__ << "\n";
#elif defined(__GNUC__)
  info << "compiler=gcc " << __VERSION__ << "\n";
#else
  info << "compiler=unknown\n";
#endif
  info << "flags=" << NSR_BUILD_FLAGS << "\n";
#ifdef NSR_WITH_CUDA
  info << "cuda=" << NSR_CUDA_VERSION << "\n";
#else
  info << "cuda=no\n";
#endif
  return info.str();
}

}  // namespace

#define NSR_TABLE "Tensor table, int[] resolutions, int[] offsets, bool smoothstep, float extent, int active_levels"
#define NSR_GRID "Tensor x, " NSR_TABLE
#define NSR_COLOR_NETWORK NSR_TABLE ", Tensor parameters, int[] widths, int view_degree"
#define NSR_NETWORK \
  NSR_TABLE ", Tensor parameters, int[] widths, int activation, Tensor? bank, int bank_width, "\
            "bool bank_modulated, float bank_omega"

TORCH_LIBRARY(nsr, m) {
  m.def("build_info() -> str", &build_info);

  m.def("adam_touched_(Tensor(a!) value, Tensor grad, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, "
        "Tensor step, Tensor lr, float beta1, float beta2, float eps, Tensor? skip) -> ()");

  m.def("sphere_trace_start(Tensor origins, Tensor directions, float radius, Tensor? seek_minimum) -> "
        "(Tensor, Tensor)");
  m.def("sphere_trace_march_(Tensor(a!) state, Tensor(b!) flags, Tensor items, Tensor? values, Tensor origins, "
        "Tensor directions, int max_iterations, int line_search_steps, float threshold, float relaxation, "
        "float min_step) -> (Tensor, Tensor)");
  m.def("sphere_trace_secant_(Tensor(a!) brackets, Tensor rows, Tensor? values, Tensor origins, Tensor directions) -> "
        "(Tensor, Tensor)");
  m.def("sphere_trace_scan(Tensor values, Tensor orientation) -> (Tensor, Tensor)");

  m.def("hash_grid(" NSR_GRID ") -> Tensor");
  m.def("hash_grid_bwd(Tensor grad_h, " NSR_GRID ", bool need_x, bool need_table) -> (Tensor, Tensor)");
  m.def("hash_grid_bwd_bwd(Tensor? grad_grad_x, Tensor? grad_grad_table, Tensor grad_h, " NSR_GRID
        ") -> (Tensor, Tensor, Tensor)");
  m.def("hash_grid_jac(" NSR_GRID ") -> (Tensor, Tensor)");
  m.def("hash_grid_jac_bwd(Tensor? grad_h, Tensor? grad_jacobian, " NSR_GRID
        ", bool need_x, bool need_table) -> (Tensor, Tensor)");

  m.def("patch_ncc(Tensor x, Tensor normal, Tensor pixels, Tensor view, Tensor sources, Tensor images, "
        "Tensor ray_matrices, Tensor projections, Tensor centers, int patch, float variance_floor, float min_std, "
        "bool keep) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("patch_ncc_bwd(Tensor grad_ncc, Tensor x, Tensor normal, Tensor jacobian_x, Tensor jacobian_normal) -> "
        "(Tensor, Tensor)");

  m.def("visual_hull(Tensor masks, Tensor projections, Tensor focals, Tensor axis, float reach, int min_views, "
        "int max_misses) -> Tensor");

  m.def("sdf_network(Tensor x, " NSR_NETWORK ") -> Tensor");
  m.def("sdf_and_normal(Tensor x, " NSR_NETWORK ", bool keep) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("sdf_and_normal_bwd(Tensor? grad_sdf, Tensor? grad_feature, Tensor? grad_gradient, Tensor kept, "
        "Tensor x, " NSR_NETWORK ", bool need_x, bool need_table, bool need_parameters, bool need_bank) -> "
        "(Tensor, Tensor, Tensor, Tensor)");
  m.def("color_network(Tensor points, Tensor? normals, Tensor? view_dirs, Tensor features, " NSR_COLOR_NETWORK
        ", bool keep) -> (Tensor, Tensor)");
  m.def("color_network_bwd(Tensor grad_rgb, Tensor kept, Tensor points, Tensor? normals, Tensor? view_dirs, "
        "Tensor features, " NSR_COLOR_NETWORK ", bool[6] needs) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("trace_sdf_network(Tensor origins, Tensor directions, Tensor? object_mask, " NSR_NETWORK
        ", float radius, int max_iterations, int line_search_steps, float threshold, float relaxation, float min_step, "
        "bool both_ends, int sampler_steps, int secant_steps, int min_sdf_samples) -> (Tensor, Tensor, Tensor)");
}
