// The gradients of dense layers on the CPU: sums over points.
//
// Chunks of points, whose size does not depend on the number of threads, are summed separately and then in their order,
// so results are bit-identical for any number of threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

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

// The sums of every chunk: weights with padded columns, then biases, layer by layer.
template <typename T>
class LayerSums {
 public:
  // tiles: 0 where no gradient of a layer is wanted.
  LayerSums(const DenseLayers<T>& layers, int64_t tiles) : layers_(layers), per_chunk_(tiles_per_chunk(tiles)) {
    for (int l = 0; l < layers.layers; ++l) {
      weight_[l] = size_;
      bias_[l] = size_ + int64_t(layers.width(l)) * padded_columns<T>(layers.used_inputs(l));
      size_ = bias_[l] + padded_columns<T>(layers.width(l));
    }
    chunks_ = (tiles + per_chunk_ - 1) / per_chunk_;
    sums_.resize(size_t(chunks_ * size_));
  }

  const DenseLayers<T>& layers() const { return layers_; }
  int64_t weight(int l) const { return weight_[l]; }
  int64_t bias(int l) const { return bias_[l]; }
  // Where the chunk of this tile has its sums, or null where no gradient is wanted.
  T* of_tile(int64_t tile) { return chunks_ ? sums_.data() + tile / per_chunk_ * size_ : nullptr; }

  // Adds the chunks up in their order and writes the gradients; columns that are not used get zero.
  void write(const LayerGradients<T>& to) {
    sums_.resize(size_t(std::max<int64_t>(chunks_, 1) * size_));
    for (int64_t chunk = 1; chunk < chunks_; ++chunk) {
      const T* const part = sums_.data() + chunk * size_;
#pragma GCC ivdep
      for (int64_t k = 0; k < size_; ++k) sums_[k] += part[k];
    }
    for (int l = 0; l < layers_.layers; ++l) {
      const int inputs = layers_.layer[l].inputs, used = layers_.used_inputs(l), width = padded_columns<T>(used);
      for (int r = 0; r < layers_.width(l); ++r) {
        T* const row = to.weight[l] + int64_t(r) * inputs;
        std::copy_n(sums_.data() + weight_[l] + int64_t(r) * width, used, row);
        std::fill(row + used, row + inputs, T(0));
      }
      std::copy_n(sums_.data() + bias_[l], layers_.width(l), to.bias[l]);
    }
  }

 private:
  const DenseLayers<T>& layers_;
  int64_t per_chunk_, chunks_ = 0, size_ = 0;
  int64_t weight_[kMaxDenseLayers], bias_[kMaxDenseLayers];
  std::vector<T> sums_;
};

// What one thread adds to the sums, tile after tile; nothing where no gradient of a layer is wanted.
template <typename T>
class TileSums {
 public:
  explicit TileSums(LayerSums<T>& sums) : sums_(sums) {
    int widest = 0;
    for (int l = 0; l < sums.layers().layers; ++l) widest = std::max(widest, sums.layers().used_inputs(l));
    transposed_.resize(size_t(kLanes) * padded_columns<T>(widest));
  }

  void enter(int64_t tile) { totals_ = sums_.of_tile(tile); }

  // The weight of layer l: left [outputs] right^T, right [used inputs].
  void add_weight(int l, const Row<T>* left, const Row<T>* right) {
    if (!totals_) return;
    const int inputs = sums_.layers().used_inputs(l);
    transpose(inputs, right, transposed_.data());
    accumulate_outer(sums_.layers().width(l), inputs, left, transposed_.data(), totals_ + sums_.weight(l));
  }

  // The first row of the weight of layer l.
  void add_first_row(int l, const Row<T>* in) {
    if (totals_) accumulate_sum(sums_.layers().used_inputs(l), in, totals_ + sums_.weight(l));
  }

  void add_bias(int l, const Row<T>* in) {
    if (totals_) accumulate_sum(sums_.layers().width(l), in, totals_ + sums_.bias(l));
  }

 private:
  LayerSums<T>& sums_;
  T* totals_ = nullptr;
  std::vector<T> transposed_;
};

}  // namespace nsr::cpu
