#include "dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace mask2former {
namespace cpu {
namespace {

// Best first.
std::vector<const Isa*> supported() {
  std::vector<const Isa*> found;
#ifndef MASK2FORMER_BASELINE_ONLY
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (avx512) found.push_back(&kAvx512);
  if (avx2) found.push_back(&kAvx2);
#endif
  found.push_back(&kBaseline);
  return found;
}

}  // namespace

const Isa& choose_isa() {
  static const std::vector<const Isa*> isas = supported();
  // Read at every call (it costs nothing beside one), so that a test can compare all of them in one process.
  const char* asked = std::getenv("MASK2FORMER_CPU_ISA");
  if (!asked || !*asked) return *isas.front();
  std::string names;
  for (const Isa* isa : isas) {
    if (std::string(asked) == isa->name) return *isa;
    names += (names.empty() ? "" : ", ") + std::string(isa->name);
  }
  throw std::runtime_error("MASK2FORMER_CPU_ISA is '" + std::string(asked) + "'; this machine and build run: " + names);
}

}  // namespace cpu
}  // namespace mask2former
