// The plan of a call that is cut into blocks, and the size of a block's workspace. Host code.
#pragma once

#include "block/kernels.h"
#include "block/schedule.h"
#include "core/fill_plan.h"

namespace innerloop {

/// What counts a workspace: plain numbers, no threads.
struct CountingBlock {
  template <class Real>
  using Cell = Real;
};

/// The plan of a group of tasks.
template <class Real>
inline void make_block_plan(Plan& plan, const Request& r, int64_t copies) {
  using E = BlockEngine<CountingBlock, Real>;
  using M = ScalarMath<Real, Real>;
  plan = Plan{plan.layers};
  plan.copies = copies;
  plan.implicit_first = first_pays_implicit<E>(r);
  fill_plan<E>(plan, *r.problem.net, r.steps > 0 ? r.adapt : nullptr, r.problem.params.task_stride,
               needs_z<M>, is_curved<M>);
  for (int l = 0; l < plan.entries; ++l) {
    LayerPlan& p = plan.layers[l];
    p.initial_w = plan.initial;
    if (p.weight_leaf >= 0 && (l > 0 || !plan.implicit_first)) {
      plan.initial += (p.weight_per_task ? copies : 1) * p.out * p.ld_in;
    }
    p.initial_b = plan.initial;
    plan.initial += (p.bias_per_task ? copies : 1) * p.ld_out;
  }
}

/// Numbers in a block's workspace.
template <class Real, template <class> class Pass, class Call>
inline int64_t workspace_size(const Call& call, const Request& r, const Plan& plan,
                              const BlockOptions& options) {
  using F = Frame<CountingBlock, Real, Pass, Call>;
  typename F::Engine engine(CountingBlock{}, call.problem, plan, options);
  Pass<typename F::Engine> pass(engine, plan, call);
  Carver<Real> carver(nullptr);
  F::lay_out(carver, engine, pass, r.wants_grad ? plan.sink : 0,
             r.wants_grad ? r.rate_grad_size : 0);
  return carver.used();
}

}  // namespace innerloop
