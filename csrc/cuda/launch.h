// What every CUDA op does before it launches: check the tensors, select their device, and take the current stream.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

namespace fastgen {

// The device of `x` is current while this lives; kernels go to the stream that PyTorch has current there.
class Launch {
 public:
  explicit Launch(const torch::stable::Tensor& x) : guard_(x.get_device_index()) {
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

  // An error of the launch itself (a grid too large, no kernel for this device) is reported here, not at some later
  // call.
  void check() const {
    cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, "fastgen: CUDA launch failed: ", cudaGetErrorString(error));
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace fastgen
