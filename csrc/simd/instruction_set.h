// The builds of the vector kernels, and which of them this processor and its operating system can run.
#pragma once

#include <string>
#include <vector>

// The x86-64 builds need a compiler that can target instructions for part of a program: gcc or clang. Tests that build
// the kernels again, to look at what is around them, are quicker with the baseline alone.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__)) && !defined(VAPO_FAST_BASELINE_ONLY)
#define VAPO_FAST_X86_BUILDS 1
#endif

namespace vapo_fast {

// From least to most capable; `baseline` is what every processor of the architecture has.
enum class InstructionSet { baseline, avx2, avx512 };

std::string name(InstructionSet instruction_set);

// The one of that name. Throws std::invalid_argument if there is none or if it is not usable here.
InstructionSet instruction_set_named(const std::string& name);

std::vector<InstructionSet> usable_instruction_sets();  // least to most capable; never empty

// The one that environment variable VAPO_FAST_INSTRUCTION_SET names, else the most capable. Throws as above.
InstructionSet chosen_instruction_set();

// Vector extensions by their own names ("sse2", "avx2", "neon", ...), for reports.
std::vector<std::string> processor_features();

}  // namespace vapo_fast
