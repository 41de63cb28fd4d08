// The meta linear-regression experiment: what a call draws and where its numbers go. All arrays are
// float64, C order.
#pragma once

#include <cstdint>

#include "core/status.h"

namespace innerloop {

/// The law of the tasks and of their data. A task has eigenvalues t ~ U(0, scale)^p, which are also
/// its regression vector, an orthogonal U of the invariant law, covariance U diag(t) U', and noise
/// of variance U(0, scale); it gives `samples` support rows and as many query rows.
/// Every number is a function of (key, trial, task) alone.
struct RegressionLaw {
  int64_t dimension;  // p
  int64_t samples;    // N
  double scale;       // beta
  uint64_t key;
};

/// A risk that grows by curvature / 2 |theta - optimum (1, ..., 1)|^2.
struct RegressionRisk {
  double curvature, optimum;
};

/// Both estimators in every trial: pooled least squares once, MAML for every rate.
struct RegressionTrialsCall {
  RegressionLaw law;
  int64_t tasks;  // M
  int64_t first_trial, trials;
  int64_t rates;                // R
  const double* rate;           // [R]
  const RegressionRisk* risks;  // [1 + R]: before the update, then after it at every rate
  /// [trials, 1 + 3 R]: excess risk before the update of pooled least squares and of MAML [R], then
  /// after the update of pooled least squares [R] and of MAML [R].
  double* excess;
  double* estimates;  // [trials, 1 + R, p], or null
  int threads;        // of a CPU
};

/// The tasks of such trials themselves, and the statistics the estimators see. For side s (support,
/// query) with rows X and targets y: gram = X'X / N, moment = X'y / N.
struct RegressionTasksCall {
  RegressionLaw law;
  int64_t tasks;
  int64_t first_trial, trials;
  double* theta;       // [trials, tasks, p]
  double* variance;    // [trials, tasks]
  double* covariance;  // [trials, tasks, p, p]
  double* gram;        // [trials, tasks, 2, p, p]
  double* moment;      // [trials, tasks, 2, p]
  int threads;
};

/// Random words for tests against the published known answers: counters and words are [count, 4].
struct RandomWordsCall {
  uint64_t key;
  int64_t count;
  const uint32_t* counters;
  uint32_t* words;
};

/// The entries of one instruction level.
struct RegressionKernels {
  Status (*trials)(const RegressionTrialsCall&);
  Status (*tasks)(const RegressionTasksCall&);
  Status (*random_words)(const RandomWordsCall&);
};

}  // namespace innerloop
