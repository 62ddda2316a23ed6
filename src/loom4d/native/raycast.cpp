// Ray casting of affine images of unit solids (ball, cube, capped cone), tile by tile.
// The specification is `reference` in sources/procedural/raycast.py; the formulas and their order are the same.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define LOOM4D_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define LOOM4D_CLONES
#endif

namespace {

constexpr int TILE = 8;      // pixels along a tile's side
constexpr int BLOCK = 512;   // samples treated together
constexpr float FAR = 1e30f;

enum Shape { ELLIPSOID = 0, BOX = 1, CONE = 2 };
enum Pattern { PLAIN = 0, STRIPES = 1, SPOTS = 2, CHECKER = 3, GRADIENT = 4, TWO_TONE = 5 };

struct Scene {
    int cells, parts, height, width, samples;
    const float* rays;             // (cell, part, 12): camera in the unit solid's frame, then direction = d0 + u du + v dv
    const float* image_from_part;  // (cell, part, 3, 4)
    const float* part_from_world;  // (cell, part, 3, 3)
    const float* paint;            // (part, 12): taper, first colour, second colour, wave vector, phase, unused
    const int32_t* kinds;          // (part, 2): Shape, Pattern
    const float* light;            // (3)
    const float* offsets;          // (sample, 2): x, y inside a pixel
    float* image;                  // (cell, 4, height, width)
};

struct Bounds {
    float left, right, top, bottom;
};

struct Block {
    alignas(32) float u[BLOCK], v[BLOCK], depth[BLOCK];
    alignas(32) int32_t part[BLOCK];
};

// The part's rectangle in the image: corners of its box, tightened for balls by the exact outline.
Bounds bounds(const float* m, int shape) {
    Bounds b{FAR, -FAR, FAR, -FAR};
    if (shape == ELLIPSOID) {
        auto dual = [&](int i, int j) {
            const float *a = m + 4 * i, *c = m + 4 * j;
            return double(a[0]) * c[0] + double(a[1]) * c[1] + double(a[2]) * c[2] - double(a[3]) * c[3];
        };
        const double ww = dual(2, 2);
        if (ww >= 0) return {-FAR, FAR, -FAR, FAR};
        auto range = [&](int i, float& low, float& high) {
            const double iw = dual(i, 2), root = std::sqrt(std::max(iw * iw - dual(i, i) * ww, 0.0));
            low = float((iw + root) / ww), high = float((iw - root) / ww);
        };
        range(0, b.left, b.right), range(1, b.top, b.bottom);
        return b;
    }
    for (int corner = 0; corner < 8; corner++) {
        const float x = corner & 1 ? 1.f : -1.f, y = corner & 2 ? 1.f : -1.f, z = corner & 4 ? 1.f : -1.f;
        float p[3];
        for (int i = 0; i < 3; i++) p[i] = m[4 * i] * x + m[4 * i + 1] * y + m[4 * i + 2] * z + m[4 * i + 3];
        if (p[2] <= 1e-4f) return {-FAR, FAR, -FAR, FAR};
        b.left = std::min(b.left, p[0] / p[2]), b.right = std::max(b.right, p[0] / p[2]);
        b.top = std::min(b.top, p[1] / p[2]), b.bottom = std::max(b.bottom, p[1] / p[2]);
    }
    return b;
}

// A ray in a unit solid's frame: the point nearest to the centre, the unit direction, and depth = near + s * step.
struct Local {
    float px, py, pz, ex, ey, ez, near, step;
};

inline Local local_ray(const float* r, float u, float v) {
    Local l;
    const float dx = r[3] + u * r[6] + v * r[9], dy = r[4] + u * r[7] + v * r[10], dz = r[5] + u * r[8] + v * r[11];
    l.step = 1.f / std::sqrt(dx * dx + dy * dy + dz * dz);
    l.ex = dx * l.step, l.ey = dy * l.step, l.ez = dz * l.step;
    const float s = -(r[0] * l.ex + r[1] * l.ey + r[2] * l.ez);
    l.px = r[0] + s * l.ex, l.py = r[1] + s * l.ey, l.pz = r[2] + s * l.ez;
    l.near = s * l.step;
    return l;
}

inline float guarded(float x) { return std::fabs(x) < 1e-9f ? 1e-9f : x; }

inline float hit_ball(const Local& l) {
    const float rest = 1.f - (l.px * l.px + l.py * l.py + l.pz * l.pz);
    const float depth = l.near - std::sqrt(std::max(rest, 0.f)) * l.step;
    return rest > 0.f ? depth : FAR;
}

inline float hit_box(const Local& l) {
    const float ix = 1.f / guarded(l.ex), iy = 1.f / guarded(l.ey), iz = 1.f / guarded(l.ez);
    const float cx = -l.px * ix, cy = -l.py * iy, cz = -l.pz * iz;
    const float hx = std::fabs(ix), hy = std::fabs(iy), hz = std::fabs(iz);
    const float enter = std::max(std::max(cx - hx, cy - hy), cz - hz);
    const float leave = std::min(std::min(cx + hx, cy + hy), cz + hz);
    return enter < leave ? l.near + enter * l.step : FAR;
}

inline float hit_cone(const Local& l, float taper) {
    const float iy = 1.f / guarded(l.ey), cy = -l.py * iy, hy = std::fabs(iy);
    const float reach = 1.4143f;  // of the unit cylinder's corners
    const float enter = std::max(cy - hy, -reach), leave = std::min(cy + hy, reach);
    const float ox = l.px + enter * l.ex, oy = l.py + enter * l.ey, oz = l.pz + enter * l.ez;
    const float slope = 0.5f * (taper - 1.f), radius = 0.5f * (taper + 1.f) + slope * oy;
    const float a = l.ex * l.ex + l.ez * l.ez - slope * slope * l.ey * l.ey;
    const float b = ox * l.ex + oz * l.ez - slope * l.ey * radius;
    const float c = ox * ox + oz * oz - radius * radius;
    const float square = b * b - a * c, root = std::sqrt(std::max(square, 0.f));
    const float inward = c / (root - b + 1e-20f);            // b < 0: no cancellation
    const float outward = (-b - root) / (a < 0.f ? a : -1e-20f);  // b >= 0: only a steep ray (a < 0) still enters
    const bool steep = b >= 0.f;
    float s = steep ? outward : inward;
    const bool side = square > 0.f && (!steep || a < 0.f) && s < leave - enter;
    s = c <= 0.f ? 0.f : (side ? s : FAR);  // c <= 0: through the cap
    return enter < leave && s < FAR ? l.near + (enter + s) * l.step : FAR;
}

template <int SHAPE>
inline void cast(Block& block, int count, const float* r, float taper, int part) {
    for (int i = 0; i < count; i++) {
        const Local l = local_ray(r, block.u[i], block.v[i]);
        const float t = SHAPE == ELLIPSOID ? hit_ball(l) : SHAPE == BOX ? hit_box(l) : hit_cone(l, taper);
        const bool nearer = t < block.depth[i];
        block.depth[i] = nearer ? t : block.depth[i];
        block.part[i] = nearer ? part : block.part[i];
    }
}

inline float step_up(float x) {  // 0 below 0, 1 above 1, smooth between
    x = std::min(std::max(x, 0.f), 1.f);
    return x * x * (3.f - 2.f * x);
}

inline float mix_weight(int pattern, const float* k, float x, float y, float z) {
    constexpr float PI = 3.14159265358979f;
    const float along = k[0] * x + k[1] * y + k[2] * z + k[3];
    switch (pattern) {
        case STRIPES: return step_up(0.5f + 2.5f * std::sin(PI * along));
        case SPOTS:
            return step_up(2.f * (std::cos(PI * (k[0] * x + k[3])) + std::cos(PI * (k[1] * y + k[3])) +
                                  std::cos(PI * (k[2] * z + k[3]))) - 1.5f);
        case CHECKER:
            return step_up(0.5f + 4.f * std::sin(PI * (k[0] * x + k[3])) * std::sin(PI * (k[1] * y + k[3])) *
                                      std::sin(PI * (k[2] * z + k[3])));
        case GRADIENT: return step_up(0.5f + 0.5f * along);
        case TWO_TONE: return step_up(0.5f + 8.f * along);
        default: return 0.f;
    }
}

// Colour of the part where the ray (u, v) meets it at the given depth.
inline void shade(const Scene& scene, int cell, int part, float u, float v, float depth, float* rgb) {
    const size_t index = size_t(cell) * scene.parts + part;
    const float* paint = scene.paint + 12 * part;
    const int shape = scene.kinds[2 * part], pattern = scene.kinds[2 * part + 1];
    const Local l = local_ray(scene.rays + 12 * index, u, v);
    const float s = (depth - l.near) / l.step;
    const float x = l.px + s * l.ex, y = l.py + s * l.ey, z = l.pz + s * l.ez;
    float nx = x, ny = y, nz = z;
    if (shape == BOX) {
        const float ax = std::fabs(x), ay = std::fabs(y), az = std::fabs(z);
        const bool by_x = ax >= ay && ax >= az, by_y = !by_x && ay >= az;
        nx = by_x ? x : 0.f, ny = by_y ? y : 0.f, nz = by_x || by_y ? 0.f : z;
    } else if (shape == CONE) {
        const float slope = 0.5f * (paint[0] - 1.f), radius = 0.5f * (paint[0] + 1.f) + slope * y;
        const bool cap = std::fabs(y) > 0.9995f && x * x + z * z < 0.998f * radius * radius;
        nx = cap ? 0.f : x, ny = cap ? y : -slope * radius, nz = cap ? 0.f : z;
    }
    const float* m = scene.part_from_world + 9 * index;
    float wx = m[0] * nx + m[3] * ny + m[6] * nz, wy = m[1] * nx + m[4] * ny + m[7] * nz;
    float wz = m[2] * nx + m[5] * ny + m[8] * nz;
    const float size = 1.f / std::sqrt(wx * wx + wy * wy + wz * wz + 1e-20f);
    const float facing = (wx * scene.light[0] + wy * scene.light[1] + wz * scene.light[2]) * size;
    const float wrapped = 0.5f + 0.5f * facing;
    const float shine = 0.57f + 0.11f * wy * size + 0.52f * wrapped * wrapped;
    const float weight = mix_weight(pattern, paint + 7, x, y, z);
    for (int c = 0; c < 3; c++) {
        const float colour = paint[1 + c] + weight * (paint[4 + c] - paint[1 + c]);
        rgb[c] = std::min(std::max(colour * shine, 0.f), 1.f);
    }
}

LOOM4D_CLONES
void render_cell(const Scene& scene, int cell, Block& block, std::vector<Bounds>& boxes) {
    const int height = scene.height, width = scene.width, samples = scene.samples;
    for (int part = 0; part < scene.parts; part++)
        boxes[part] = bounds(scene.image_from_part + 12 * (size_t(cell) * scene.parts + part), scene.kinds[2 * part]);
    float* image = scene.image + size_t(cell) * 4 * height * width;
    const size_t plane = size_t(height) * width;
    const int side = std::max(1, std::min(TILE, int(std::sqrt(float(BLOCK / samples)))));
    for (int top = 0; top < height; top += side)
        for (int left = 0; left < width; left += side) {
            const int bottom = std::min(top + side, height), right = std::min(left + side, width);
            const float u0 = float(left) / width, u1 = float(right) / width;
            const float v0 = float(top) / height, v1 = float(bottom) / height;
            int count = 0;
            bool ready = false;
            for (int part = 0; part < scene.parts; part++) {
                const Bounds& b = boxes[part];
                if (b.right < u0 || b.left > u1 || b.bottom < v0 || b.top > v1) continue;
                if (!ready) {
                    ready = true;
                    for (int y = top; y < bottom; y++)
                        for (int x = left; x < right; x++)
                            for (int s = 0; s < samples; s++, count++) {
                                block.u[count] = (x + scene.offsets[2 * s]) / width;
                                block.v[count] = (y + scene.offsets[2 * s + 1]) / height;
                                block.depth[count] = FAR, block.part[count] = -1;
                            }
                }
                const float* r = scene.rays + 12 * (size_t(cell) * scene.parts + part);
                const float taper = scene.paint[12 * part];
                switch (scene.kinds[2 * part]) {
                    case ELLIPSOID: cast<ELLIPSOID>(block, count, r, taper, part); break;
                    case BOX: cast<BOX>(block, count, r, taper, part); break;
                    default: cast<CONE>(block, count, r, taper, part); break;
                }
            }
            if (!ready) continue;  // the caller's zeros stand
            count = 0;
            for (int y = top; y < bottom; y++)
                for (int x = left; x < right; x++) {
                    float sum[3] = {0, 0, 0}, rgb[3];
                    int hits = 0;
                    for (int s = 0; s < samples; s++, count++) {
                        if (block.part[count] < 0) continue;
                        shade(scene, cell, block.part[count], block.u[count], block.v[count], block.depth[count], rgb);
                        hits++;
                        for (int c = 0; c < 3; c++) sum[c] += rgb[c];
                    }
                    if (hits == 0) continue;
                    float* pixel = image + size_t(y) * width + x;
                    for (int c = 0; c < 3; c++) pixel[c * plane] = sum[c] / hits;
                    pixel[3 * plane] = float(hits) / samples;
                }
        }
}

}  // namespace

// Renders straight-alpha RGBA into `image`, which must hold zeros. sizes: cells, parts, height, width, samples (at most
// 512), threads (0: one per core).
extern "C" void loom4d_raycast(const int32_t* sizes, const float* rays, const float* image_from_part,
                               const float* part_from_world, const float* paint, const int32_t* kinds,
                               const float* light, const float* offsets, float* image) {
    const Scene scene{sizes[0],        sizes[1], sizes[2], sizes[3], sizes[4], rays,
                      image_from_part, part_from_world, paint, kinds, light, offsets, image};
    std::atomic<int> next{0};
    auto work = [&] {
        Block block;
        std::vector<Bounds> boxes(scene.parts);
        for (int cell = next++; cell < scene.cells; cell = next++) render_cell(scene, cell, block, boxes);
    };
    int threads = sizes[5] > 0 ? sizes[5] : int(std::max(1u, std::thread::hardware_concurrency()));
    threads = std::min(threads, scene.cells);
    std::vector<std::thread> pool;
    for (int i = 1; i < threads; i++) pool.emplace_back(work);
    work();
    for (auto& thread : pool) thread.join();
}
