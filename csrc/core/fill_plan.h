// How much of everything a network needs: the plan of a call, from its shapes.
#pragma once

#include "core/layers/all.h"

namespace innerloop {

/// Fills a plan. `E::pad(n)` is the row length that holds n elements; `E::turned(out, in)` the size
/// of a transposed copy; `needs_z` and `is_curved` answer for activations.
template <class E, class NeedsZ, class IsCurved>
inline void fill_plan(Plan& plan, const Net& net, const uint8_t* adapt, const int64_t* strides,
                      NeedsZ needs_z, IsCurved is_curved) {
  plan.depth = net.depth;
  plan.entries = net.depth + (net.free > 0);
  plan.leaves = net.leaves;
  plan.lowest = net.depth;
  Layer free{};
  free.out = net.free;
  free.weight_leaf = -1;
  free.bias_leaf = net.free_leaf();
  free.bias_offset = net.free_offset();
  int64_t tape = 0, scratch = 0, block = 0, sink = 0;
  for (int l = 0; l < plan.entries; ++l) {
    const Layer& from = l < net.depth ? net.layers[l] : free;
    LayerPlan& to = plan.layers[l];
    to.in = from.in;
    to.out = from.out;
    to.ld_in = E::pad(from.in);
    to.ld_out = E::pad(from.out);
    to.kind = from.kind;
    to.constant = from.constant;
    to.activation = from.activation;
    to.slope = from.slope;
    to.weight_leaf = from.weight_leaf;
    to.bias_leaf = from.bias_leaf;
    to.weight_offset = from.weight_offset;
    to.bias_offset = from.bias_offset;
    to.adapts_weight = adapt && from.weight_leaf >= 0 && adapt[from.weight_leaf];
    to.adapts_bias = adapt && from.bias_leaf >= 0 && adapt[from.bias_leaf];
    to.weight_per_task = from.weight_leaf >= 0 && strides[from.weight_leaf] != 0;
    plan.has_per_task_leaf |= to.weight_per_task;
    to.bias_per_task = from.bias_leaf >= 0 && strides[from.bias_leaf] != 0;
    plan.has_per_task_leaf |= to.bias_per_task;
    if (l == 0) plan.first_adapts = to.adapts_weight;
    if ((to.adapts_weight || to.adapts_bias) && plan.lowest == net.depth) {
      plan.lowest = l < net.depth ? l : net.depth - 1;  // the last delta depends on a free leaf
    }
    to.stores_z = needs_z(from.activation);
    to.stores_a = is_curved(from.activation);
    to.h = tape;
    tape += to.ld_out;
    to.z = to.stores_z ? tape : to.h;
    tape += to.stores_z ? to.ld_out : 0;
    to.delta = tape;
    tape += to.ld_out;
    to.a = to.stores_a ? tape : to.delta;
    tape += to.stores_a ? to.ld_out : 0;
    to.rh = scratch;
    scratch += to.ld_out;
    to.rz = to.stores_a ? scratch : to.rh;
    scratch += to.stores_a ? to.ld_out : 0;
    to.rdelta = scratch;
    scratch += to.ld_out;
    to.map = tape;
    to.r_map = scratch;
    with_layer<E>(to.kind, [&](auto layer) {
      to.diagonal = layer.kDiagonal;
      layer.lay_out(to, &tape, &scratch);
    });
    const bool is_built = l > 0 || !plan.implicit_first;
    to.w = block;
    if (is_built) block += plan.copies * to.weight_size();
    to.w_turned = block;
    if (plan.turns_weights && is_built && !to.diagonal) {
      block += plan.copies * E::turned(to.out, to.in);
    }
    to.b = block;
    block += plan.copies * to.ld_out;
    to.sink_w = sink;
    sink += to.weight_size();
    to.sink_b = sink;
    sink += to.ld_out;
  }
  plan.tape_row = tape;
  plan.scratch_row = scratch;
  plan.block = block;
  plan.sink = sink;
}

}  // namespace innerloop
