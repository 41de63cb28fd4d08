// Unpacks the tensors of one layer's passes, calls them without the GIL.
#include "bindings/image_layers.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <utility>

#include "bindings/arguments.h"
#include "bindings/out_of_memory.h"
#include "cpu/dispatch.h"
#include "cpu/parallel.h"

namespace innerloop {
namespace {

template <class Call>
void dispatch(Status (*LayerKernels::*entry)(const Call&), bool is_float64, const Call& call) {
  Status status;
  {
    py::gil_scoped_release release;
    status = (layer_kernels(is_float64).*entry)(call);
  }
  if (status == Status::kOutOfMemory) throw_out_of_memory();
}

/// Tensors of one call: tasks and dtype are those of the first one.
class Tensors {
 public:
  explicit Tensors(py::handle first) {
    const TensorView view(first);
    width_ = static_cast<int64_t>(view.itemsize());
    tasks_ = view.size(0);
  }
  bool is_float64() const { return width_ == 8; }
  int64_t tasks() const { return tasks_; }

  /// A tensor [tasks, size], or `sets` of them.
  void* per_task(const char* name, py::handle tensor, int64_t size, int64_t sets = 1) {
    return reader_.address(tensor, bytes(sets * tasks_ * size), {name});
  }
  /// A tensor [tasks, size], or [1, size] where all tasks share it.
  Operand operand(const char* name, py::handle tensor, int64_t size) {
    if (tensor.is_none()) return {nullptr, 0};
    const int64_t sets = size_of(tensor, 0) == 1 ? 1 : tasks_;
    return {reader_.address(tensor, bytes(sets * size), {name}), sets == 1 ? 0 : size};
  }

 private:
  uint64_t bytes(int64_t count) const { return static_cast<uint64_t>(width_ * count); }

  int64_t width_, tasks_;
  TensorReader reader_;
};

using ConvolutionSizes = std::array<int64_t, 15>;
using Pair = std::pair<py::object, py::object>;

Convolution convolution(const ConvolutionSizes& s, int64_t tasks, int threads) {
  const Convolution made{tasks,
                         s[0],
                         s[1],
                         s[2],
                         s[3],
                         s[4],
                         s[5],
                         s[6],
                         {s[7], s[8]},
                         {s[9], s[10]},
                         {s[11], s[12]},
                         {s[13], s[14]},
                         std::max(threads, 1)};
  bool fits = *std::min_element(s.begin() + 1, s.end()) >= 0 && s[0] >= 0 && s[1] > 0 && s[4] > 0;
  for (int axis = 0; axis < 2; ++axis) {
    const int64_t size = axis ? made.width : made.height;
    const int64_t out = axis ? made.out_width : made.out_height;
    const int64_t reach = (made.kernel[axis] - 1) * made.dilation[axis] + 1;
    fits = fits && made.kernel[axis] > 0 && made.stride[axis] > 0 && made.dilation[axis] > 0 &&
           out == (size + 2 * made.padding[axis] - reach) / made.stride[axis] + 1;
  }
  if (!fits) throw std::invalid_argument("the sizes of a convolution do not fit together");
  return made;
}

void convolve(const ConvolutionSizes& sizes, const Pair& x, const Pair& w, py::handle bias,
              py::handle y, int threads) {
  Tensors t(y);
  const Convolution c = convolution(sizes, t.tasks(), threads);
  const int64_t image = c.rows * c.height * c.width * c.in;
  const ConvolveCall call{
      c,
      {t.per_task("x", x.first, image), t.per_task("x_dot", x.second, image)},
      {t.operand("w", w.first, c.weights()), t.operand("w_dot", w.second, c.weights())},
      t.operand("bias", bias, c.out),
      t.per_task("y", y, c.rows * c.places() * c.out)};
  if ((!call.x[0] || !call.w[0].data) && (!call.x[1] || !call.w[1].data)) {
    throw std::invalid_argument("a convolution needs an x and its w");
  }
  dispatch(&LayerKernels::convolve, t.is_float64(), call);
}

void convolve_back(const ConvolutionSizes& sizes, const Pair& g, const Pair& x, const Pair& w,
                   py::handle gx, py::handle gw, py::handle gb, int threads) {
  Tensors t(g.first.is_none() ? g.second : g.first);
  const Convolution c = convolution(sizes, t.tasks(), threads);
  const int64_t image = c.rows * c.height * c.width * c.in, out = c.rows * c.places() * c.out;
  const ConvolveBackCall call{
      c,
      {t.per_task("g", g.first, out), t.per_task("g", g.second, out)},
      {t.per_task("x", x.first, image), t.per_task("x", x.second, image)},
      {t.operand("w", w.first, c.weights()), t.operand("w", w.second, c.weights())},
      t.per_task("gx", gx, image),
      t.per_task("gw", gw, c.weights()),
      t.per_task("gb", gb, c.out)};
  dispatch(&LayerKernels::convolve_back, t.is_float64(), call);
}

/// rows, channels, height, width, the window's height and width, whether there is a relu.
using NormSizes = std::array<int64_t, 7>;

/// The tensors of a pass of a block, by the names of NormBlockCall.
void norm_pass(Status (*LayerKernels::*entry)(const NormBlockCall&), const NormSizes& s, double eps,
               const py::dict& given, int threads) {
  const auto at = [&given](const char* name) -> py::handle {
    PyObject* const found = PyDict_GetItemString(given.ptr(), name);
    return found == nullptr ? Py_None : found;
  };
  Tensors t(at("x"));
  const NormBlock block{t.tasks(),           s[0], s[1], s[2], s[3], {s[4], s[5]}, s[6] != 0, eps,
                        std::max(threads, 1)};
  if (*std::min_element(s.begin(), s.end()) < 0 || s[4] < 1 || s[5] < 1 || s[4] * s[5] > 64) {
    throw std::invalid_argument("the sizes of a batch norm do not fit together");
  }
  const int64_t all = block.rows * block.places() * block.channels;
  const int64_t chosen = block.rows * block.chosen() * block.channels;
  const int64_t k = block.channels;
  NormBlockCall call{};
  call.layer = block;
  call.w = t.operand("w", at("w"), k);
  call.b = t.operand("b", at("b"), k);
  call.x = t.per_task("x", at("x"), all);
  call.statistics = t.per_task("statistics", at("statistics"), k, 2);
  call.chosen = t.per_task("chosen", at("chosen"), chosen);
  call.y = t.per_task("y", at("y"), chosen);
  call.g = t.per_task("g", at("g"), chosen);
  call.gx = t.per_task("gx", at("gx"), all);
  call.gw = t.per_task("gw", at("gw"), k);
  call.gb = t.per_task("gb", at("gb"), k);
  call.sums = t.per_task("sums", at("sums"), k, 2);
  call.x_dot = t.per_task("x_dot", at("x_dot"), all);
  call.w_dot = t.operand("w_dot", at("w_dot"), k);
  call.b_dot = t.operand("b_dot", at("b_dot"), k);
  call.g_dot = t.per_task("g_dot", at("g_dot"), chosen);
  call.y_dot = t.per_task("y_dot", at("y_dot"), chosen);
  call.dot_sums = t.per_task("dot_sums", at("dot_sums"), k, 3);
  dispatch(entry, t.is_float64(), call);
}

/// Memory for a tensor that torch frees when it drops the tensor: taken from the workspaces, whose
/// pages are there already. Fresh pages cost as much as the passes of a small layer.
class Block {
 public:
  explicit Block(int64_t bytes) : memory_(bytes), bytes_(bytes) {
    if (!memory_.data()) throw_out_of_memory();
  }
  py::buffer_info buffer() const {
    return {memory_.data(), 1, py::format_descriptor<uint8_t>::format(), bytes_};
  }

 private:
  Workspace memory_;
  int64_t bytes_;
};

}  // namespace

void define_layers(py::module_& m) {
  py::class_<Block>(m, "Block", py::buffer_protocol())
      .def(py::init<int64_t>())
      .def_buffer([](const Block& block) { return block.buffer(); });
  m.def("convolve", &convolve);
  m.def("convolve_back", &convolve_back);
  const auto define_norm = [&m](const char* name,
                                Status (*LayerKernels::*entry)(const NormBlockCall&)) {
    m.def(name, [entry](const NormSizes& sizes, double eps, const py::dict& tensors, int threads) {
      norm_pass(entry, sizes, eps, tensors, threads);
    });
  };
  define_norm("norm_forward", &LayerKernels::norm_forward);
  define_norm("norm_backward", &LayerKernels::norm_backward);
  define_norm("norm_tangent", &LayerKernels::norm_tangent);
  define_norm("norm_second", &LayerKernels::norm_second);
}

}  // namespace innerloop
