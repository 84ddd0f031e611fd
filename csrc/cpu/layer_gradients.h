// The gradients of dense layers on the CPU: sums over points.
//
// Chunks of points, whose size does not depend on the number of threads, are summed separately and then in their order,
// so results are bit-identical for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>
#include <vector>

#include "../kernels/dense_layers.h"
#include "dense_tile.h"
#include "parallel.h"

namespace nsr::cpu {

constexpr int64_t kChunkTiles = 8;  // at least, per chunk of points
constexpr int64_t kMaxChunks = 64;  // bounds the memory of their sums

inline int64_t tiles_per_chunk(int64_t tiles) {
  return std::max(kChunkTiles, (tiles + kMaxChunks - 1) / kMaxChunks);
}

// Calls fn(first tile, last tile) on disjoint runs of whole chunks that cover [0, tiles), in parallel.
template <typename Fn>
void for_runs_of_chunks(int64_t tiles, const Fn& fn) {
  const int64_t size = tiles_per_chunk(tiles), chunks = (tiles + size - 1) / size;
  parallel_for(0, chunks, 1,
               [&](int64_t first, int64_t last) { fn(first * size, std::min(last * size, tiles)); });
}

// Of a layer whose gradient is summed: weight [outputs, inputs], of which the first `used` columns get anything.
struct SummedLayer {
  int outputs, inputs, used;
};

template <typename T>
std::vector<SummedLayer> summed_layers(const DenseLayers<T>& layers) {
  std::vector<SummedLayer> summed;
  for (int l = 0; l < layers.layers; ++l)
    summed.push_back({layers.width(l), layers.layer[l].inputs, layers.used_inputs(l)});
  return summed;
}

// The sums of every chunk: weights with padded columns, then biases, layer by layer.
template <typename T>
class LayerSums {
 public:
  // tiles: 0 where no gradient of a layer is wanted.
  LayerSums(std::vector<SummedLayer> layers, int64_t tiles)
      : layers_(std::move(layers)), per_chunk_(tiles_per_chunk(tiles)) {
    for (const SummedLayer& layer : layers_) {
      weight_.push_back(size_);
      bias_.push_back(size_ + int64_t(layer.outputs) * padded_columns<T>(layer.used));
      size_ = bias_.back() + padded_columns<T>(layer.outputs);
    }
    chunks_ = (tiles + per_chunk_ - 1) / per_chunk_;
    sums_.resize(size_t(chunks_ * size_));
  }

  int layers() const { return int(layers_.size()); }
  const SummedLayer& layer(int l) const { return layers_[l]; }
  int64_t weight(int l) const { return weight_[l]; }
  int64_t bias(int l) const { return bias_[l]; }
  // Where the chunk of this tile has its sums, or null where no gradient is wanted.
  T* of_tile(int64_t tile) { return chunks_ ? sums_.data() + tile / per_chunk_ * size_ : nullptr; }

  // Adds the chunks up in their order, for write().
  void add_chunks() {
    sums_.resize(size_t(std::max<int64_t>(chunks_, 1) * size_));
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      const T* const part = sums_.data() + chunk * size_;
#pragma GCC ivdep
      for (int64_t k = 0; k < size_; ++k) sums_[k] += part[k];
    }
  }

  // The gradients of a layer; columns that are not used get zero. bias: null where it has none.
  void write(int l, T* weight, T* bias) const {
    const auto [outputs, inputs, used] = layers_[l];
    for (int r = 0; r < outputs; ++r) {
      T* const row = weight + int64_t(r) * inputs;
      std::copy_n(sums_.data() + weight_[l] + int64_t(r) * padded_columns<T>(used), used, row);
      std::fill(row + used, row + inputs, T(0));
    }
    if (bias) std::copy_n(sums_.data() + bias_[l], outputs, bias);
  }

 private:
  std::vector<SummedLayer> layers_;
  int64_t per_chunk_, chunks_ = 0, size_ = 0;
  std::vector<int64_t> weight_, bias_;
  std::vector<T> sums_;
};

// The gradients of the first `layers` layers of the sums, whose chunks have been added up.
template <typename T>
void write_layers(const LayerSums<T>& sums, int layers, const LayerGradients<T>& to) {
  for (int l = 0; l < layers; ++l) sums.write(l, to.weight[l], to.bias[l]);
}

// What one thread adds to the sums, tile after tile; nothing where no gradient of a layer is wanted.
template <typename T>
class TileSums {
 public:
  explicit TileSums(LayerSums<T>& sums) : sums_(sums) {
    int widest = 0;
    for (int l = 0; l < sums.layers(); ++l) widest = std::max(widest, sums.layer(l).used);
    transposed_.resize(size_t(kLanes) * padded_columns<T>(widest));
  }

  void enter(int64_t tile) { totals_ = sums_.of_tile(tile); }

  // The weight of layer l: left [outputs] right^T, right [used].
  void add_weight(int l, const Row<T>* left, const Row<T>* right) {
    if (!totals_) return;
    const auto [outputs, inputs, used] = sums_.layer(l);
    transpose(used, right, transposed_.data());
    accumulate_outer(outputs, used, left, transposed_.data(), totals_ + sums_.weight(l));
  }

  // The first row of the weight of layer l.
  void add_first_row(int l, const Row<T>* in) {
    if (totals_) accumulate_sum(sums_.layer(l).used, in, totals_ + sums_.weight(l));
  }

  void add_bias(int l, const Row<T>* in) {
    if (totals_) accumulate_sum(sums_.layer(l).outputs, in, totals_ + sums_.bias(l));
  }

 private:
  LayerSums<T>& sums_;
  T* totals_ = nullptr;
  std::vector<T> transposed_;
};

}  // namespace nsr::cpu
