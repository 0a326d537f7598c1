// Ends what isa_begin.h began.
#if !defined(VAPO_FAST_ISA)
#error "isa_begin.h comes first"
#endif

#if defined(VAPO_FAST_ISA_AVX512) || defined(VAPO_FAST_ISA_AVX2)
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
