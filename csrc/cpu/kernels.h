// The native operations of one instruction level and one dtype. kernels_float32.cpp and
// kernels_float64.cpp hold the tables, so that a build has work for two cores; CMake compiles both
// once per level, with its flags and its namespace. dispatch.cpp chooses at run time.
#pragma once

#include "core/kernels.h"
#include "cpu/ops.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {
namespace {

template <class E, class Pass, class Call>
Status run_with(const Call& call, const Request& request, Plan& plan, int64_t copies) {
  make_plan<E>(plan, request, copies);
  return Runner<E, Pass, Call>(call, request, plan).run();
}

/// Plans, then runs Pass<Engine> with the engine that the shapes (or the caller) choose.
template <class Real, template <class> class Pass, class Call>
Status run(const Call& call, const Request& request, Strategy strategy) {
  const int64_t entries = request.problem.net->depth + 1;
  Workspace layers(entries * static_cast<int64_t>(sizeof(LayerPlan)));
  if (!layers.data()) return Status::kOutOfMemory;
  Plan plan;
  plan.layers = static_cast<LayerPlan*>(layers.data());
  if (prefers_lanes<Real>(request, plan, strategy)) {
    using E = LaneEngine<Real>;
    return run_with<E, Pass<E>>(call, request, plan = Plan{plan.layers}, 1);
  }
  using E = RowEngine<Real>;
  return run_with<E, Pass<E>>(call, request, plan = Plan{plan.layers}, stacked_tasks(request));
}

bool ignores_rows(const Side& side) { return side.weight || side.count; }

template <class Real>
Status predict(const PredictCall& call, Strategy strategy) {
  Request r{call.problem};
  r.query_rows = call.rows;
  r.allows_parts = false;
  return run<Real, PredictPass>(call, r, strategy);
}

template <class Real>
Status loss_and_grad(const LossAndGradCall& call, Strategy strategy) {
  Request r{call.problem};
  r.support_rows = call.side.rows;
  r.ignores_rows = ignores_rows(call.side);
  return run<Real, LossPass>(call, r, strategy);
}

Request vector_request(const HvpCall& call) {
  Request r{call.problem};
  r.support_rows = call.side.rows;
  r.ignores_rows = ignores_rows(call.side);
  r.steps = 1;
  return r;
}

template <class Real>
Status hvp(const HvpCall& call, Strategy strategy) {
  return run<Real, HvpPass>(call, vector_request(call), strategy);
}

template <class Real>
Status metric(const HvpCall& call, Strategy strategy) {
  return run<Real, MetricPass>(call, vector_request(call), strategy);
}

/// The tapes of all tasks, the last group's whole: one after another, as `VectorPass` reads them.
template <class Real>
int64_t tape_bytes(const HvpCall& call, Strategy strategy) {
  const Request r = vector_request(call);
  Workspace layers((r.problem.net->depth + 1) * static_cast<int64_t>(sizeof(LayerPlan)));
  if (!layers.data()) return -1;
  Plan plan;
  plan.layers = static_cast<LayerPlan*>(layers.data());
  int64_t group = LaneEngine<Real>::kWidth;
  if (prefers_lanes<Real>(r, plan, strategy)) {
    make_plan<LaneEngine<Real>>(plan = Plan{plan.layers}, r, 1);
  } else {
    group = stacked_tasks(r);
    make_plan<RowEngine<Real>>(plan = Plan{plan.layers}, r, group);
  }
  Carver<Real> c(nullptr);
  c.take(round_up(r.problem.tasks, group) * call.side.rows, plan.tape_row);
  return c.fits() ? c.used() * static_cast<int64_t>(sizeof(Real)) : -1;
}

template <class Real>
Status meta_grad(const MetaGradCall& call, Strategy strategy) {
  Request r{call.problem};
  r.adapt = call.adapt;
  r.steps = call.steps;
  r.support_rows = call.support.rows;
  r.query_rows = call.query.rows;
  r.ignores_rows = ignores_rows(call.support) || ignores_rows(call.query);
  r.wants_grad = call.grads != nullptr;
  // a rate per element turns the first weight by more than a sum of a few row products, and a
  // velocity is kept as a weight
  r.allows_parts = !call.rates.elementwise && call.solver.is_plain();
  r.allows_implicit = call.adapted == nullptr && r.allows_parts;
  r.rate_grad_size = call.out_rate_grad && call.rates.task_stride == 0 ? call.rate_grad_size : 0;
  if (call.out_rate_grad && call.rates.task_stride != 0) {
    std::memset(call.out_rate_grad, 0, call.rate_grad_size * sizeof(Real));
  }
  return run<Real, Unroll>(call, r, strategy);
}

template <class Real>
constexpr Kernels kTable = {predict<Real>, loss_and_grad<Real>, hvp<Real>,
                            metric<Real>,  meta_grad<Real>,     tape_bytes<Real>};

}  // namespace
}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
