// How parameters move: one linear family, as plain data. Its recursion is in core/unroll, its
// adjoint is derived in docs/math.md ("Solvers"), its twin is python/innerloop/_solver.py, which
// says what data an option of torch.optim.SGD is.
#pragma once

#include "core/host_device.h"

namespace innerloop {

/// With G_s = g_s + decay phi_s and v_0 = 0:
///
///   v_{s+1}   = momentum v_s + G_s
///   phi_{s+1} = phi_s - alpha_s * (gradient_share G_s + velocity_share v_{s+1})
struct Solver {
  double momentum = 0;
  double gradient_share = 1;
  double velocity_share = 0;
  double decay = 0;

  IL_HD bool has_velocity() const { return velocity_share != 0; }
  /// Steps are a gradient times a rate.
  IL_HD bool is_plain() const { return !has_velocity() && decay == 0; }
  /// A step is not the velocity itself.
  IL_HD bool mixes() const {
    return has_velocity() && (gradient_share != 0 || velocity_share != 1);
  }
};

}  // namespace innerloop
