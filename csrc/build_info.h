// What this build is and what the processor it runs on can do.
#pragma once

#include <string>
#include <vector>

namespace vapo_fast {

std::string compiler();
long cpp_standard();                           // the value of __cplusplus, e.g. 201703
std::string architecture();                    // of the build: "x86_64", "aarch64" or "other"
std::vector<std::string> instruction_sets();   // found on this processor at run time, least to most capable

}  // namespace vapo_fast
