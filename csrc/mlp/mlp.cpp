#include "mlp/mlp.h"

#include <algorithm>
#include <cstring>

namespace vapo_fast {

namespace {

int panel_count(int out, int lanes) { return (out + lanes - 1) / lanes; }

std::size_t panels_size(int out, int in, int lanes) {
    return static_cast<std::size_t>(panel_count(out, lanes)) * static_cast<std::size_t>(in) *
           static_cast<std::size_t>(lanes);
}

// Element (o, k) of the matrix is source[o * out_stride + k * in_stride].
template <class T>
Panels<T> pack(const T* source, int out, int in, std::ptrdiff_t out_stride, std::ptrdiff_t in_stride, int lanes,
               T*& free) {
    const Panels<T> panels{free, in, panel_count(out, lanes)};
    for (int first = 0; first < out; first += lanes) {
        const int used = std::min(lanes, out - first);
        for (int k = 0; k < in; ++k, free += lanes) {
            const T* column = source + first * out_stride + k * in_stride;
            for (int lane = 0; lane < used; ++lane) free[lane] = column[lane * out_stride];
            std::fill(free + used, free + lanes, T(0));
        }
    }
    return panels;
}

template <class T>
const T* pad(const T* source, int size, int lanes, T*& free) {
    const T* start = free;
    const int padded = panel_count(size, lanes) * lanes;
    std::copy(source, source + size, free);
    std::fill(free + size, free + padded, T(0));
    free += padded;
    return start;
}

// Visits each parameter array and its size in a fixed order.
template <class T, class Visit>
void each_array(const MlpShape& shape, const MlpWeights<T>& weights, Visit visit) {
    for (int l = 0; l < shape.layers(); ++l) {
        const auto i = static_cast<std::size_t>(l);
        visit(weights.weight[i], static_cast<std::size_t>(shape.size(l + 1)) * static_cast<std::size_t>(shape.size(l)));
        visit(weights.bias[i], static_cast<std::size_t>(shape.size(l + 1)));
    }
    visit(weights.output, static_cast<std::size_t>(shape.size(shape.layers())));
    visit(weights.frequencies, static_cast<std::size_t>(shape.features) * static_cast<std::size_t>(shape.inputs()));
}

}  // namespace

std::int64_t MlpShape::parameters() const {
    std::int64_t total = size(layers());
    for (int l = 0; l < layers(); ++l) total += static_cast<std::int64_t>(size(l + 1)) * (size(l) + 1);
    return total;
}

template <class T>
PackedMlp<T>::PackedMlp(const MlpShape& shape, const MlpWeights<T>& weights, int lanes) : shape_(shape), lanes_(lanes) {
    const int layers = shape_.layers(), features = shape_.features, inputs = shape_.inputs(), d = shape_.dimension;
    std::size_t raw = 0, packed = 0;
    each_array(shape_, weights, [&](const T*, std::size_t size) { raw += size; });
    for (int l = 0; l < layers; ++l) {
        const int out = shape_.size(l + 1), in = shape_.size(l), adjoint = l == 0 && features == 0 ? d : in;
        packed += panels_size(out, in, lanes) + panels_size(adjoint, out, lanes) + panels_size(out, 1, lanes);
    }
    packed += panels_size(shape_.size(layers), 1, lanes) + panels_size(features, inputs, lanes) +
              panels_size(d, features, lanes);
    raw_ = AlignedBuffer<T>(raw);
    packed_ = AlignedBuffer<T>(packed);

    T* copy = raw_.data();
    each_array(shape_, weights, [&](const T* source, std::size_t size) {
        if (size != 0) std::memcpy(copy, source, size * sizeof(T));
        copy += size;
    });
    T* free = packed_.data();
    for (int l = 0; l < layers; ++l) {
        const int out = shape_.size(l + 1), in = shape_.size(l), adjoint = l == 0 && features == 0 ? d : in;
        const T* weight = weights.weight[static_cast<std::size_t>(l)];
        forward_.push_back(pack(weight, out, in, in, 1, lanes, free));
        backward_.push_back(pack(weight, adjoint, out, 1, in, lanes, free));
        bias_.push_back(pad(weights.bias[static_cast<std::size_t>(l)], out, lanes, free));
    }
    output_ = pad(weights.output, shape_.size(layers), lanes, free);
    frequencies_ = pack(weights.frequencies, features, inputs, inputs, 1, lanes, free);
    frequencies_transposed_ = pack(weights.frequencies, d, features, 1, inputs, lanes, free);
}

template <class T>
bool PackedMlp<T>::holds(const MlpWeights<T>& weights) const {
    const T* kept = raw_.data();
    bool same = true;
    each_array(shape_, weights, [&](const T* source, std::size_t size) {
        same = same && (size == 0 || std::memcmp(kept, source, size * sizeof(T)) == 0);
        kept += size;
    });
    return same;
}

template <class T>
MlpGradient<T>::MlpGradient(const PackedMlp<T>& mlp) {
    const MlpShape& shape = mlp.shape();
    const auto padded = [&](int columns) {
        return static_cast<std::size_t>((columns + mlp.lanes() - 1) / mlp.lanes() * mlp.lanes());
    };
    for (int l = 0; l < shape.layers(); ++l) {
        stride.push_back(mlp.stride(shape.size(l)));
        weight.push_back(size);
        size += static_cast<std::size_t>(shape.size(l + 1)) * static_cast<std::size_t>(stride.back());
        bias.push_back(size);
        size += padded(shape.size(l + 1));
    }
    output = size;
    size += padded(shape.size(shape.layers()));
}

template class PackedMlp<float>;
template class PackedMlp<double>;
template struct MlpGradient<float>;
template struct MlpGradient<double>;

}  // namespace vapo_fast
