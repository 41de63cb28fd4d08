// Sums the estimators' systems over tasks.
//
// MAML's system at rate a is a quadratic in a, S = I - a G1 with gram matrices G1, G2:
//   W = S G2 S = G2 - a (G1 G2 + G2 G1) + a^2 G1 G2 G1,
//   z = S (z2 - a G2 z1) = z2 - a (G1 z2 + G2 z1) + a^2 G1 G2 z1,
// so tasks are summed once for all rates, and a rate costs one solution per trial.
//
// Tasks are summed in chunks of kChunk, and the chunks' sums in order, so that the threads of a GPU
// can share a trial and every machine rounds alike.
#pragma once

#include "regression/task.h"

namespace innerloop {

constexpr int64_t kChunk = 16;  // tasks

IL_INLINE int64_t chunks_of(int64_t tasks) { return (tasks + kChunk - 1) / kChunk; }

/// The systems that are summed: pooled least squares, then the coefficients of MAML's powers of a.
constexpr int64_t kSystems = 4;

/// A packed symmetric matrix and a right side.
template <class Array>
struct System {
  Array w, z;
};

/// System `which` of an array of systems.
template <class Array, int kP>
IL_INLINE System<Array> system_of(const RegressionShape<kP>& shape, Array systems, int64_t which) {
  const Array w = systems + which * shape.system();
  return {w, w + shape.packed()};
}

/// The systems of a chunk's tasks in kLanes trials.
template <class L, int kP>
class ChunkSums {
 public:
  using V = typename L::V;
  using Array = typename L::Array;
  using Shape = RegressionShape<kP>;

  IL_HD static constexpr int64_t size(const Shape& s) {
    return TaskLanes<L, kP>::size(s) + kSystems * s.system() + s.p() * s.p() + s.p() + 3 * L::kGap;
  }
  /// memory: size() vectors.
  IL_INLINE ChunkSums(const Shape& shape, const RegressionLaw& law, Array memory)
      : shape_(shape), task_(shape, law, memory) {
    const int64_t p = shape.p();
    memory = memory + TaskLanes<L, kP>::size(shape);
    sums = L::take(&memory, kSystems * shape.system());
    product_ = L::take(&memory, p * p);
    product_z_ = L::take(&memory, p);
  }

  /// Of chunk `chunk` of `tasks` tasks.
  IL_INLINE void run(const Philox<L>& philox, typename L::U trial, int64_t chunk, int64_t tasks) {
    for (int64_t i = 0; i < kSystems * shape_.system(); ++i) sums[i] = V{};
    const int64_t first = chunk * kChunk;
    const int64_t last = first + kChunk < tasks ? first + kChunk : tasks;
    IL_ROLLED
    for (int64_t t = first; t < last; ++t) {
      task_.draw(philox, trial, t);
      add_task();
    }
  }

  Array sums;  // [kSystems, shape.system()]

 private:
  IL_INLINE void add_task() {
    const int64_t p = shape_.p();
    const Array g1 = task_.gram[0], g2 = task_.gram[1];
    const Array z1 = task_.moment[0], z2 = task_.moment[1];
    const auto pooled = system_of(shape_, sums, 0);
    const System<Array> maml[] = {system_of(shape_, sums, 1), system_of(shape_, sums, 2),
                                  system_of(shape_, sums, 3)};
    for (int64_t i = 0; i < p; ++i) {
      for (int64_t j = 0; j < p; ++j) {
        V total{};
        for (int64_t k = 0; k < p; ++k) total += g1[i * p + k] * g2[k * p + j];
        product_[i * p + j] = total;
      }
    }
    for (int64_t i = 0; i < p; ++i) {
      V from_query{}, from_support{};
      for (int64_t k = 0; k < p; ++k) {
        from_query += g1[i * p + k] * z2[k];
        from_support += g2[i * p + k] * z1[k];
      }
      product_z_[i] = from_support;
      pooled.z[i] += z1[i] + z2[i];
      maml[0].z[i] += z2[i];
      maml[1].z[i] += from_query + from_support;
    }
    for (int64_t i = 0, at = 0; i < p; ++i) {
      V last{};
      for (int64_t k = 0; k < p; ++k) last += g1[i * p + k] * product_z_[k];
      maml[2].z[i] += last;
      for (int64_t j = 0; j <= i; ++j, ++at) {
        V total{};
        for (int64_t k = 0; k < p; ++k) total += product_[i * p + k] * g1[k * p + j];
        pooled.w[at] += g1[i * p + j] + g2[i * p + j];
        maml[0].w[at] += g2[i * p + j];
        maml[1].w[at] += product_[i * p + j] + product_[j * p + i];
        maml[2].w[at] += total;
      }
    }
  }

  Shape shape_;
  TaskLanes<L, kP> task_;
  Array product_, product_z_;
};

}  // namespace innerloop
