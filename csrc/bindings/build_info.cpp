#include "bindings/build_info.h"

#include "simd/instruction_set.h"

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

}  // namespace vapo_fast
