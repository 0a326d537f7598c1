// What this build is.
#pragma once

#include <string>

namespace vapo_fast {

std::string compiler();
long cpp_standard();         // the value of __cplusplus, e.g. 201703
std::string architecture();  // of the build: "x86_64", "aarch64" or "other"

}  // namespace vapo_fast
