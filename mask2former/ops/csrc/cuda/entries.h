// What all entries share: the stream that a tensor's work is queued on, and what is said of a launch that failed.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "../common.h"

namespace mask2former {

inline cudaStream_t stream_of(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

inline void check_launch(cudaError_t error, const char* what) {
  const char* remedy = error == cudaErrorNoKernelImageForDevice
                           ? "; build the op for this GPU (TORCH_CUDA_ARCH_LIST) or set MASK2FORMER_OPS_BACKEND=pytorch"
                           : "";
  STD_TORCH_CHECK(error == cudaSuccess, what, ": ", cudaGetErrorString(error), remedy);
}

}  // namespace mask2former
