// torch.ops.mask2former.masked_attention and blocked_keys on CUDA: reads tensors, and launches on the current stream.
#include "../common.h"
#include "entries.h"
#include "masked_attention.h"

namespace mask2former {
namespace {

using torch::stable::new_empty;

int attribute(cudaDeviceAttr name, int32_t device) {
  int number = 0;
  check_launch(cudaDeviceGetAttribute(&number, name, device), "masked attention");
  return number;
}

int size32(const Tensor& t, int64_t dimension) {
  STD_TORCH_CHECK(t.size(dimension) < (int64_t{1} << 30), "masked attention takes sizes below 2^30");
  return static_cast<int>(t.size(dimension));
}

// Rows of 32 channels as the kernel reads them, 16 bytes at once; copied where they lie otherwise.
Tensor readable(const Tensor& t, HeadStrides& strides) {
  Tensor rows = t;
  int64_t bits = reinterpret_cast<intptr_t>(t.const_data_ptr()) | (t.stride(3) == 1 ? 0 : 1);
  for (int64_t i = 0; i < 3; ++i) bits |= t.size(i) > 1 ? t.stride(i) * 2 : 0;
  if (bits % 16 != 0) {
    rows = new_empty(t, t.sizes());
    torch::stable::copy_(rows, t);
  }
  strides = {rows.stride(0), rows.stride(1), rows.stride(2)};
  return rows;
}

Tensor masked_attention_cuda(const Tensor& given_query, const Tensor& given_key, const Tensor& given_value,
                             const Tensor& given_blocked) {
  const ScalarType type = given_query.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::BFloat16 || type == ScalarType::Half, "query must be bf16 or fp16 on CUDA");
  MaskedAttention call{};
  STD_TORCH_CHECK(given_query.dim() == 4, "query must be (B, heads, N, 32)");
  STD_TORCH_CHECK(given_key.dim() == 4 && given_key.size(2) > 0, "key must be (B, heads, S, 32), S at least 1");
  call.batch = size32(given_query, 0), call.heads = size32(given_query, 1), call.queries = size32(given_query, 2);
  call.keys = size32(given_key, 2);
  for (const Tensor& t : {given_key, given_value}) {
    STD_TORCH_CHECK(t.dim() == 4 && t.size(0) == call.batch && t.size(1) == call.heads && t.size(2) == call.keys,
                    "key and value must be (B, heads, S, 32), B and heads those of query");
    STD_TORCH_CHECK(t.scalar_type() == type, "key and value must have the dtype of query");
  }
  for (const Tensor& t : {given_query, given_key, given_value})
    STD_TORCH_CHECK(t.size(3) == kHeadChannels, "query, key and value must have 32 channels a head on CUDA");
  const int64_t dims = given_blocked.dim();
  STD_TORCH_CHECK(given_blocked.scalar_type() == ScalarType::Bool && (dims == 3 || (dims == 4 && given_blocked.size(1) == 1)),
                  "blocked must be bool (B, N, S) or (B, 1, N, S)");
  STD_TORCH_CHECK(given_blocked.size(0) == call.batch && given_blocked.size(dims - 2) == call.queries &&
                      given_blocked.size(dims - 1) == call.keys,
                  "blocked must be bool (B, N, S) or (B, 1, N, S)");
  const int32_t device = given_query.get_device_index();
  for (const Tensor& t : {given_key, given_value, given_blocked})
    STD_TORCH_CHECK(t.is_cuda() && t.get_device_index() == device, "all tensors must be on the device of query");

  const torch::stable::accelerator::DeviceGuard guard(device);
  Tensor out = new_empty(given_query, {call.batch, call.queries, given_query.size(1) * kHeadChannels});
  if (out.numel() == 0) return out;
  const Tensor query = readable(given_query, call.query_strides), key = readable(given_key, call.key_strides),
               value = readable(given_value, call.value_strides);
  Tensor blocked = given_blocked;
  if (blocked.stride(dims - 1) != 1 && call.keys > 1) blocked = torch::stable::contiguous(blocked);
  call.blocked_batch = call.batch > 1 ? blocked.stride(0) : 0;
  call.blocked_row = call.queries > 1 ? blocked.stride(dims - 2) : 0;
  call.blocked = static_cast<const uint8_t*>(blocked.const_data_ptr());
  const int64_t bits = reinterpret_cast<intptr_t>(call.blocked) | call.blocked_batch | call.blocked_row;
  call.blocked_aligned = bits % 16 == 0;
  call.query = query.const_data_ptr(), call.key = key.const_data_ptr(), call.value = value.const_data_ptr();
  call.out = out.mutable_data_ptr();
  call.half = type == ScalarType::Half;
  call.overlap = attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9;
  call.splits = best_splits(call, attribute(cudaDevAttrMultiProcessorCount, device));
  std::optional<Tensor> workspace;
  if (call.splits > 1) {
    const int64_t rows = out.numel() / kHeadChannels * call.splits;
    workspace = new_empty(query, {rows * (kHeadChannels + 2)}, ScalarType::Float);
    call.sums = static_cast<float*>(workspace->mutable_data_ptr());
    call.norms = reinterpret_cast<float2*>(call.sums + rows * kHeadChannels);
  }
  check_launch(masked_attention(call, stream_of(query)), "masked attention");
  return out;
}

Tensor blocked_keys_cuda(const Tensor& given) {
  STD_TORCH_CHECK(given.dim() >= 1 && given.scalar_type() == ScalarType::Float, "logits must be fp32 (..., S) on CUDA");
  const torch::stable::accelerator::DeviceGuard guard(given.get_device_index());
  const Tensor logits = prepared(given, ScalarType::Float);
  Tensor blocked = new_empty(logits, logits.sizes(), ScalarType::Bool);
  if (logits.numel() == 0) return blocked;
  const int64_t keys = logits.size(logits.dim() - 1);
  check_launch(blocked_keys(static_cast<const float*>(logits.const_data_ptr()),
                            static_cast<uint8_t*>(blocked.mutable_data_ptr()), logits.numel() / keys, keys,
                            stream_of(logits)),
               "masked attention");
  return blocked;
}

}  // namespace
}  // namespace mask2former

STABLE_TORCH_LIBRARY_IMPL(mask2former, CUDA, m) {
  m.impl("masked_attention", TORCH_BOX(&mask2former::masked_attention_cuda));
  m.impl("blocked_keys", TORCH_BOX(&mask2former::blocked_keys_cuda));
}
