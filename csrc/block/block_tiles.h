// What the block engine adds for rows that pass in tiles (block/tiled_unroll.h): loading one, and
// sums over tiles, of which every block of a cluster has its own.
#pragma once

#include "block/block_first_layer.h"

namespace innerloop {

template <class BlockType, class RealType>
class BlockTiles : public BlockFirstLayer<BlockType, RealType> {
 public:
  using Base = BlockFirstLayer<BlockType, RealType>;
  using Base::Base;
  using typename Base::BiasRef;
  using typename Base::Elem;
  using typename Base::Numbers;
  using typename Base::Out;
  using typename Base::PerTask;
  using typename Base::Real;
  using typename Base::WeightRef;

  IL_HD int64_t tile_rows() const { return options_.tile_rows; }
  IL_HD int rank() const { return block_.rank(); }
  IL_HD int ranks() const { return options_.cluster; }

  /// Which of the two sums the tiles add to.
  IL_HD int sum_turn() const { return turn_; }
  IL_CALL void turn_sums() {
    block_.once([&] { turn_ = 1 - turn_; });
  }
  /// The end of the tiles: from here on totals may be read.
  IL_HD void meet() const {
    if constexpr (Base::kCluster) block_.cluster_barrier();
  }

  IL_CALL void clear_numbers(Elem* to, int64_t count) const {
    block_.spread(1, extent(count), [&](int, int i) { to[i] = Real(0); });
    block_.barrier();
  }
  IL_CALL void add_per_task(PerTask* to, const PerTask* from) const {
    block_.spread(1, used_, [&](int, int t) { to[t] = to[t] + from[t]; });
    block_.barrier();
  }
  IL_CALL void total_per_task(PerTask* to, const PerTask* sums) const {
    block_.spread(1, used_, [&](int, int t) { to[t] = total(sums + t); });
    block_.barrier();
  }
  /// to = from + sign * rate * total of sums; from may be absent.
  IL_CALL void move_weight(const Out& to, const WeightRef& from, const LayerPlan& p,
                           const Out& sums, const PerTask* rate, Real sign) const {
    move(to, {from.own, from.shared}, from.task_stride, from.ld, p.out, p.in, sums, rate, sign);
  }
  IL_CALL void move_bias(const Out& to, const BiasRef& from, const LayerPlan& p, const Out& sums,
                         const PerTask* rate, Real sign) const {
    move(to, Base::numbers(from), from.task_stride, 0, 1, p.out, sums, rate, sign);
  }

 protected:
  using Base::block_;
  using Base::extent;
  using Base::options_;
  using Base::used_;

 private:
  /// Over the blocks of a cluster, in the order of their ranks.
  IL_HD Real total(const Elem* sum) const {
    if constexpr (Base::kCluster) {
      Real all = 0;
      for (int rank = 0; rank < options_.cluster; ++rank) all += *block_.peer(sum, rank);
      return all;
    } else {
      return *sum;
    }
  }
  IL_HD void move(const Out& to, const Numbers& from, int64_t from_task, int64_t from_ld,
                  int64_t rows, int64_t cols, const Out& sums, const PerTask* rate,
                  Real sign) const {
    for (int t = 0; t < used_; ++t) {
      block_.spread(extent(rows), extent(cols), [&](int i, int j) {
        const Real step =
            sign * Base::factor(rate, t) * total(sums.p + t * sums.task_stride + i * sums.ld + j);
        to.p[t * to.task_stride + i * to.ld + j] =
            from ? from.at(t * from_task + i * from_ld + j) + step : step;
      });
    }
    block_.barrier();
  }

  int turn_ = 0;
};

}  // namespace innerloop
