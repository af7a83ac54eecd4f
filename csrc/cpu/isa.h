// Which instruction set the CPU kernels use: detected once, overridden by the environment variable PEGASUS_ISA.
#pragma once
#include <string>
#include <vector>

#include "cpu/kernels.h"

namespace pegasus::cpu {

// The kernels of the chosen instruction set. Throws std::runtime_error if PEGASUS_ISA names one that is unknown or that
// this host lacks: a silent fallback would hide a wrong deployment.
const Kernels& kernels();

std::string active_isa();
// Instruction sets of this host, the plainest first.
std::vector<std::string> available_isas();
// Switches to another instruction set, for tests. Not to be called while an op runs.
void select_isa(const std::string& name);

}  // namespace pegasus::cpu
