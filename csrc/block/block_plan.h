// The plan of a call that is cut into blocks, and the size of a block's workspace. Host code.
#pragma once

#include <vector>

#include "block/kernels.h"
#include "block/low_rank.h"
#include "block/schedule.h"

namespace innerloop {

/// What counts a workspace: plain numbers, no threads.
struct CountingBlock {
  template <class Real>
  using Cell = Real;
  static constexpr bool kFactors = false, kCluster = false;
};

/// The layers of which one block of a cluster keeps its parts; empty if widths cannot be divided.
inline std::vector<Layer> block_layers(const Net& net, int cluster) {
  std::vector<Layer> layers(net.layers, net.layers + net.depth);
  for (Layer& layer : layers) {
    int64_t& width = &layer == &layers.back() ? layer.in : layer.out;
    if (width % cluster != 0) return {};
    width /= cluster;
  }
  return layers;
}

/// A plan for a cut. Returns whether there is one.
template <class Real>
inline bool make_block_plan(Plan& plan, const Request& r, const Cut& cut, Factors factors,
                            bool one_product) {
  using E = BlockEngine<CountingBlock, Real>;
  using M = ScalarMath<Real, Real>;
  const int parts = cut.strategy == BlockStrategy::kCluster ? cut.cluster : 1;  // of every layer
  const std::vector<Layer> layers = block_layers(*r.problem.net, parts);
  if (layers.empty()) return false;
  Net net = *r.problem.net;
  net.layers = layers.data();
  const int64_t copies = cut.tasks_per_block;
  plan = Plan{plan.layers};
  plan.copies = copies;
  plan.implicit_first = cut.strategy != BlockStrategy::kTiled && first_pays_implicit<E>(r);
  plan.one_product = one_product && plan.implicit_first;
  plan.apart = plan.one_product ? r.problem.net->first().in * r.problem.net->first().out : 0;
  const bool implicit = plan.implicit_first;
  fill_plan<E>(plan, net, r.steps > 0 ? r.adapt : nullptr, r.problem.params.task_stride, needs_z<M>,
               is_curved<M>,
               [&](int l) { return (l > 0 || !implicit) && is_factored(r, l, factors); });
  for (int l = 0; l < plan.depth; ++l) {
    LayerPlan& p = plan.layers[l];
    p.leaf_in = r.problem.net->layers[l].in;
    if (parts > 1) p.split = l + 1 < plan.depth ? Split::kOutputs : Split::kInputs;
    p.initial_w = plan.initial;
    if (l > 0 || !plan.implicit_first) {
      plan.initial += (p.weight_per_task ? copies : 1) * p.out * p.ld_in;
    }
    p.initial_b = plan.initial;
    plan.initial += (p.bias_per_task ? copies : 1) * p.ld_out;
  }
  return true;
}

/// Numbers in a block's workspace: near ones, and far ones if the sums over tasks lie apart.
struct WorkspaceSize {
  int64_t near, far;
};
template <class Real, template <class> class Pass, class Call>
inline WorkspaceSize workspace_size(const Call& call, const Request& r, const Plan& plan,
                                    const BlockOptions& options) {
  using F = Frame<CountingBlock, Real, Pass, Call>;
  typename F::Engine engine(CountingBlock{}, call.problem, plan, options);
  Pass<typename F::Engine> pass(engine, plan, call);
  Carver<Real> near(nullptr), far(nullptr);
  F::lay_out(near, options.far_sums ? far : near, engine, pass, r.wants_grad ? plan.sink : 0,
             r.wants_grad ? r.rate_grad_size : 0);
  return {near.used(), far.used()};
}

}  // namespace innerloop
