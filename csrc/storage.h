// Memory for the arrays of one thread.
#pragma once

#include <cstddef>
#include <new>
#include <utility>

namespace vapo_fast {

// Elements aligned to 64 bytes, handed out in pieces that are aligned alike; none of it is initialised.
template <class T>
class Storage {
public:
    explicit Storage(std::size_t elements)
        : data_(static_cast<T*>(::operator new(elements * sizeof(T), std::align_val_t{64}))), next_(data_) {}
    ~Storage() { ::operator delete(data_, std::align_val_t{64}); }
    Storage(const Storage&) = delete;
    Storage& operator=(const Storage&) = delete;

    static std::size_t rounded(std::size_t elements) { return (elements + kUnit - 1) / kUnit * kUnit; }
    T* take(std::size_t elements) { return std::exchange(next_, next_ + rounded(elements)); }

private:
    static constexpr std::size_t kUnit = 64 / sizeof(T);
    T* data_;
    T* next_;
};

}  // namespace vapo_fast
