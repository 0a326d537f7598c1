// Tables of kernels. A table is a struct of function pointers, filled once for each instruction set; a caller chooses
// the instruction set at run time.
//
// To add a table: declare the struct, specialise Fill for it beside its kernels (simd.h), and instantiate table()
// there.
#pragma once

#include "simd/instruction_set.h"

namespace vapo_fast {

// Instantiated in baseline.cpp, avx2.cpp and avx512.cpp, each of which is compiled for its own instructions.
namespace baseline {
template <class Table>
const Table& table();
}
#if defined(VAPO_FAST_X86_BUILDS)
namespace avx2 {
template <class Table>
const Table& table();
}
namespace avx512 {
template <class Table>
const Table& table();
}
#endif

// The table that is built for an instruction set, which must be one of usable_instruction_sets().
template <class Table>
const Table& table_for(InstructionSet instruction_set) {
#if defined(VAPO_FAST_X86_BUILDS)
    if (instruction_set == InstructionSet::avx512) return avx512::table<Table>();
    if (instruction_set == InstructionSet::avx2) return avx2::table<Table>();
#else
    (void)instruction_set;  // there is only one
#endif
    return baseline::table<Table>();
}

}  // namespace vapo_fast
