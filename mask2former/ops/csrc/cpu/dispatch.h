// Which of the compiled kernels runs on this machine.
#pragma once

#include "kernel.h"

namespace mask2former {
namespace cpu {

// The best one that the machine has. The environment variable MASK2FORMER_CPU_ISA (baseline, avx2, avx512) asks for
// another; std::runtime_error where it is unknown or the machine lacks it.
const Isa& choose_isa();

}  // namespace cpu
}  // namespace mask2former
