// An MLP potential as the kernels see it: shapes, path constants, and weights packed for the products of both sweeps.
//
// With z = x/sqrt(S), the noise position p and features of y = (z, p), f = w . sigma(W_L ... sigma(W_1 y_0 + c_1) ...),
// Phi = A/2 |x|^2 + C f; A, C and S depend on t (vapo_fast/potentials/gauge.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "simd/activation.h"
#include "simd/instruction_set.h"
#include "core/storage.h"

namespace vapo_fast {

enum class Path { data, linear };

inline constexpr int most_layers = 64;  // what the kernels have room for

// The constants of a potential: what training does not change.
struct MlpShape {
    int dimension = 0;  // D
    bool time_dependent = true;
    int features = 0;         // rows of the frequency matrix
    std::vector<int> widths;  // hidden layers, at least one
    Activation activation = Activation::silu;
    Path path = Path::data;
    double omega = 1.0;
    double data_scale = 1.0;
    double log_beta_first = 0.0;  // ln beta at both ends of the path, which the noise position is measured between
    double log_beta_last = 0.0;

    int inputs() const { return dimension + (time_dependent ? 1 : 0); }
    int first_size() const { return inputs() + 2 * features; }
    int layers() const { return static_cast<int>(widths.size()); }
    // Size of layer l's output; layer 0 is the input with its features.
    int size(int layer) const { return layer == 0 ? first_size() : widths[static_cast<std::size_t>(layer) - 1]; }
    std::int64_t parameters() const;  // of the layers, in the order of MlpGradient
};

// Views of a potential's parameters, row-major as PyTorch keeps them.
template <class T>
struct MlpWeights {
    std::vector<const T*> weight;    // layer l: [size(l + 1)][size(l)]
    std::vector<const T*> bias;      // layer l: [size(l + 1)]
    const T* output = nullptr;       // [size(layers)]
    const T* frequencies = nullptr;  // [features][inputs]
};

// A matrix (out, in) in panels of one register's width: panel p holds, for each input k, outputs p lanes ... . Outputs
// that pad the last panel have zero weights.
template <class T>
struct Panels {
    const T* data = nullptr;
    int in = 0;
    int count = 0;
};

// The weights of one moment, packed for one instruction set. Immutable.
template <class T>
class PackedMlp {
public:
    PackedMlp(const MlpShape& shape, const MlpWeights<T>& weights, int lanes);
    bool holds(const MlpWeights<T>& weights) const;  // whether these are, byte for byte, the weights that were packed

    const MlpShape& shape() const { return shape_; }
    int lanes() const { return lanes_; }
    // Row stride of an array with `size` columns: whole registers, and one more so that rows of a power of two do not
    // meet in the same lines of the cache.
    int stride(int size) const { return (size + lanes_ - 1) / lanes_ * lanes_ + 64 / static_cast<int>(sizeof(T)); }

    Panels<T> forward(int layer) const { return forward_[static_cast<std::size_t>(layer)]; }
    // Transposed. Layer 0 has outputs for all features if there are any, else for x alone: nothing needs d/dp.
    Panels<T> backward(int layer) const { return backward_[static_cast<std::size_t>(layer)]; }
    Panels<T> frequencies() const { return frequencies_; }
    Panels<T> frequencies_transposed() const { return frequencies_transposed_; }
    const T* bias(int layer) const { return bias_[static_cast<std::size_t>(layer)]; }  // padded with zeros
    const T* output() const { return output_; }                                        // padded with zeros

private:
    MlpShape shape_;
    int lanes_;
    AlignedBuffer<T> raw_;
    AlignedBuffer<T> packed_;
    std::vector<Panels<T>> forward_, backward_;
    Panels<T> frequencies_, frequencies_transposed_;
    std::vector<const T*> bias_;
    const T* output_ = nullptr;
};

// Where a layer's gradients lie in one padded array: weights [size(l+1)][stride(size(l))], bias and output padded.
template <class T>
struct MlpGradient {
    explicit MlpGradient(const PackedMlp<T>& mlp);
    std::vector<std::size_t> weight, bias;  // offsets
    std::vector<int> stride;                // of each weight's rows
    std::size_t output = 0;
    std::size_t size = 0;
};

extern template class PackedMlp<float>;
extern template class PackedMlp<double>;

}  // namespace vapo_fast
