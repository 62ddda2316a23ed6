// What a fit compares pictures by, and its gradients: the fast twin of the tensor code in gaussians/losses.py.
//
// SSIM's window is separable, so each mean is 11 + 11 multiplications per pixel and a plane stays in the cache. The
// window is symmetric and there are zeros outside the picture, so filtering is its own transpose.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LOOM4D_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define LOOM4D_CLONES
#endif

namespace {

constexpr int kWindow = 11, kHalf = kWindow / 2;
constexpr float kC1 = 0.01f * 0.01f, kC2 = 0.03f * 0.03f;

struct Plane {
    int64_t height, width;
    const float *taps;   // kWindow of them
    float *line;         // width + 2 kHalf, zeros at both ends
    float *rows;         // (height + 2 kHalf) x width, zeros above and below
};

// One row across: rows[y] from line.
LOOM4D_CLONES void across(const Plane &plane, int64_t y) {
    const float t0 = plane.taps[0], t1 = plane.taps[1], t2 = plane.taps[2], t3 = plane.taps[3], t4 = plane.taps[4];
    const float t5 = plane.taps[5], *__restrict in = plane.line;
    float *__restrict out = plane.rows + (y + kHalf) * plane.width;
    const int64_t width = plane.width;
    for (int64_t x = 0; x < width; ++x)
        out[x] = t5 * in[x + 5] + t4 * (in[x + 4] + in[x + 6]) + t3 * (in[x + 3] + in[x + 7]) +
                 t2 * (in[x + 2] + in[x + 8]) + t1 * (in[x + 1] + in[x + 9]) + t0 * (in[x] + in[x + 10]);
}

// All columns down: out from rows.
LOOM4D_CLONES void down(const Plane &plane, float *out) {
    const float t0 = plane.taps[0], t1 = plane.taps[1], t2 = plane.taps[2], t3 = plane.taps[3], t4 = plane.taps[4];
    const float t5 = plane.taps[5];
    const int64_t w = plane.width;
    for (int64_t y = 0; y < plane.height; ++y) {
        const float *__restrict in = plane.rows + y * w;
        float *__restrict to = out + y * w;
        for (int64_t x = 0; x < w; ++x)
            to[x] = t5 * in[5 * w + x] + t4 * (in[4 * w + x] + in[6 * w + x]) + t3 * (in[3 * w + x] + in[7 * w + x]) +
                    t2 * (in[2 * w + x] + in[8 * w + x]) + t1 * (in[w + x] + in[9 * w + x]) + t0 * (in[x] + in[10 * w + x]);
    }
}

// Window mean of the plane whose row y `fill` writes to `line`.
template <class Fill> void windowed(const Plane &plane, float *out, Fill fill) {
    for (int64_t y = 0; y < plane.height; ++y) {
        fill(y, plane.line + kHalf);
        across(plane, y);
    }
    down(plane, out);
}

LOOM4D_CLONES void multiply(int64_t count, const float *a, const float *b, float *__restrict out) {
    for (int64_t i = 0; i < count; ++i) out[i] = a[i] * b[i];
}

// From the moments m, q, p of a plane to the map; they are replaced by the map's derivatives with respect to them.
LOOM4D_CLONES void compare(int64_t count, const float *target_mean, const float *target_variance, float *__restrict m,
                           float *__restrict q, float *__restrict p, float *__restrict map) {
    for (int64_t i = 0; i < count; ++i) {
        const float mx = m[i], my = target_mean[i];
        const float a1 = 2 * mx * my + kC1, b1 = mx * mx + my * my + kC1;
        const float a2 = 2 * (p[i] - mx * my) + kC2, b2 = q[i] - mx * mx + target_variance[i] + kC2;
        const float inverse = 1.0f / (b1 * b2), similarity = a1 * a2 * inverse;
        const float dq = -similarity / b2, dp = 2 * a1 * inverse;
        map[i] = similarity;
        m[i] = 2 * my * a2 * inverse - 2 * mx * similarity / b1 - my * dp - 2 * mx * dq;
        q[i] = dq;
        p[i] = dp;
    }
}

LOOM4D_CLONES void combine(int64_t count, const float *x, const float *y, const float *gm, const float *gq, const float *gp,
                           float *__restrict out) {
    for (int64_t i = 0; i < count; ++i) out[i] = gm[i] + 2 * x[i] * gq[i] + y[i] * gp[i];
}

float sign(float value) { return static_cast<float>((value > 0) - (value < 0)); }

// One picture: the weighted absolute differences, and what they are by the rendered values.
LOOM4D_CLONES double absolute(int64_t pixels, const float *rendered, const float *target, const float *background,
                              const float *weights, float colour_share, float alpha_share, float *gradient) {
    const float *ra = rendered + 3 * pixels, *ta = target + 3 * pixels;
    float *ga = gradient + 3 * pixels;
    double total = 0;
    for (int64_t start = 0; start < pixels; start += 1024) {
        const int64_t end = std::min(pixels, start + 1024);
        float sum = 0;
        for (int64_t i = start; i < end; ++i) {
            const float weight = weights ? weights[i] : 1.0f, d = ra[i] - ta[i];
            sum += weight * alpha_share * std::fabs(d);
            ga[i] = weight * alpha_share * sign(d);
        }
        for (int channel = 0; channel < 3; ++channel) {
            const float *r = rendered + channel * pixels, *t = target + channel * pixels, behind = background[channel];
            float *g = gradient + channel * pixels;
            for (int64_t i = start; i < end; ++i) {
                const float weight = (weights ? weights[i] : 1.0f) * colour_share;
                const float d = r[i] - t[i] - (ra[i] - ta[i]) * behind;
                sum += weight * std::fabs(d);
                g[i] = weight * sign(d);
                ga[i] -= behind * g[i];
            }
        }
        total += sum;
    }
    return total;
}

// Runs task(0..count-1), each on one thread, in contiguous parts.
template <class Task> void in_parts(int64_t threads, int64_t count, Task task) {
    const int64_t parts = std::max<int64_t>(1, std::min(threads, count));
    auto part = [&](int64_t which) {
        for (int64_t i = which * count / parts; i < (which + 1) * count / parts; ++i) task(i);
    };
    std::vector<std::thread> others;
    for (int64_t which = 1; which < parts; ++which) others.emplace_back(part, which);
    part(0);
    for (auto &thread : others) thread.join();
}

struct Scratch {
    std::vector<float> line, rows, a, b, c, d, e, f, g;
    Scratch(int64_t height, int64_t width)
        : line(width + 2 * kHalf), rows((height + 2 * kHalf) * width), a(height * width), b(height * width), c(height * width),
          d(height * width), e(height * width), f(height * width), g(height * width) {}
};

// The part of a plane outside of which both pictures are 0 so far around that the map is 1 and its gradient 0.
struct Part {
    int64_t top, bottom, left, right, width;  // width of the whole plane
    int64_t rows() const { return bottom - top; }
    int64_t columns() const { return right - left; }

    void gather(const float *plane, float *out) const {
        for (int64_t y = top; y < bottom; ++y, out += columns())
            std::memcpy(out, plane + y * width + left, columns() * sizeof(float));
    }
    void scatter(const float *in, float *plane) const {
        for (int64_t y = top; y < bottom; ++y, in += columns())
            std::memcpy(plane + y * width + left, in, columns() * sizeof(float));
    }
};

LOOM4D_CLONES bool any(int64_t count, const float *a, const float *b) {
    uint32_t bits = 0;
    for (int64_t i = 0; i < count; ++i) {
        uint32_t one, other;
        std::memcpy(&one, a + i, sizeof one);
        std::memcpy(&other, b + i, sizeof other);
        bits |= one | other;
    }
    return bits != 0;
}

Part part_of(int64_t height, int64_t width, const float *x, const float *y) {
    int64_t top = 0, bottom = height, left = width, right = 0;
    while (top < bottom && !any(width, x + top * width, y + top * width)) ++top;
    while (bottom > top && !any(width, x + (bottom - 1) * width, y + (bottom - 1) * width)) --bottom;
    for (int64_t row = top; row < bottom; ++row) {
        const float *a = x + row * width, *b = y + row * width;
        int64_t column = 0;
        while (column < left && a[column] == 0 && b[column] == 0) ++column;
        left = std::min(left, column);
        column = width;
        while (column > right && a[column - 1] == 0 && b[column - 1] == 0) --column;
        right = std::max(right, column);
    }
    if (top >= bottom || left >= right) return {0, 0, 0, 0, width};
    return {std::max<int64_t>(top - 2 * kHalf, 0), std::min(bottom + 2 * kHalf, height), std::max<int64_t>(left - 2 * kHalf, 0),
            std::min(right + 2 * kHalf, width), width};
}

}  // namespace

extern "C" {

// SSIM of `planes` pairs at every pixel. Where `partials` is not null it receives, plane by plane, the derivatives of the
// map with respect to the window means of x, x^2 and x y, as far as they matter.
void loom4d_ssim(int64_t planes, int64_t height, int64_t width, int64_t threads, const float *taps, const float *rendered,
                 const float *target, const float *target_mean, const float *target_variance, float *map, float *partials) {
    const int64_t size = height * width;
    in_parts(threads, planes, [&](int64_t index) {
        const Part part = part_of(height, width, rendered + index * size, target + index * size);
        std::fill(map + index * size, map + (index + 1) * size, 1.0f);
        if (part.rows() == 0) return;
        const int64_t w = part.columns(), count = part.rows() * w;
        Scratch scratch(part.rows(), w);
        const Plane plane{part.rows(), w, taps, scratch.line.data(), scratch.rows.data()};
        float *x = scratch.a.data(), *y = scratch.b.data(), *mean = scratch.c.data(), *variance = scratch.d.data();
        float *q = scratch.e.data(), *p = scratch.f.data(), *m = scratch.g.data();
        part.gather(rendered + index * size, x), part.gather(target + index * size, y);
        part.gather(target_mean + index * size, mean), part.gather(target_variance + index * size, variance);
        windowed(plane, m, [&](int64_t row, float *line) { std::memcpy(line, x + row * w, w * sizeof(float)); });
        windowed(plane, q, [&](int64_t row, float *line) { multiply(w, x + row * w, x + row * w, line); });
        windowed(plane, p, [&](int64_t row, float *line) { multiply(w, x + row * w, y + row * w, line); });
        compare(count, mean, variance, m, q, p, x);
        part.scatter(x, map + index * size);
        if (!partials) return;
        part.scatter(m, partials + 3 * index * size);
        part.scatter(q, partials + (3 * index + 1) * size);
        part.scatter(p, partials + (3 * index + 2) * size);
    });
}

// The gradient with respect to the rendered planes of sum(gradient * map); `out` comes in as zeros.
void loom4d_ssim_backward(int64_t planes, int64_t height, int64_t width, int64_t threads, const float *taps,
                          const float *rendered, const float *target, const float *partials, const float *gradient, float *out) {
    const int64_t size = height * width;
    in_parts(threads, planes, [&](int64_t index) {
        const float *x = rendered + index * size, *y = target + index * size, *g = gradient + index * size;
        const Part part = part_of(height, width, x, y);
        if (part.rows() == 0) return;
        const int64_t w = part.columns();
        Scratch scratch(part.rows(), w);
        const Plane plane{part.rows(), w, taps, scratch.line.data(), scratch.rows.data()};
        float *means[3] = {scratch.a.data(), scratch.b.data(), scratch.c.data()};
        for (int which = 0; which < 3; ++which) {
            const float *partial = partials + (3 * index + which) * size;
            windowed(plane, means[which], [&](int64_t row, float *line) {
                const int64_t at = (part.top + row) * width + part.left;
                multiply(w, g + at, partial + at, line);
            });
        }
        part.gather(x, scratch.d.data()), part.gather(y, scratch.e.data());
        combine(part.rows() * w, scratch.d.data(), scratch.e.data(), means[0], means[1], means[2], scratch.f.data());
        part.scatter(scratch.f.data(), out + index * size);
    });
}

// For each picture (4, pixels) of premultiplied RGBA: sum over pixels of weight * (colour_share * sum |difference over the
// background| + alpha_share * |difference of alpha|), and its gradient with respect to the rendered picture.
void loom4d_absolute(int64_t pictures, int64_t pixels, int64_t threads, const float *rendered, const float *target,
                     const float *background, const float *weights, float colour_share, float alpha_share, float *sums,
                     float *gradient) {
    in_parts(threads, pictures, [&](int64_t index) {
        const int64_t at = 4 * index * pixels;
        sums[index] = static_cast<float>(absolute(pixels, rendered + at, target + at, background + 3 * index,
                                                  weights ? weights + index * pixels : nullptr, colour_share, alpha_share,
                                                  gradient + at));
    });
}
}
