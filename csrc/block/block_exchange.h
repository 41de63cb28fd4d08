// What the blocks of a cluster send each other. Each block keeps a part of every layer
// (core/plan.h, Split): of a layer split by outputs, rows of the weight and with them columns of
// every activation; of the last layer, split by inputs, columns of the weight that meet the block's
// columns of the last hidden layer. So
//   in W^T, split by outputs   needs the columns of all blocks in `in`: gathered
//   delta W                    is a sum over blocks of which each wants its own columns
//   in W^T, split by inputs    is a sum over blocks that each wants whole
// and everything else stays within a block, the last layer's activations and losses in every block
// alike.
//
// An exchange: each block writes its share to one of two buffers in its shared memory, the cluster
// meets at its barrier, each block reads what it needs from the others' buffers. Exchanges take the
// buffers in turn, so one barrier is enough: who writes to a buffer again has passed a barrier that
// all reached after reading it.
#pragma once

#include "block/block_base.h"

namespace innerloop {

template <class BlockType, class RealType>
class BlockExchange : public BlockBase<BlockType, RealType> {
 public:
  using Base = BlockBase<BlockType, RealType>;
  using Base::Base;
  using typename Base::Elem;
  using typename Base::R;
  using typename Base::Real;
  using typename Base::WeightRef;

  IL_HD void carve(Carver<Elem>& c) {
    for (Elem*& buffer : buffers_) buffer = c.take(options_.exchange_size);
  }

 protected:
  using Base::block_;
  using Base::extent;
  using Base::options_;
  using Base::used_;

  /// f(part) for parts of the rows that an exchange has room for; part(r) is that part of an array.
  template <class F>
  IL_HD void each_part(int64_t rows, F f) const {
    int64_t first = 0;
    do {
      const int64_t left = rows - first;
      const int64_t count = left < options_.exchange_rows ? left : options_.exchange_rows;
      f([&](const R& r) { return R{r.p + first * r.ld, count, r.cols, r.ld}; });
      first += count;
    } while (first < rows);
  }
  /// All columns of an array of which each block has some; the array itself if it has them.
  IL_CALL R gathered(const R& part, int64_t columns) const {
    if (part.cols == columns) return part;
    const R whole = in_buffer(part.rows, columns);
    const int rows = used_ * extent(part.rows), width = extent(part.cols);
    const int64_t first = block_.rank() * part.cols;
    block_.spread(rows, width, [&](int r, int j) {
      whole.p[r * whole.ld + first + j] = part.p[r * part.ld + j];
    });
    block_.cluster_barrier();
    block_.spread(rows, extent(columns), [&](int r, int j) {
      const int owner = j / width;
      if (owner == block_.rank()) return;
      whole.p[r * whole.ld + j] = *block_.peer(whole.p + r * whole.ld + j, owner);
    });
    end_exchange();
    return whole;
  }
  /// The columns of an array that meet this block's part of a weight split by inputs.
  IL_HD R own_columns(const R& a, int64_t columns) const {
    const int64_t first = a.cols == columns ? 0 : block_.rank() * columns;
    return {a.p + first, a.rows, columns, a.ld};
  }
  /// Where this block's share of a sum over blocks goes.
  IL_HD R share(int64_t rows, int64_t columns) const { return in_buffer(rows, columns); }
  /// to = sum over blocks of their shares, in the order of ranks; added to `to` if asked. A share
  /// may have the columns of all blocks, of which each takes its own.
  IL_CALL void sum_shares(const R& to, const R& share, bool add) const {
    block_.cluster_barrier();
    const int64_t first = to.cols == share.cols ? 0 : block_.rank() * to.cols;
    block_.spread(used_ * extent(to.rows), extent(to.cols), [&](int r, int j) {
      Real total = 0;
      for (int rank = 0; rank < options_.cluster; ++rank) {
        total += *block_.peer(share.p + r * share.ld + first + j, rank);
      }
      const int64_t at = r * to.ld + j;
      to.p[at] = add ? to.p[at] + total : total;
    });
    end_exchange();
  }

 private:
  IL_HD R in_buffer(int64_t rows, int64_t columns) const {
    return {buffers_[turn_], rows, columns, Base::pad(columns)};
  }
  /// Nobody reads `turn_` between the exchange's barrier and the one here.
  IL_HD void end_exchange() const {
    block_.once([&] { turn_ = 1 - turn_; });
  }

  Elem* buffers_[2] = {nullptr, nullptr};
  mutable int turn_ = 0;  // the same for all blocks of the cluster
};

}  // namespace innerloop
