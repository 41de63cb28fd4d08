// What the passes ask of an engine E: the contract that cpu/lane_engine.h, cpu/row_engine.h and
// block/block_engine.h keep. An engine decides how the arrays of a group of tasks lie in memory;
// the passes (core/passes.h, core/unroll.h, core/sweep.h) say what happens to them. Nothing here is
// code: an engine that lacks one of these does not compile.
//
// Types
//   Real             a number where the caller keeps it
//   Elem             a number of the workspace: of one task, or of several side by side
//   PerTask          one number for each task of the group: a loss, a rate
//   WeightRef        a weight [out, in] of every task, to be read: `own` and `shared` (core/plan.h)
//   BiasRef          a bias or free leaf [n] likewise; empty where there is none
//   supports(kind)   whether it has a kind of layer (core/layers/layer.h); with affine layers alone
//                    it needs no Row, no row_count and no diagonal weights
//   Row              a row's numbers as vectors: each, mean, load, store, get, put
//   SideData         the rows of one side
//   kBuildsResults   results of a task are built in the workspace and copied out by `publish`
//   kTakesParts      its plans may cut a side of one task into parts (core/plan.h), and `part` does
// Arrays: R = Rows<Elem> [tasks * rows, columns], Out = Target<Elem> (a leaf of every task)
//
// Sizes
//   pad(n)                          row length that holds n elements
//   turned(out, in)                 size of a weight's transposed copy, 0 where none is made
//   per_task_reals()                elements that PerTask takes, in Real
//   initial_size(), direction_size(), parameter_count()
//   row_count(r)                    rows of all tasks of the group
//
// The group
//   select(first, count)            which tasks; first() is the first of them
//   set_sinks(weights, rates)       where sums over tasks grow
//   carve(c), carve_side(c, side)   lay out, or count, what the engine needs
//   load_side(data, side, task_weight, is_query)
//                                   rows, targets and weights; rows out of use become zeros
//   part(data, first, rows)         some rows of a side; losses of all but the first are added up
//   load_inputs(x, data), load_params(initial)
//   load_per_task, store_per_task, clear_per_task
//
// Leaves
//   initial_weight(l, initial), block_weight(l, block), turned_weight(l, block), and the same of
//   biases; block_weight_target, block_bias_target; load_weight, loaded_weight, load_bias of a
//   direction that the caller gives; turn(l, block) after a weight was written
//
// Products, each task with its own leaf (rate: null or a number per task)
//   nt(c, a, w, rate, sign, add)    c = sign rate a W^T, added to c if asked; W may be diagonal
//   nn(c, a, w, rate, sign, add)    c = sign rate a W
//   tn(to, from, p, a, b, a2, b2, rate, sign)
//                                   to = from + sign rate (a^T b + a2^T b2)
//   sink_tn(p, a, b, a2, b2, sign)  the same, summed over tasks
//   rows_nt, rows_nn, rows_tn       products of rows with rows
//   column_sums(to, from, r, rate, sign)
//   minus_dot(to, p, a, b), minus_dot_bias(to, p, delta, lambda)
//                                   -<a, b> of each task
//
// Maps
//   bias_activation, activation_backward, r_activation, r_activation_backward
//   clear(r), add_scaled(to, from, rate), copy_scaled(to, from, rate)
//
// Objectives (core/objectives/objective.h)
//   loss_gradient(data, out, free, gradient, free_gradient, losses)
//   loss_curvature(data, out, free, r_out, r_free, metric, r_gradient, r_free_gradient)
//                                   weighted by row and task; nothing of rows out of use
//
// Solvers (core/solver.h)
//   combine_weight(to, from, keep, x, rate, sign, p), combine_bias
//                                   to = keep from + sign rate x; from is not read where keep is 0
//   step_weight, step_bias, scale_weight, scale_bias, rate_grad_weight, rate_grad_bias
//                                   the same with a rate for each parameter
//
// Results
//   finish_weight(p, lambda, call), finish_bias, finish_rate, export_weight, export_bias,
//   export_rows, result_weight, result_bias, publish
#pragma once
