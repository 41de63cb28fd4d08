// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
// SC 2011): four random words that are a function of a key and a counter alone, so that the order
// in which threads ask for them cannot matter.
#pragma once

#include <cstdint>

#include "core/host_device.h"

namespace innerloop {

/// `M` supplies lanes of 64-bit words `M::U` and `M::multiply`, the 64-bit products of their low
/// halves with a 32-bit constant.
template <class M>
class Philox {
 public:
  using U = typename M::U;

  IL_HD explicit Philox(uint64_t key) {
    uint32_t low = static_cast<uint32_t>(key), high = static_cast<uint32_t>(key >> 32);
    for (int round = 0; round < kRounds; ++round) {
      low_[round] = M::words(low);
      high_[round] = M::words(high);
      low += 0x9E3779B9u;
      high += 0xBB67AE85u;
    }
  }

  /// Replaces a counter by its random words. Words are the low halves of the lanes; whatever the
  /// high halves hold is ignored on the way in and arbitrary on the way out.
  IL_HD void scramble(U* word) const {
    IL_UNROLLED(10)
    for (int round = 0; round < kRounds; ++round) {
      const U first = M::multiply(word[0], 0xD2511F53u);
      const U second = M::multiply(word[2], 0xCD9E8D57u);
      word[0] = (second >> 32) ^ word[1] ^ low_[round];
      word[1] = second;
      word[2] = (first >> 32) ^ word[3] ^ high_[round];
      word[3] = first;
    }
  }

 private:
  static constexpr int kRounds = 10;
  U low_[kRounds], high_[kRounds];
};

}  // namespace innerloop
