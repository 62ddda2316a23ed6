// Differentiable rasterisation of anisotropic Gaussians on CPU: the fast twin of rasterize/reference.py.
//
// Images are independent. For each: project, sort by depth, list the Gaussians that reach each tile of 8 x 8 pixels (two
// rows of a tile are one 512-bit register), blend front to back. The backward pass also runs front to back: with the prefix sum
// S_i = sum_{j<=i} w_j (c_j . g) of the blended sum, dL/dalpha_i = T_i (c_i . g) - (S_total - S_i) / (1 - alpha_i), so
// nothing is stored per pixel but the picture. Each (Gaussian, tile) pair owns a slot for its gradients; slots are
// summed in a fixed order, so the result does not depend on the number of threads. What a call leaves is kept for the next
// one: fresh memory costs a page fault for every 4 kB, which was a seventh of a fit's rendering.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define LOOM4D_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#pragma GCC diagnostic ignored "-Wpsabi"  // vectors are passed between inlined functions only
#else
#define LOOM4D_CLONES
#endif

extern "C" {

// Mirrors `Scene` in cpu.py. Strides count floats from one image to the next; 0 shares the field among all images.
struct Loom4dScene {
    int64_t images, points, height, width, threads;
    const float *means, *covariances, *opacities, *colours, *cameras, *offsets;
    int64_t means_stride, covariances_stride, opacities_stride, colours_stride;
    float blur, cut, cap, near_plane;
};

struct Loom4dPictures {  // premultiplied (image, 4, H, W) is red, green, blue, alpha; weighted depth and median (image, H, W)
    float *premultiplied, *depth, *median;
    uint8_t *visible;  // (image, point), 1 for every one that was drawn
};

struct Loom4dGradients {  // shaped as the fields of the scene they belong to
    float *means, *covariances, *opacities, *colours, *offsets;
};
}

namespace {

constexpr int kTile = 8, kLanes = 16, kVectors = kTile * kTile / kLanes, kSlot = 10;
using Lanes = float __attribute__((vector_size(kLanes * sizeof(float))));  // two rows of a tile
using Bits = int32_t __attribute__((vector_size(kLanes * sizeof(int32_t))));
constexpr Lanes kColumn = {0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7}, kRow = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1};
constexpr float kOpaque = 1e-6f;  // a tile ends when no pixel lets more light through than this
constexpr float kLog2E = 1.44269504088896340736f;

struct Splat {  // log2 alpha(dx, dy) = log2_opacity - (xx dx^2 + xy dx dy + yy dy^2)
    float x, y, xx, xy, yy, log2_opacity, red, green, blue, depth;
    int16_t top, bottom;  // rows that it may touch
    int32_t point;
};

struct Entry {
    uint32_t splat, slot;
};

struct Box {
    int left, right, top, bottom;  // pixels, end exclusive; empty boxes are invisible
};

struct Scratch {                         // of `prepare` alone
    std::vector<Splat> found;
    std::vector<Box> boxes;
    std::vector<uint64_t> keys, other;
    std::vector<uint32_t> reached;       // tiles of the nearest splat, of the next ...
};

struct Image {
    Scratch scratch;
    std::vector<Splat> splats;           // visible ones, nearest first
    std::vector<uint32_t> first_slot;    // point -> its first slot; one more at the end
    std::vector<uint32_t> tile_start;    // tile -> first entry; one more at the end
    std::vector<uint32_t> tile_end;      // tile -> end of the entries that were blended
    std::vector<Entry> entries;
    std::unique_ptr<float[]> slots;      // kSlot gradients for each entry; every tile writes all of its own
    size_t slots_room = 0;
};

struct State {
    std::vector<Image> images;  // the first `count` are in use
    int64_t count = 0;
};

// Finished states with their memory, for whoever comes next. Nobody waits: where another thread is at the pool, memory is
// taken from the system, or given back to it.
constexpr size_t kPooled = 2, kPooledBytes = size_t{1} << 27;
std::atomic_flag pool_in_use = ATOMIC_FLAG_INIT;

std::vector<std::unique_ptr<State>> &pool() {
    static auto &states = *new std::vector<std::unique_ptr<State>>;  // outlives whatever ends late
    return states;
}

size_t bytes_of(const State &state) {
    size_t total = 0;
    for (const Image &image : state.images) {
        const Scratch &scratch = image.scratch;
        total += (image.splats.capacity() + scratch.found.capacity()) * sizeof(Splat) + image.slots_room * sizeof(float) +
                 image.entries.capacity() * sizeof(Entry) + scratch.boxes.capacity() * sizeof(Box) +
                 (scratch.keys.capacity() + scratch.other.capacity()) * sizeof(uint64_t) +
                 (scratch.reached.capacity() + image.first_slot.capacity() + image.tile_start.capacity() +
                  image.tile_end.capacity()) * sizeof(uint32_t);
    }
    return total;
}

std::unique_ptr<State> taken() {
    std::unique_ptr<State> state;
    if (!pool_in_use.test_and_set(std::memory_order_acquire)) {
        if (!pool().empty()) state = std::move(pool().back()), pool().pop_back();
        pool_in_use.clear(std::memory_order_release);
    }
    return state ? std::move(state) : std::make_unique<State>();
}

void given_back(std::unique_ptr<State> state) {
    if (bytes_of(*state) > kPooledBytes || pool_in_use.test_and_set(std::memory_order_acquire)) return;
    if (pool().capacity() < kPooled) pool().reserve(kPooled);
    if (pool().size() < kPooled) pool().push_back(std::move(state));
    pool_in_use.clear(std::memory_order_release);
}

struct Camera {  // world to camera with x right, y down, z ahead; focal lengths and centre in pixels
    float r[9], t[3], fx, fy, cx, cy;
};
static_assert(sizeof(Camera) == 16 * sizeof(float));

int tiles_along(int64_t pixels) { return static_cast<int>((pixels + kTile - 1) / kTile); }

bool finite(float value) {  // survives -ffinite-math-only
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return (bits & 0x7f800000u) != 0x7f800000u;
}

// Runs task(0..count-1) on several threads; the order is free, so tasks must not share what they write. A task that
// throws ends the work and is thrown again here. Threads live for one call only: a forked child can go on rendering.
void parallel(int64_t threads, int64_t count, const std::function<void(int64_t)> &task) {
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex guard;
    auto work = [&] {
        try {
            for (int64_t index = next++; index < count; index = next++) task(index);
        } catch (...) {
            std::lock_guard<std::mutex> lock(guard);
            failure = std::current_exception();
            next = count;
        }
    };
    std::vector<std::thread> others;
    try {
        for (int64_t i = 1; i < std::min(threads, count); ++i) others.emplace_back(work);
    } catch (const std::exception &) {  // the system gives no more threads: those that run suffice
    }
    work();
    for (auto &thread : others) thread.join();
    if (failure) std::rethrow_exception(failure);
}

struct Projection {
    float x, y, z;           // in camera space
    float u, v;              // x/z and y/z, kept near the picture where the local affine map is used
    bool u_free, v_free;     // false where that clamp acts
    float m[6];              // 2 x 3 map from world offsets to pixels
    float xx, xy, yy;        // covariance in pixels, blurred
};

inline __attribute__((always_inline)) Projection project(const Camera &camera, const float *mean, const float *cov, const Loom4dScene &scene) {
    Projection p;
    const float *r = camera.r;
    p.x = r[0] * mean[0] + r[1] * mean[1] + r[2] * mean[2] + camera.t[0];
    p.y = r[3] * mean[0] + r[4] * mean[1] + r[5] * mean[2] + camera.t[1];
    p.z = r[6] * mean[0] + r[7] * mean[1] + r[8] * mean[2] + camera.t[2];
    const float inverse = 1.0f / p.z;
    const float margin_u = 0.15f * scene.width / camera.fx, margin_v = 0.15f * scene.height / camera.fy;
    const float u_low = -camera.cx / camera.fx - margin_u, u_high = (scene.width - camera.cx) / camera.fx + margin_u;
    const float v_low = -camera.cy / camera.fy - margin_v, v_high = (scene.height - camera.cy) / camera.fy + margin_v;
    const float u = p.x * inverse, v = p.y * inverse;
    p.u = std::min(std::max(u, u_low), u_high);
    p.v = std::min(std::max(v, v_low), v_high);
    p.u_free = p.u == u;
    p.v_free = p.v == v;
    const float jx = camera.fx * inverse, jy = camera.fy * inverse;
    for (int k = 0; k < 3; ++k) {
        p.m[k] = jx * (r[k] - p.u * r[6 + k]);
        p.m[3 + k] = jy * (r[3 + k] - p.v * r[6 + k]);
    }
    float half[6];  // m . covariance
    for (int row = 0; row < 2; ++row)
        for (int k = 0; k < 3; ++k)
            half[3 * row + k] = p.m[3 * row] * cov[k] + p.m[3 * row + 1] * cov[3 + k] + p.m[3 * row + 2] * cov[6 + k];
    p.xx = half[0] * p.m[0] + half[1] * p.m[1] + half[2] * p.m[2] + scene.blur;
    p.xy = half[0] * p.m[3] + half[1] * p.m[4] + half[2] * p.m[5];
    p.yy = half[3] * p.m[3] + half[4] * p.m[4] + half[5] * p.m[5] + scene.blur;
    return p;
}

// Fills `splat` and the pixels it may reach; false when it cannot be seen.
inline __attribute__((always_inline)) bool make_splat(const Loom4dScene &scene, int64_t image, int64_t point, Splat &splat, Box &box) {
    const float opacity = scene.opacities[image * scene.opacities_stride + point];
    if (!finite(opacity) || opacity < scene.cut) return false;
    const Camera &camera = reinterpret_cast<const Camera *>(scene.cameras)[image];
    const float *mean = scene.means + image * scene.means_stride + 3 * point;
    const float *cov = scene.covariances + image * scene.covariances_stride + 9 * point;
    const Projection p = project(camera, mean, cov, scene);
    const float determinant = p.xx * p.yy - p.xy * p.xy;
    if (!finite(p.z) || p.z <= scene.near_plane || !finite(determinant) || determinant <= 0) return false;
    splat.x = camera.fx * p.x / p.z + camera.cx;
    splat.y = camera.fy * p.y / p.z + camera.cy;
    if (scene.offsets) {
        splat.x += scene.offsets[(image * scene.points + point) * 2];
        splat.y += scene.offsets[(image * scene.points + point) * 2 + 1];
    }
    const float scale = 0.5f * kLog2E / determinant;
    splat.xx = scale * p.yy;
    splat.xy = -2.0f * scale * p.xy;
    splat.yy = scale * p.xx;
    const float reach = std::sqrt(2.0f * std::log(opacity / scene.cut));  // in standard deviations, to the alpha cut
    const float reach_x = reach * std::sqrt(p.xx) + 1e-3f, reach_y = reach * std::sqrt(p.yy) + 1e-3f;
    if (!finite(splat.x) || !finite(splat.y) || !finite(reach_x) || !finite(reach_y) || !finite(splat.xx)) return false;
    const float width = scene.width, height = scene.height;  // pixel centres lie at +1/2
    box.left = static_cast<int>(std::min(std::max(std::ceil(splat.x - reach_x - 0.5f), 0.0f), width));
    box.right = static_cast<int>(std::min(std::max(std::floor(splat.x + reach_x + 0.5f), 0.0f), width));
    box.top = static_cast<int>(std::min(std::max(std::ceil(splat.y - reach_y - 0.5f), 0.0f), height));
    box.bottom = static_cast<int>(std::min(std::max(std::floor(splat.y + reach_y + 0.5f), 0.0f), height));
    if (box.left >= box.right || box.top >= box.bottom) return false;
    const float *colour = scene.colours + image * scene.colours_stride + 3 * point;
    splat.log2_opacity = std::log2(opacity);
    splat.red = colour[0], splat.green = colour[1], splat.blue = colour[2];
    splat.depth = p.z;
    splat.top = static_cast<int16_t>(box.top), splat.bottom = static_cast<int16_t>(box.bottom);
    splat.point = static_cast<int32_t>(point);
    return true;
}

struct Span {
    int first, end;  // tiles
};

// The tiles of a row of tiles that an ellipse xx dx^2 + xy dx dy + yy dy^2 <= reach touches with a pixel's centre, or a few
// more. Its rightmost point lies at dy = -xy t, its leftmost at xy t; between two rows it is widest as near to these as may be.
inline __attribute__((always_inline)) Span span_of(const Splat &s, const Box &box, int row, float reach) {
    const float above = std::max(row * kTile, box.top) + 0.5f - s.y - 1e-2f;
    const float below = std::min((row + 1) * kTile, box.bottom) - 0.5f - s.y + 1e-2f;
    const float determinant = 4 * s.xx * s.yy - s.xy * s.xy;
    const float widest = s.xy * std::sqrt(std::max(reach, 0.0f) / (s.yy * std::max(determinant, 1e-30f)));
    auto half_width = [&](float dy) {
        return std::sqrt(std::max(s.xy * s.xy * dy * dy - 4 * s.xx * (s.yy * dy * dy - reach), 0.0f));
    };
    const float dy_left = std::min(std::max(widest, above), below), dy_right = std::min(std::max(-widest, above), below);
    const float left = s.x - (s.xy * dy_left + half_width(dy_left)) / (2 * s.xx) - 1e-2f;
    const float right = s.x - (s.xy * dy_right - half_width(dy_right)) / (2 * s.xx) + 1e-2f;
    const float low = static_cast<float>(box.left), high = static_cast<float>(box.right);  // end exclusive
    const int first = static_cast<int>(std::min(std::max(left + 0.5f, low), high)) / kTile;
    const int last = static_cast<int>(std::min(std::max(right - 0.5f, low), high - 0.5f)) / kTile;
    return {first, last + 1};
}

// Stable order of positive floats, by three radix passes over their bits.
// Afterwards the low half of each key is a place in `found`.
void order_by_depth(Scratch &scratch) {
    auto &[splats, boxes, keys, other, reached] = scratch;
    const size_t count = splats.size();
    keys.resize(count), other.resize(count);
    for (size_t i = 0; i < count; ++i) {
        uint32_t bits;
        std::memcpy(&bits, &splats[i].depth, sizeof bits);
        keys[i] = (static_cast<uint64_t>(bits) << 32) | i;
    }
    for (int shift = 32; shift < 64; shift += 11) {
        uint32_t bins[2049] = {};
        for (uint64_t key : keys) ++bins[((key >> shift) & 2047) + 1];
        for (int i = 0; i < 2048; ++i) bins[i + 1] += bins[i];
        for (uint64_t key : keys) other[bins[(key >> shift) & 2047]++] = key;
        keys.swap(other);
    }
}

LOOM4D_CLONES void prepare(const Loom4dScene &scene, int64_t index, Image &image, uint8_t *visible) {
    auto &[found, boxes, order, other, reached] = image.scratch;
    found.clear(), boxes.clear(), reached.clear();
    for (int64_t point = 0; point < scene.points; ++point) {
        Splat splat;
        Box box;
        if (make_splat(scene, index, point, splat, box)) found.push_back(splat), boxes.push_back(box);
    }
    order_by_depth(image.scratch);
    const int columns = tiles_along(scene.width), rows = tiles_along(scene.height);
    image.splats.resize(found.size());
    image.first_slot.assign(scene.points + 1, 0);
    image.tile_start.assign(static_cast<size_t>(columns) * rows + 1, 0);
    const float log2_cut = std::log2(scene.cut);
    for (size_t i = 0; i < order.size(); ++i) {
        const auto place = static_cast<uint32_t>(order[i]);
        const Splat &splat = image.splats[i] = found[place];
        const Box &box = boxes[place];
        const size_t before = reached.size();
        for (int row = box.top / kTile; row <= (box.bottom - 1) / kTile; ++row) {
            const Span span = span_of(splat, box, row, splat.log2_opacity - log2_cut);
            for (int column = span.first; column < span.end; ++column) {
                reached.push_back(row * columns + column);
                ++image.tile_start[row * columns + column + 1];
            }
        }
        image.first_slot[splat.point + 1] = static_cast<uint32_t>(reached.size() - before);
    }
    for (int64_t point = 0; point < scene.points; ++point) {
        visible[point] = image.first_slot[point + 1] > 0;
        image.first_slot[point + 1] += image.first_slot[point];
    }
    for (size_t tile = 0; tile + 1 < image.tile_start.size(); ++tile) image.tile_start[tile + 1] += image.tile_start[tile];
    image.tile_end.assign(image.tile_start.begin(), image.tile_start.end() - 1);
    image.entries.resize(reached.size());
    const uint32_t *tile = reached.data();
    for (size_t i = 0; i < order.size(); ++i) {
        const int32_t point = image.splats[i].point;
        for (uint32_t slot = image.first_slot[point]; slot < image.first_slot[point + 1]; ++slot)
            image.entries[image.tile_end[*tile++]++] = {static_cast<uint32_t>(i), slot};
    }
}

// 2^t for t in about [-100, 1]: rounding by a truncating conversion, which every vector unit has.
inline __attribute__((always_inline)) Lanes exp2_of(Lanes t) {
    const Bits whole = __builtin_convertvector(t - 0.5f, Bits);
    const Lanes f = t - __builtin_convertvector(whole, Lanes);
    Lanes p = f * 1.5403530e-4f + 1.3333558e-3f;
    p = p * f + 9.6181291e-3f;
    p = p * f + 5.5504109e-2f;
    p = p * f + 2.4022651e-1f;
    p = p * f + 6.9314718e-1f;
    p = p * f + 1.0f;
    return reinterpret_cast<Lanes>((whole + 127) << 23) * p;
}

inline __attribute__((always_inline)) float sum_of(Lanes values) {
    float total = 0.0f;
    for (int lane = 0; lane < kLanes; ++lane) total += values[lane];
    return total;
}

struct Area {
    int64_t left, top, columns, rows;  // a tile's pixels inside the picture
};

Area area_of(const Loom4dScene &scene, int tile) {
    const int across = tiles_along(scene.width);
    const int64_t left = static_cast<int64_t>(tile % across) * kTile, top = static_cast<int64_t>(tile / across) * kTile;
    return {left, top, std::min<int64_t>(kTile, scene.width - left), std::min<int64_t>(kTile, scene.height - top)};
}

// Where a splat lies in a tile: offsets of its first two rows' pixels, and the vectors that it may touch.
struct Place {
    Lanes dx, dy;
    int first, end;
};

inline __attribute__((always_inline)) Place place_of(const Splat &s, const Area &area) {
    Place place;
    place.first = std::max<int>(s.top - static_cast<int>(area.top), 0) / 2;
    place.end = (std::min<int>(s.bottom - static_cast<int>(area.top), kTile) + 1) / 2;
    place.dx = kColumn + (static_cast<float>(area.left) + 0.5f - s.x);
    place.dy = kRow + (static_cast<float>(area.top + 2 * place.first) + 0.5f - s.y);
    return place;
}

// Opacity times the Gaussian at some pixels, not yet cut.
inline __attribute__((always_inline)) Lanes raw_alpha(const Splat &s, Lanes dx, Lanes dy) {
    const Lanes power = s.log2_opacity - s.yy * dy * dy - dx * (s.xy * dy + s.xx * dx);
    return exp2_of(power > -30.0f ? power : Lanes{} - 30.0f);
}

inline __attribute__((always_inline)) Lanes bounded(Lanes raw, float cut, float cap) {
    const Lanes alpha = raw < cut ? Lanes{} : raw;
    return alpha > cap ? Lanes{} + cap : alpha;
}

LOOM4D_CLONES void blend(const Loom4dScene &scene, const Loom4dPictures &out, Image &image, int64_t index, int tile) {
    Lanes through[kVectors], red[kVectors] = {}, green[kVectors] = {}, blue[kVectors] = {};
    Lanes depth[kVectors] = {}, median[kVectors] = {};
    for (Lanes &values : through) values = Lanes{} + 1.0f;
    const Area area = area_of(scene, tile);
    const float cut = scene.cut, cap = scene.cap;
    const uint32_t end = image.tile_start[tile + 1], last = end - 1;
    uint32_t entry = image.tile_start[tile];
    for (; entry < end; ++entry) {
        __builtin_prefetch(&image.splats[image.entries[std::min(entry + 3, last)].splat]);
        const Splat &s = image.splats[image.entries[entry].splat];
        const Place place = place_of(s, area);
        Lanes dy = place.dy;
        for (int v = place.first; v < place.end; ++v, dy += 2.0f) {
            const Lanes alpha = bounded(raw_alpha(s, place.dx, dy), cut, cap), before = through[v];
            const Lanes weight = before * alpha, left = before - weight;
            red[v] += weight * s.red;
            green[v] += weight * s.green;
            blue[v] += weight * s.blue;
            depth[v] += weight * s.depth;
            median[v] = before >= 0.5f ? Lanes{} + s.depth : median[v];
            through[v] = left;
        }
        if ((entry & 7) == 7) {
            Lanes most = through[0];
            for (int v = 1; v < kVectors; ++v) most = through[v] > most ? through[v] : most;
            float highest = 0.0f;
            for (int lane = 0; lane < kLanes; ++lane) highest = std::max(highest, most[lane]);
            if (highest < kOpaque) {
                ++entry;
                break;
            }
        }
    }
    image.tile_end[tile] = entry;
    const int64_t plane = scene.height * scene.width;
    for (int64_t y = 0; y < area.rows; ++y) {
        const int64_t pixel = (area.top + y) * scene.width + area.left;
        for (int64_t x = 0; x < area.columns; ++x) {
            const int64_t v = y / 2, lane = y % 2 * kTile + x;
            float *premultiplied = out.premultiplied + index * 4 * plane + pixel + x;
            premultiplied[0] = red[v][lane];
            premultiplied[plane] = green[v][lane];
            premultiplied[2 * plane] = blue[v][lane];
            premultiplied[3 * plane] = 1.0f - through[v][lane];
            out.depth[index * plane + pixel + x] = depth[v][lane];
            out.median[index * plane + pixel + x] = through[v][lane] < 0.5f ? median[v][lane] : 0.0f;
        }
    }
}

// Gradients of one tile into the slots of its entries: colour (3), depth, and the moments of
// q = dL/d ln alpha over the pixels: q, q dx, q dy, q dx^2, q dx dy, q dy^2.
template <bool kDepth>
inline __attribute__((always_inline)) void blend_backward_of(const Loom4dScene &scene, const Loom4dPictures &out,
                                                             const Loom4dPictures &grad, const Image &image, int64_t index,
                                                             int tile) {
    float *slots = image.slots.get();
    Lanes through[kVectors], rest[kVectors] = {}, red[kVectors] = {}, green[kVectors] = {}, blue[kVectors] = {};
    Lanes depth[kVectors] = {};
    for (Lanes &values : through) values = Lanes{} + 1.0f;
    const Area area = area_of(scene, tile);
    const int64_t plane = scene.height * scene.width;
    for (int64_t y = 0; y < area.rows; ++y) {
        const int64_t pixel = (area.top + y) * scene.width + area.left;
        for (int64_t x = 0; x < area.columns; ++x) {
            const int64_t v = y / 2, lane = y % 2 * kTile + x, single = index * plane + pixel + x;
            const int64_t first = single + 3 * index * plane, alpha = first + 3 * plane;
            red[v][lane] = grad.premultiplied[first];
            green[v][lane] = grad.premultiplied[first + plane];
            blue[v][lane] = grad.premultiplied[first + 2 * plane];
            rest[v][lane] = grad.premultiplied[first] * out.premultiplied[first] +
                            grad.premultiplied[first + plane] * out.premultiplied[first + plane] +
                            grad.premultiplied[first + 2 * plane] * out.premultiplied[first + 2 * plane] -
                            grad.premultiplied[alpha] * (1.0f - out.premultiplied[alpha]);
            if (kDepth) {
                depth[v][lane] = grad.depth[single];
                rest[v][lane] += grad.depth[single] * out.depth[single];
            }
        }
    }
    const float cut = scene.cut, cap = scene.cap;
    const uint32_t last = image.tile_end[tile] - 1;
    for (uint32_t entry = image.tile_start[tile]; entry < image.tile_end[tile]; ++entry) {
        __builtin_prefetch(&image.splats[image.entries[std::min(entry + 3, last)].splat]);
        const Splat &s = image.splats[image.entries[entry].splat];
        const Place place = place_of(s, area);
        Lanes dy = place.dy, of_red = {}, of_green = {}, of_blue = {}, of_depth = {}, of_alpha = {}, of_y = {}, of_yy = {};
        for (int v = place.first; v < place.end; ++v, dy += 2.0f) {
            const Lanes raw = raw_alpha(s, place.dx, dy), alpha = bounded(raw, cut, cap);
            const Lanes weight = through[v] * alpha;
            Lanes dot = s.red * red[v] + s.green * green[v] + s.blue * blue[v];
            if (kDepth) dot += s.depth * depth[v];
            const Lanes after = rest[v] - weight * dot;  // S_total - S_i
            const Lanes slope = through[v] * dot - after / (1.0f - alpha);
            const Lanes q = raw > cap ? Lanes{} : slope * alpha, q_dy = q * dy;
            of_red += weight * red[v];
            of_green += weight * green[v];
            of_blue += weight * blue[v];
            if (kDepth) of_depth += weight * depth[v];
            of_alpha += q;
            of_y += q_dy;
            of_yy += q_dy * dy;
            rest[v] = after;
            through[v] -= weight;
        }
        const Lanes of_x = of_alpha * place.dx;
        float *slot = slots + static_cast<size_t>(image.entries[entry].slot) * kSlot;
        slot[0] = sum_of(of_red), slot[1] = sum_of(of_green), slot[2] = sum_of(of_blue), slot[3] = kDepth ? sum_of(of_depth) : 0.0f;
        slot[4] = sum_of(of_alpha), slot[5] = sum_of(of_x), slot[6] = sum_of(of_y), slot[7] = sum_of(of_x * place.dx);
        slot[8] = sum_of(of_y * place.dx), slot[9] = sum_of(of_yy);
    }
    for (uint32_t entry = image.tile_end[tile]; entry < image.tile_start[tile + 1]; ++entry)  // hidden by those before
        std::memset(slots + static_cast<size_t>(image.entries[entry].slot) * kSlot, 0, kSlot * sizeof(float));
}

// `grad.depth` is null where no loss looks at depth.
LOOM4D_CLONES void blend_backward(const Loom4dScene &scene, const Loom4dPictures &out, const Loom4dPictures &grad,
                                  const Image &image, int64_t index, int tile) {
    if (grad.depth)
        blend_backward_of<true>(scene, out, grad, image, index, tile);
    else
        blend_backward_of<false>(scene, out, grad, image, index, tile);
}

struct PointGradient {
    float mean[3], covariance[9], opacity, colour[3], screen[2];
};

// From the summed slots of a splat back through `project`.
inline __attribute__((always_inline)) PointGradient unproject(const Loom4dScene &scene, int64_t index, int64_t point, const float *sum) {
    const Camera &camera = reinterpret_cast<const Camera *>(scene.cameras)[index];
    const float *mean = scene.means + index * scene.means_stride + 3 * point;
    const float *cov = scene.covariances + index * scene.covariances_stride + 9 * point;
    const Projection p = project(camera, mean, cov, scene);
    PointGradient g;
    for (int k = 0; k < 3; ++k) g.colour[k] = sum[k];
    g.opacity = sum[4] / scene.opacities[index * scene.opacities_stride + point];
    const float determinant = p.xx * p.yy - p.xy * p.xy;
    const float ixx = p.yy / determinant, ixy = -p.xy / determinant, iyy = p.xx / determinant;
    g.screen[0] = ixx * sum[5] + ixy * sum[6];
    g.screen[1] = ixy * sum[5] + iyy * sum[6];
    // dL/dinverse = -1/2 moments, and dL/dcovariance = -inverse . dL/dinverse . inverse
    const float hxx = ixx * sum[7] + ixy * sum[8], hxy = ixx * sum[8] + ixy * sum[9];
    const float hyx = ixy * sum[7] + iyy * sum[8], hyy = ixy * sum[8] + iyy * sum[9];
    const float gxx = 0.5f * (hxx * ixx + hxy * ixy), gxy = 0.5f * (hxx * ixy + hxy * iyy);
    const float gyy = 0.5f * (hyx * ixy + hyy * iyy);
    float gm[6];  // dL/dm = 2 (dL/dcovariance2) m covariance3
    float back[6];
    for (int k = 0; k < 3; ++k) {
        back[k] = gxx * p.m[k] + gxy * p.m[3 + k];
        back[3 + k] = gxy * p.m[k] + gyy * p.m[3 + k];
    }
    for (int i = 0; i < 3; ++i)
        for (int j = 0; j < 3; ++j) g.covariance[3 * i + j] = p.m[i] * back[j] + p.m[3 + i] * back[3 + j];
    for (int row = 0; row < 2; ++row)
        for (int k = 0; k < 3; ++k)
            gm[3 * row + k] = 2.0f * (back[3 * row] * cov[k] + back[3 * row + 1] * cov[3 + k] + back[3 * row + 2] * cov[6 + k]);
    // m_0k = fx/z (r_0k - u r_2k), m_1k = fy/z (r_1k - v r_2k)
    const float inverse = 1.0f / p.z, jx = camera.fx * inverse, jy = camera.fy * inverse;
    const float *r = camera.r;
    float gz = sum[3], gu = 0, gv = 0;
    for (int k = 0; k < 3; ++k) {
        gz -= (gm[k] * p.m[k] + gm[3 + k] * p.m[3 + k]) * inverse;
        gu -= gm[k] * jx * r[6 + k];
        gv -= gm[3 + k] * jy * r[6 + k];
    }
    float gx = jx * g.screen[0], gy = jy * g.screen[1];
    gz -= (gx * p.x + gy * p.y) * inverse;
    if (p.u_free) gx += gu * inverse, gz -= gu * p.u * inverse;
    if (p.v_free) gy += gv * inverse, gz -= gv * p.v * inverse;
    for (int k = 0; k < 3; ++k) g.mean[k] = r[k] * gx + r[3 + k] * gy + r[6 + k] * gz;
    return g;
}

// Points start..end-1 of every image.
LOOM4D_CLONES void gather(const Loom4dScene &scene, const State &state, int64_t start, int64_t end, const Loom4dGradients &out) {
    for (int64_t index = 0; index < scene.images; ++index) {
        const uint32_t *first = state.images[index].first_slot.data();
        const float *of_image = state.images[index].slots.get();
        for (int64_t point = start; point < end; ++point) {
            if (first[point] == first[point + 1]) continue;
            float sum[kSlot] = {};
            for (size_t slot = first[point]; slot < first[point + 1]; ++slot)
                for (int k = 0; k < kSlot; ++k) sum[k] += of_image[slot * kSlot + k];
            const PointGradient g = unproject(scene, index, point, sum);
            float *mean = out.means + index * scene.means_stride + 3 * point;
            float *cov = out.covariances + index * scene.covariances_stride + 9 * point;
            float *colour = out.colours + index * scene.colours_stride + 3 * point;
            for (int k = 0; k < 3; ++k) mean[k] += g.mean[k], colour[k] += g.colour[k];
            for (int k = 0; k < 9; ++k) cov[k] += g.covariance[k];
            out.opacities[index * scene.opacities_stride + point] += g.opacity;
            if (out.offsets) {
                out.offsets[(index * scene.points + point) * 2] = g.screen[0];
                out.offsets[(index * scene.points + point) * 2 + 1] = g.screen[1];
            }
        }
    }
}

struct Rotation {  // of a quaternion w, x, y, z that is normalised here
    float norm, q[4], r[9];
};

inline __attribute__((always_inline)) Rotation rotation_of(const float *quaternion) {
    Rotation o;
    o.norm = std::sqrt(quaternion[0] * quaternion[0] + quaternion[1] * quaternion[1] + quaternion[2] * quaternion[2] +
                       quaternion[3] * quaternion[3]);
    o.norm = std::max(o.norm, 1e-12f);
    for (int k = 0; k < 4; ++k) o.q[k] = quaternion[k] / o.norm;
    const float w = o.q[0], x = o.q[1], y = o.q[2], z = o.q[3];
    const float r[9] = {1 - 2 * (y * y + z * z), 2 * (x * y - w * z),     2 * (x * z + w * y),
                        2 * (x * y + w * z),     1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                        2 * (x * z - w * y),     2 * (y * z + w * x),     1 - 2 * (x * x + y * y)};
    std::memcpy(o.r, r, sizeof r);
    return o;
}

constexpr int64_t kChunk = 256;

int64_t chunks(int64_t count) { return (count + kChunk - 1) / kChunk; }

}  // namespace

extern "C" {

// Renders every image; returns what the backward pass needs, to be freed by loom4d_rasterize_free, or null for no memory.
void *loom4d_rasterize_forward(const Loom4dScene *scene, const Loom4dPictures *out) try {
    auto state = taken();
    state->count = scene->images;
    if (state->images.size() < static_cast<size_t>(scene->images)) state->images.resize(scene->images);
    parallel(scene->threads, scene->images, [&](int64_t index) {
        prepare(*scene, index, state->images[index], out->visible + index * scene->points);
    });
    const int64_t tiles = static_cast<int64_t>(tiles_along(scene->width)) * tiles_along(scene->height);
    parallel(scene->threads, scene->images * tiles, [&](int64_t task) {
        blend(*scene, *out, state->images[task / tiles], task / tiles, static_cast<int>(task % tiles));
    });
    return state.release();
} catch (const std::exception &) {
    return nullptr;
}

// `out` is what the forward pass rendered, `grad` its gradients; adds to `gradients`, which come in as zeros.
int loom4d_rasterize_backward(void *handle, const Loom4dScene *scene, const Loom4dPictures *out,
                              const Loom4dPictures *grad, const Loom4dGradients *gradients) try {
    State &state = *static_cast<State *>(handle);
    for (int64_t i = 0; i < state.count; ++i) {
        Image &image = state.images[i];
        const size_t needed = image.entries.size() * kSlot;
        if (image.slots_room >= needed) continue;
        image.slots.reset(), image.slots_room = 0;
        image.slots.reset(new float[needed + needed / 4]);
        image.slots_room = needed + needed / 4;
    }
    const int64_t tiles = static_cast<int64_t>(tiles_along(scene->width)) * tiles_along(scene->height);
    parallel(scene->threads, scene->images * tiles, [&](int64_t task) {
        const int64_t index = task / tiles;
        blend_backward(*scene, *out, *grad, state.images[index], index, static_cast<int>(task % tiles));
    });
    parallel(scene->threads, chunks(scene->points), [&](int64_t chunk) {
        const int64_t end = std::min(scene->points, (chunk + 1) * kChunk);
        gather(*scene, state, chunk * kChunk, end, *gradients);
    });
    return 0;
} catch (const std::exception &) {
    return 1;
}

void loom4d_rasterize_free(void *handle) { given_back(std::unique_ptr<State>(static_cast<State *>(handle))); }

// R S S^T R^T of `count` Gaussians from quaternions (w x y z, any length) and log scales, and its gradient.
void loom4d_rasterize_covariances(int64_t count, int64_t threads, const float *quaternions, const float *log_scales,
                                  float *covariances) {
    parallel(threads, chunks(count), [&](int64_t chunk) {
        const int64_t end = std::min(count, (chunk + 1) * kChunk);
        for (int64_t n = chunk * kChunk; n < end; ++n) {
            const Rotation o = rotation_of(quaternions + 4 * n);
            float v[3];
            for (int k = 0; k < 3; ++k) v[k] = std::exp(2.0f * log_scales[3 * n + k]);
            for (int i = 0; i < 3; ++i)
                for (int j = 0; j < 3; ++j)
                    covariances[9 * n + 3 * i + j] = o.r[3 * i] * v[0] * o.r[3 * j] + o.r[3 * i + 1] * v[1] * o.r[3 * j + 1] +
                                                     o.r[3 * i + 2] * v[2] * o.r[3 * j + 2];
        }
    });
}

void loom4d_rasterize_covariances_backward(int64_t count, int64_t threads, const float *quaternions,
                                           const float *log_scales, const float *gradient, float *quaternion_gradient,
                                           float *log_scale_gradient) {
    parallel(threads, chunks(count), [&](int64_t chunk) {
        const int64_t end = std::min(count, (chunk + 1) * kChunk);
        for (int64_t n = chunk * kChunk; n < end; ++n) {
            const Rotation o = rotation_of(quaternions + 4 * n);
            const float *g = gradient + 9 * n;
            float d[9];  // dL/dR = (G + G^T) R S S^T
            for (int k = 0; k < 3; ++k) {
                const float v = std::exp(2.0f * log_scales[3 * n + k]);
                float column[3];
                for (int i = 0; i < 3; ++i)
                    column[i] = (g[3 * i] + g[i]) * o.r[k] + (g[3 * i + 1] + g[3 + i]) * o.r[3 + k] +
                                (g[3 * i + 2] + g[6 + i]) * o.r[6 + k];
                log_scale_gradient[3 * n + k] = v * (o.r[k] * column[0] + o.r[3 + k] * column[1] + o.r[6 + k] * column[2]);
                for (int i = 0; i < 3; ++i) d[3 * i + k] = v * column[i];
            }
            const float w = o.q[0], x = o.q[1], y = o.q[2], z = o.q[3];
            const float q[4] = {
                2 * (x * (d[7] - d[5]) + y * (d[2] - d[6]) + z * (d[3] - d[1])),
                2 * (w * (d[7] - d[5]) + y * (d[1] + d[3]) + z * (d[2] + d[6]) - 2 * x * (d[4] + d[8])),
                2 * (w * (d[2] - d[6]) + x * (d[1] + d[3]) + z * (d[5] + d[7]) - 2 * y * (d[0] + d[8])),
                2 * (w * (d[3] - d[1]) + x * (d[2] + d[6]) + y * (d[5] + d[7]) - 2 * z * (d[0] + d[4]))};
            const float along = q[0] * w + q[1] * x + q[2] * y + q[3] * z;
            for (int k = 0; k < 4; ++k) quaternion_gradient[4 * n + k] = (q[k] - along * o.q[k]) / o.norm;
        }
    });
}
}
