// Which triangle each sample of a picture sees: a z-buffer over triangles given in pixels and depths.
// The specification is `visible_reference` in sources/render.py; the formulas and their order are the same.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

namespace {

struct Pictures {
    int64_t count, vertices, faces, height, width;
    const double* points;   // (picture, vertex, 3): x, y in pixels, depth
    const int64_t* corners; // (face, 3)
    const double* beyond;   // (picture, height, width): only what lies farther is seen
    int64_t* face;          // (picture, height, width), -1 where none
    double* depth;          // (picture, height, width), FAR where none
    double* weights;        // (picture, height, width, 3), perspective-correct
};

void draw(const Pictures& p, int64_t picture) {
    const int64_t area = p.height * p.width;
    const double* points = p.points + picture * p.vertices * 3;
    const double* beyond = p.beyond + picture * area;
    int64_t* face = p.face + picture * area;
    double* depth = p.depth + picture * area;
    double* weights = p.weights + picture * area * 3;
    for (int64_t f = 0; f < p.faces; ++f) {
        const double *a = points + 3 * p.corners[3 * f], *b = points + 3 * p.corners[3 * f + 1],
                     *c = points + 3 * p.corners[3 * f + 2];
        if (!(a[2] > 0 && b[2] > 0 && c[2] > 0)) continue;  // behind the camera, or not seen from this side
        const double twice = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0]);
        if (!(std::abs(twice) > 1e-12)) continue;
        const double left = std::min({a[0], b[0], c[0]}), right = std::max({a[0], b[0], c[0]});
        const double top = std::min({a[1], b[1], c[1]}), bottom = std::max({a[1], b[1], c[1]});
        if (!(right >= 0 && bottom >= 0 && left <= double(p.width) && top <= double(p.height))) continue;
        const int64_t x0 = int64_t(std::floor(std::max(left - 0.5, 0.0)));
        const int64_t x1 = int64_t(std::ceil(std::min(right - 0.5, double(p.width - 1))));
        const int64_t y0 = int64_t(std::floor(std::max(top - 0.5, 0.0)));
        const int64_t y1 = int64_t(std::ceil(std::min(bottom - 0.5, double(p.height - 1))));
        for (int64_t y = y0; y <= y1; ++y) {
            const double py = double(y) + 0.5;
            for (int64_t x = x0; x <= x1; ++x) {
                const double px = double(x) + 0.5;
                const double u = ((b[0] - px) * (c[1] - py) - (b[1] - py) * (c[0] - px)) / twice;
                const double v = ((c[0] - px) * (a[1] - py) - (c[1] - py) * (a[0] - px)) / twice;
                const double w = 1 - u - v;
                if (u < 0 || v < 0 || w < 0) continue;
                const double wa = u / a[2], wb = v / b[2], wc = w / c[2];
                const double z = 1 / (wa + wb + wc);
                const int64_t i = y * p.width + x;
                if (z >= depth[i] || z <= beyond[i]) continue;
                depth[i] = z, face[i] = f;
                weights[3 * i] = wa * z, weights[3 * i + 1] = wb * z, weights[3 * i + 2] = wc * z;
            }
        }
    }
}

}  // namespace

// sizes: pictures, vertices, faces, height, width, threads. The outputs come in filled with -1, a huge depth and 0.
extern "C" void loom4d_mesh_visible(const int64_t* sizes, const double* points, const int64_t* corners,
                                    const double* beyond, int64_t* face, double* depth, double* weights) {
    const Pictures pictures{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], points,
                            corners,  beyond,   face,     depth,    weights};
    std::atomic<int64_t> next{0};
    auto work = [&] {
        for (int64_t i; (i = next.fetch_add(1)) < pictures.count;) draw(pictures, i);
    };
    std::vector<std::thread> pool;
    for (int64_t i = 1; i < std::min(sizes[5], pictures.count); ++i) pool.emplace_back(work);
    work();
    for (auto& thread : pool) thread.join();
}
