#include "build_info.h"

#if defined(__x86_64__) || defined(_M_X64)
#define VAPO_FAST_X86_64 1
#endif
#if defined(__aarch64__) || defined(_M_ARM64)
#define VAPO_FAST_AARCH64 1
#endif

namespace vapo_fast {

std::string compiler() {
#if defined(__clang__)
    return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
    return std::string("gcc ") + __VERSION__;
#elif defined(_MSC_VER)
    return "msvc " + std::to_string(_MSC_FULL_VER);
#else
    return "unknown";
#endif
}

long cpp_standard() {
#if defined(_MSVC_LANG)  // msvc leaves __cplusplus at 199711 unless asked
    return _MSVC_LANG;
#else
    return __cplusplus;
#endif
}

std::string architecture() {
#if defined(VAPO_FAST_X86_64)
    return "x86_64";
#elif defined(VAPO_FAST_AARCH64)
    return "aarch64";
#else
    return "other";
#endif
}

std::vector<std::string> instruction_sets() {
    std::vector<std::string> found;
#if defined(VAPO_FAST_X86_64) && (defined(__GNUC__) || defined(__clang__))
    // These ask the processor and the operating system; the argument must be a literal.
    __builtin_cpu_init();
    found.push_back("sse2");
    if (__builtin_cpu_supports("sse4.2")) found.push_back("sse4.2");
    if (__builtin_cpu_supports("avx")) found.push_back("avx");
    if (__builtin_cpu_supports("fma")) found.push_back("fma");
    if (__builtin_cpu_supports("avx2")) found.push_back("avx2");
    if (__builtin_cpu_supports("avx512f")) found.push_back("avx512f");
#elif defined(VAPO_FAST_X86_64)
    found.push_back("sse2");  // part of x86-64 itself
#elif defined(VAPO_FAST_AARCH64)
    found.push_back("neon");  // part of AArch64 itself
#endif
    return found;
}

}  // namespace vapo_fast
