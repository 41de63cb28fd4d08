// The linear-regression study's trials on a GPU, as its binding calls them. tests/emulation answers
// for the host.
#pragma once

#include "core/regression.h"

namespace innerloop {

/// The float64 numbers of scratch memory that a call needs.
int64_t regression_scratch(const RegressionTrialsCall& call);

/// Launches a call on a stream of the current device, where all its arrays and the scratch memory
/// lie; `threads` is ignored. Returns null, or what went wrong.
const char* launch_regression(const RegressionTrialsCall& call, void* stream, double* scratch);

}  // namespace innerloop
