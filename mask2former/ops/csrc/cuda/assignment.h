// Linear assignment as library.cu sees it: one plain description of a call.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace mask2former {

constexpr int64_t kMaxAssigned = 1024;  // ops/assignment.py has the same number

// Pointers to device memory. `cost` has the shape (problems, queries, objects), and these strides in elements; `counts`
// is (problems,), `out` (problems, objects), both contiguous.
struct Assignment {
  const float* cost;
  const int64_t* counts;
  int64_t* out;
  int64_t problem_stride, query_stride, object_stride;
  int problems, queries, objects;
};

// For each object the query that is assigned to it, or -1; queries and objects are at most kMaxAssigned.
cudaError_t linear_assignment(const Assignment& call, int device, cudaStream_t stream);

}  // namespace mask2former
