// The layers of core/image_layers.h at one instruction level, in both dtypes.
#include "cpu/convolution.h"
#include "cpu/norm_block.h"

namespace innerloop {
namespace INNERLOOP_LEVEL {
namespace {

template <class Real>
Status convolve(const ConvolveCall& call) {
  return Convolve<Real>(call).run();
}
template <class Real>
Status convolve_back(const ConvolveBackCall& call) {
  return ConvolveBack<Real>(call).run();
}
template <class Real, NormPass kPass>
Status norm(const NormBlockCall& call) {
  return NormRunner<Real, kPass>(call).run();
}

template <class Real>
constexpr LayerKernels kTable = {
    convolve<Real>,
    convolve_back<Real>,
    norm<Real, NormPass::kForward>,
    norm<Real, NormPass::kBackward>,
    norm<Real, NormPass::kTangent>,
    norm<Real, NormPass::kSecond>,
};

}  // namespace

extern const LayerKernels kLayers32, kLayers64;
const LayerKernels kLayers32 = kTable<float>;
const LayerKernels kLayers64 = kTable<double>;

}  // namespace INNERLOOP_LEVEL
}  // namespace innerloop
