// How parameters move. Plain data: the recursion is the unroll's (core/unroll.h), its adjoint is
// derived in docs/math.md.
#pragma once

namespace innerloop {

/// v_{s+1} = momentum v_s + g_s,  phi_{s+1} = phi_s - alpha_s v_{s+1},  v_0 = 0: heavy ball, as
/// torch.optim.SGD has it; plain gradient descent without momentum.
struct Solver {
  double momentum = 0;
};

}  // namespace innerloop
