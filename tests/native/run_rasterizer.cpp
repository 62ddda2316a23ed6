// Renders a scene read from the standard input and writes pictures and gradients to the standard output, so that the
// kernels can be tried on processors that the interpreter does not run on. Numbers are raw, in the order below.

#include "rasterize.cpp"

#include <cstdio>

namespace {

std::vector<float> read_floats(size_t count) {
    std::vector<float> values(count);
    if (std::fread(values.data(), sizeof(float), count, stdin) != count) std::exit(2);
    return values;
}

void write(const std::vector<float> &values) { std::fwrite(values.data(), sizeof(float), values.size(), stdout); }

}  // namespace

int main() {
    int64_t sizes[4];
    if (std::fread(sizes, sizeof sizes, 1, stdin) != 1) return 2;
    const size_t images = sizes[0], points = sizes[1], plane = sizes[2] * sizes[3];
    const auto means = read_floats(3 * points), covariances = read_floats(9 * points), opacities = read_floats(points);
    const auto colours = read_floats(3 * points), cameras = read_floats(16 * images);
    const auto blended_gradient = read_floats(images * 4 * plane), alpha_gradient = read_floats(images * plane);
    const Loom4dScene scene = {sizes[0], sizes[1], sizes[2], sizes[3], 2,
                               means.data(), covariances.data(), opacities.data(), colours.data(), cameras.data(),
                               nullptr, 0, 0, 0, 0, 0.1f, 1.0f / 255, 0.999f, 0.01f};
    std::vector<float> blended(images * 4 * plane), alpha(images * plane), median(images * plane);
    const Loom4dPictures pictures = {blended.data(), alpha.data(), median.data()};
    void *state = loom4d_rasterize_forward(&scene, &pictures);
    if (!state) return 3;
    std::vector<float> to_means(3 * points), to_covariances(9 * points), to_opacities(points), to_colours(3 * points);
    Loom4dPictures gradients = {const_cast<float *>(blended_gradient.data()), const_cast<float *>(alpha_gradient.data()),
                                nullptr};
    const Loom4dGradients leaving = {to_means.data(), to_covariances.data(), to_opacities.data(), to_colours.data(),
                                     nullptr};
    if (loom4d_rasterize_backward(state, &scene, &pictures, &gradients, &leaving)) return 4;
    loom4d_rasterize_free(state);
    for (const auto *values : {&blended, &alpha, &median, &to_means, &to_covariances, &to_opacities, &to_colours})
        write(*values);
    return 0;
}
