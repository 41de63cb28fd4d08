// Chooses the instruction level at run time. Compiled for the baseline.
#pragma once

#include <string>
#include <vector>

#include "core/image_layers.h"
#include "core/kernels.h"
#include "core/regression.h"

namespace innerloop {

/// Levels that this build has and this machine can run, narrowest first.
const std::vector<std::string>& simd_levels();
const std::string& simd_level();
/// Throws std::invalid_argument for a level that is not available.
void set_simd_level(const std::string& name);
/// kernels(is_float64) of the current level.
const Kernels& kernels(bool is_float64);
const LayerKernels& layer_kernels(bool is_float64);
const RegressionKernels& regression_kernels();

}  // namespace innerloop
