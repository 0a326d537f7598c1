// Aligned memory, and the arrays of one thread in it.
#pragma once

#include <cstddef>
#include <memory>
#include <new>
#include <utility>

namespace vapo_fast {

// Memory aligned to cache lines; bad_alloc if there is none.
template <class T>
class AlignedBuffer {
public:
    AlignedBuffer() = default;
    explicit AlignedBuffer(std::size_t size)
        : data_(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64}))), size_(size) {}
    T* data() { return data_.get(); }
    const T* data() const { return data_.get(); }
    std::size_t size() const { return size_; }

private:
    struct Free {
        void operator()(T* pointer) const { ::operator delete(pointer, std::align_val_t{64}); }
    };
    std::unique_ptr<T, Free> data_;
    std::size_t size_ = 0;
};

// One allocation that is handed out in pieces, each aligned to 64 bytes and not initialised.
template <class T>
class Storage {
public:
    explicit Storage(std::size_t elements) : buffer_(elements), next_(buffer_.data()) {}

    static std::size_t rounded(std::size_t elements) { return (elements + kUnit - 1) / kUnit * kUnit; }
    T* take(std::size_t elements) { return std::exchange(next_, next_ + rounded(elements)); }

private:
    static constexpr std::size_t kUnit = 64 / sizeof(T);
    AlignedBuffer<T> buffer_;
    T* next_;
};

}  // namespace vapo_fast
