// Linear blend skinning of Gaussians by a few bones each: the fast twin of `Controlled.slices` in plain tensors.
//
// A pose is 16 numbers: a rotation (row by row), an offset and a quaternion. For every instant b and Gaussian n the poses
// of its bones are blended; the rotation and offset carry the mean, the normalised quaternion turns the Gaussian.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <thread>
#include <vector>

extern "C" {

// Mirrors `Skin` in skinning.py. poses is (instants, points, 16); bones and weights are (gaussians, per).
struct Loom4dSkin {
    int64_t instants, gaussians, points, per, threads;
    const int64_t *bones;
    const float *weights, *poses, *means, *quaternions;
};
}

namespace {

constexpr int kPose = 16;

template <class Task> void in_parts(int64_t threads, int64_t count, Task task) {
    const int64_t parts = std::max<int64_t>(1, std::min(threads, count));
    std::vector<std::thread> others;
    for (int64_t which = 1; which < parts; ++which)
        others.emplace_back([&, which] { task(which * count / parts, (which + 1) * count / parts); });
    task(0, count / parts);
    for (auto &thread : others) thread.join();
}

void product(const float *a, const float *b, float *out) {  // of quaternions w, x, y, z
    out[0] = a[0] * b[0] - a[1] * b[1] - a[2] * b[2] - a[3] * b[3];
    out[1] = a[0] * b[1] + a[1] * b[0] + a[2] * b[3] - a[3] * b[2];
    out[2] = a[0] * b[2] - a[1] * b[3] + a[2] * b[0] + a[3] * b[1];
    out[3] = a[0] * b[3] + a[1] * b[2] - a[2] * b[1] + a[3] * b[0];
}

struct Blended {
    float pose[kPose];
    float turn[4], length;  // the pose's quaternion, normalised; its length before
};

Blended blended(const Loom4dSkin &skin, int64_t instant, int64_t n) {
    Blended found{};
    const float *poses = skin.poses + instant * skin.points * kPose;
    for (int64_t j = 0; j < skin.per; ++j) {
        const float weight = skin.weights[n * skin.per + j], *pose = poses + skin.bones[n * skin.per + j] * kPose;
        for (int k = 0; k < kPose; ++k) found.pose[k] += weight * pose[k];
    }
    const float *q = found.pose + 12;
    found.length = std::max(std::sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3]), 1e-12f);
    for (int k = 0; k < 4; ++k) found.turn[k] = q[k] / found.length;
    return found;
}

// dL/dpose of one Gaussian at one instant.
void pose_gradient(const Loom4dSkin &skin, int64_t n, const Blended &blend, const float *gm, const float *gq, float *out) {
    const float *mean = skin.means + 3 * n, *q = skin.quaternions + 4 * n;
    for (int i = 0; i < 3; ++i) {
        for (int k = 0; k < 3; ++k) out[3 * i + k] = gm[i] * mean[k];
        out[9 + i] = gm[i];
    }
    const float conjugate[4] = {q[0], -q[1], -q[2], -q[3]};
    float turn[4];
    product(gq, conjugate, turn);
    float along = 0;
    for (int k = 0; k < 4; ++k) along += turn[k] * blend.turn[k];
    for (int k = 0; k < 4; ++k) out[12 + k] = (turn[k] - along * blend.turn[k]) / blend.length;
}

}  // namespace

extern "C" {

// Places (instants, gaussians, 3) and quaternions (instants, gaussians, 4).
void loom4d_skin(const Loom4dSkin *skin, float *places, float *quaternions) {
    in_parts(skin->threads, skin->gaussians, [&](int64_t first, int64_t last) {
        for (int64_t b = 0; b < skin->instants; ++b)
            for (int64_t n = first; n < last; ++n) {
                const Blended blend = blended(*skin, b, n);
                const float *mean = skin->means + 3 * n;
                float *place = places + 3 * (b * skin->gaussians + n);
                for (int i = 0; i < 3; ++i)
                    place[i] = blend.pose[3 * i] * mean[0] + blend.pose[3 * i + 1] * mean[1] + blend.pose[3 * i + 2] * mean[2] +
                               blend.pose[9 + i];
                product(blend.turn, skin->quaternions + 4 * n, quaternions + 4 * (b * skin->gaussians + n));
            }
    });
}

// Gradients of what `loom4d_skin` wrote; the outputs come in as zeros. Every sum has one fixed order.
void loom4d_skin_backward(const Loom4dSkin *skin, const float *place_gradient, const float *quaternion_gradient,
                          float *weights, float *poses, float *means, float *quaternions) {
    const int64_t count = skin->gaussians;
    in_parts(skin->threads, skin->instants, [&](int64_t first, int64_t last) {
        for (int64_t b = first; b < last; ++b)
            for (int64_t n = 0; n < count; ++n) {
                float gradient[kPose];
                const Blended blend = blended(*skin, b, n);
                pose_gradient(*skin, n, blend, place_gradient + 3 * (b * count + n), quaternion_gradient + 4 * (b * count + n),
                              gradient);
                for (int64_t j = 0; j < skin->per; ++j) {
                    float *out = poses + (b * skin->points + skin->bones[n * skin->per + j]) * kPose;
                    const float weight = skin->weights[n * skin->per + j];
                    for (int k = 0; k < kPose; ++k) out[k] += weight * gradient[k];
                }
            }
    });
    in_parts(skin->threads, count, [&](int64_t first, int64_t last) {
        for (int64_t b = 0; b < skin->instants; ++b)
            for (int64_t n = first; n < last; ++n) {
                float gradient[kPose], turned[4];
                const Blended blend = blended(*skin, b, n);
                const float *gm = place_gradient + 3 * (b * count + n), *gq = quaternion_gradient + 4 * (b * count + n);
                pose_gradient(*skin, n, blend, gm, gq, gradient);
                for (int64_t j = 0; j < skin->per; ++j) {
                    const float *pose = skin->poses + (b * skin->points + skin->bones[n * skin->per + j]) * kPose;
                    float sum = 0;
                    for (int k = 0; k < kPose; ++k) sum += gradient[k] * pose[k];
                    weights[n * skin->per + j] += sum;
                }
                for (int k = 0; k < 3; ++k)
                    means[3 * n + k] += blend.pose[k] * gm[0] + blend.pose[3 + k] * gm[1] + blend.pose[6 + k] * gm[2];
                const float conjugate[4] = {blend.turn[0], -blend.turn[1], -blend.turn[2], -blend.turn[3]};
                product(conjugate, gq, turned);
                for (int k = 0; k < 4; ++k) quaternions[4 * n + k] += turned[k];
            }
    });
}
}
