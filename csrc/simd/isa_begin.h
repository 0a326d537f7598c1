// Turns the rest of a file, up to isa_end.h, into code for one instruction set:
//
//     #include <standard headers, and headers of this project that hold no vector code>
//     #define VAPO_FAST_ISA_AVX512        // or VAPO_FAST_ISA_AVX2, or neither: the baseline
//     #include "simd/isa_begin.h"
//     #include "simd/math.h"              // ... everything in namespace vapo_fast::VAPO_FAST_ISA
//     #include "simd/isa_end.h"
//
// The standard headers come first, because everything defined after this line is compiled for that instruction set. The
// linker may keep such a copy of an inline library function for all files, and an older processor would then stop at an
// unknown instruction. Templates take their instruction set from where they are defined, so instantiating them is safe.
#if defined(VAPO_FAST_ISA)
#error "one instruction set for each translation unit"
#endif

#include "simd/instruction_set.h"

#include <cstdint>
#include <cstring>

#if defined(VAPO_FAST_ISA_AVX512) || defined(VAPO_FAST_ISA_AVX2)
#if !defined(VAPO_FAST_X86_BUILDS)
#error "these instructions are built by gcc or clang for x86-64 only; see VAPO_FAST_X86_BUILDS"
#endif
#include <immintrin.h>
#elif defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define VAPO_FAST_NEON 1  // part of AArch64 itself
#include <arm_neon.h>
#endif

#if defined(VAPO_FAST_ISA_AVX512)
#define VAPO_FAST_ISA avx512
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx2,fma")
#endif
#elif defined(VAPO_FAST_ISA_AVX2)
#define VAPO_FAST_ISA avx2
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif
#else
#define VAPO_FAST_ISA baseline
#endif
