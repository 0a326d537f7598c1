#include "simd/instruction_set.h"

#include <cstdlib>
#include <stdexcept>

namespace vapo_fast {
namespace {

constexpr const char* kVariable = "VAPO_FAST_INSTRUCTION_SET";

std::string usable_names() {
    std::string names;
    for (const InstructionSet each : usable_instruction_sets()) names += (names.empty() ? "" : ", ") + name(each);
    return names;
}

InstructionSet find(const std::string& wanted, const std::string& source) {
    for (const InstructionSet each : usable_instruction_sets()) {
        if (name(each) == wanted) return each;
    }
    const bool known = wanted == name(InstructionSet::baseline) || wanted == name(InstructionSet::avx2) ||
                       wanted == name(InstructionSet::avx512);
    const std::string fault = known ? "instructions that this processor or build lacks" : "none";
    throw std::invalid_argument(source + " names " + fault + ": '" + wanted + "'; usable here: " + usable_names());
}

}  // namespace

std::string name(InstructionSet instruction_set) {
    switch (instruction_set) {
        case InstructionSet::avx2: return "avx2";
        case InstructionSet::avx512: return "avx512";
        default: return "baseline";
    }
}

InstructionSet instruction_set_named(const std::string& name) { return find(name, "instruction_set"); }

std::vector<InstructionSet> usable_instruction_sets() {
    std::vector<InstructionSet> usable{InstructionSet::baseline};
#if defined(VAPO_FAST_X86_BUILDS)
    // These ask the processor and whether the operating system saves the registers; the argument must be a literal.
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return usable;
    usable.push_back(InstructionSet::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512bw"))
        usable.push_back(InstructionSet::avx512);
#endif
    return usable;
}

InstructionSet chosen_instruction_set() {
    const char* wanted = std::getenv(kVariable);
    if (wanted == nullptr || *wanted == '\0') return usable_instruction_sets().back();
    return find(wanted, std::string("environment variable ") + kVariable);
}

std::vector<std::string> processor_features() {
    std::vector<std::string> found;
#if defined(VAPO_FAST_X86_BUILDS)
    __builtin_cpu_init();
    found.push_back("sse2");
    if (__builtin_cpu_supports("sse4.2")) found.push_back("sse4.2");
    if (__builtin_cpu_supports("avx")) found.push_back("avx");
    if (__builtin_cpu_supports("fma")) found.push_back("fma");
    if (__builtin_cpu_supports("avx2")) found.push_back("avx2");
    if (__builtin_cpu_supports("avx512f")) found.push_back("avx512f");
#elif defined(__x86_64__) || defined(_M_X64)
    found.push_back("sse2");  // part of x86-64 itself
#elif defined(__aarch64__) || defined(_M_ARM64)
    found.push_back("neon");  // part of AArch64 itself
#endif
    return found;
}

}  // namespace vapo_fast
