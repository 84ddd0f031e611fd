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

// One step of all entries. What changes from step to step is read where the tensors are: a recorded CUDA graph repeats the
// arguments of a launch, not what they point to.
struct AdamStep {
  const double* number;  // of this step, from 1
  const double* lr;
  double beta1, beta2, eps;
  const float* skip;  // null, or: not zero where nothing is to change
};

NSR_HD bool is_skipped(const AdamStep& step) { return step.skip != nullptr && *step.skip != 0.0f; }

template <typename T>
NSR_HD AdamRates<T> adam_rates(const AdamStep& step) {
  return {T(step.beta1), T(step.beta2), T(step.eps), T(*step.lr / (1 - std::pow(step.beta1, *step.number))),
          T(1 / std::sqrt(1 - std::pow(step.beta2, *step.number)))};
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
