// Adam (Kingma and Ba 2015, algorithm 1) for tables of which a step touches few entries (Mueller et al. 2022, section
// 4): an entry whose gradient is exactly zero keeps its value and its moments; the bias correction counts all steps.
#pragma once

#include <cmath>
#include <cstdint>

#include "hd.h"

namespace nsr {

template <typename T>
struct AdamRates {
  T beta1, beta2, eps;
  T step_size;             // lr / (1 - beta1^step)
  T inverse_sqrt_correction2;  // 1 / sqrt(1 - beta2^step)
};

template <typename T>
AdamRates<T> make_adam_rates(int64_t step, double lr, double beta1, double beta2, double eps) {
  return {T(beta1), T(beta2), T(eps), T(lr / (1 - std::pow(beta1, double(step)))),
          T(1 / std::sqrt(1 - std::pow(beta2, double(step))))};
}

// Without a branch, so that the loop over entries vectorises. A NaN gradient counts as touched: it must not hide.
template <typename T>
NSR_HD void adam_entry(const AdamRates<T>& rates, T gradient, T& value, T& mean, T& square) {
  const T new_mean = rates.beta1 * mean + (T(1) - rates.beta1) * gradient;
  const T new_square = rates.beta2 * square + (T(1) - rates.beta2) * gradient * gradient;
  const T root = std::sqrt(new_square) * rates.inverse_sqrt_correction2;
  const T new_value = value - rates.step_size * new_mean / (root + rates.eps);
  const bool touched = gradient != T(0);
  value = touched ? new_value : value;
  mean = touched ? new_mean : mean;
  square = touched ? new_square : square;
}

}  // namespace nsr
