// A test is a function that throws; main runs them all and names those that failed.
#pragma once

#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#define CHECK(condition)                                                                                        \
    do {                                                                                                        \
        if (!(condition))                                                                                       \
            throw std::runtime_error(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " #condition); \
    } while (false)

namespace vapo_fast {
namespace tests {

struct Test {
    const char* name;
    void (*run)();
};

template <std::size_t N>
int run_all(const Test (&tests)[N]) {
    int failed = 0;
    for (const Test& test : tests) {
        try {
            test.run();
            std::printf("ok      %s\n", test.name);
        } catch (const std::exception& error) {
            ++failed;
            std::printf("FAILED  %s: %s\n", test.name, error.what());
        }
        std::fflush(stdout);
    }
    return failed == 0 ? 0 : 1;
}

}  // namespace tests
}  // namespace vapo_fast
