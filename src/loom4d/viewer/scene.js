// Scene: from the packed bytes to Gaussians at any time, and their order in depth. No graphics here: this part also
// runs in a worker, so that a page stays quick while it sorts.

/** Undoes base64 and gzip. */
async function inflate(base64) {
  const packed = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(base64)
    : Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Fields by name: {values, width, instants, rows}, values as (instant, row, column); a row is a Gaussian, or a joint.
 * In the bytes a column of all instants and Gaussians comes after the other, and of a number first all low bytes,
 * then all next ones, which is what gzip likes.
 */
function unpackFields(header, bytes) {
  const fields = {};
  for (const { name, kind, width, instants, rows: one, offset, low, step } of header.fields) {
    const rows = instants * one;
    const size = { u8: 1, u16: 2, f32: 4 }[kind];
    const values = new Float32Array(rows * width);
    const number = new DataView(new ArrayBuffer(4));
    for (let column = 0; column < width; column++) {
      const plane = (index) => offset + (column * size + index) * rows;
      for (let row = 0; row < rows; row++) {
        const into = row * width + column;
        if (kind === "f32") {
          for (let byte = 0; byte < 4; byte++) number.setUint8(byte, bytes[plane(byte) + row]);
          values[into] = number.getFloat32(0, true);
        } else {
          const code = bytes[plane(0) + row] + (size === 2 ? 256 * bytes[plane(1) + row] : 0);
          values[into] = low[column] + step[column] * code;
        }
      }
    }
    fields[name] = { values, width, instants, rows: one };
  }
  return fields;
}

/** Upper triangle of R S Sᵀ Rᵀ (3DGS, Equation 6) of quaternion (w, x, y, z) and scales (a, b, c) into `out` at `to`. */
function writeCovariance(out, to, w, x, y, z, a, b, c) {
  const norm = 1 / Math.sqrt(w * w + x * x + y * y + z * z);
  w *= norm, x *= norm, y *= norm, z *= norm;
  const xa = (1 - 2 * (y * y + z * z)) * a, xb = 2 * (x * y - w * z) * b, xc = 2 * (x * z + w * y) * c;
  const ya = 2 * (x * y + w * z) * a, yb = (1 - 2 * (x * x + z * z)) * b, yc = 2 * (y * z - w * x) * c;
  const za = 2 * (x * z - w * y) * a, zb = 2 * (y * z + w * x) * b, zc = (1 - 2 * (x * x + y * y)) * c;
  out[to] = xa * xa + xb * xb + xc * xc;
  out[to + 1] = xa * ya + xb * yb + xc * yc;
  out[to + 2] = xa * za + xb * zb + xc * zc;
  out[to + 3] = ya * ya + yb * yb + yc * yc;
  out[to + 4] = ya * za + yb * zb + yc * zc;
  out[to + 5] = za * za + zb * zb + zc * zc;
}

/**
 * A motion fills `place` (x, y, z, opacity per Gaussian) and `shape` (six covariances, moment, value) for a time.
 * It returns what changed: the shapes, the colours, or neither.
 */
const MOTIONS = {
  /** Native 4D: the slice of a space-time Gaussian glides at constant velocity, keeps its shape, fades in and out. */
  spacetime(header, fields) {
    const { position, drift, moment, log_duration, opacity, quaternion, log_scale } = fields;
    const haste = log_duration.values.map((value) => Math.exp(-value));
    const start = position.values, way = drift.values, own = moment.values, solid = opacity.values;
    const farthest = header.weight_cut > 0 ? Math.sqrt(-2 * Math.log(header.weight_cut)) : Infinity;
    let shaped = false;
    return (time, place, shape) => {
      for (let n = 0, i = 0, to = 0; n < header.count; n++, i += 3, to += 4) {
        const delta = (time - own[n]) * haste[n];
        if (Math.abs(delta) >= farthest) {  // not there, and so in no need of a place
          place[to + 3] = 0;
          continue;
        }
        place[to] = start[i] + way[i] * delta;
        place[to + 1] = start[i + 1] + way[i + 1] * delta;
        place[to + 2] = start[i + 2] + way[i + 2] * delta;
        place[to + 3] = solid[n] * Math.exp(-0.5 * delta * delta);
      }
      if (shaped) return { shape: false, colour: false };
      for (let n = 0; n < header.count; n++) {
        writeCovariance(shape, 8 * n, ...quaternion.values.subarray(4 * n, 4 * n + 4),
          ...log_scale.values.subarray(3 * n, 3 * n + 3).map(Math.exp));
        shape[8 * n + 6] = moment.values[n];
      }
      shaped = true;
      return { shape: true, colour: true };
    };
  },

  /** Control points: x' = Σ w (R (x − p) + p + T), and the blended rotation turns the Gaussian. */
  controlled(header, fields) {
    const { position, opacity, quaternion, log_scale, bone, weight, joint, shift, turn } = fields;
    const joints = joint.rows, poses = new Float32Array(16 * joints), reach = bone.width;
    const bones = Uint16Array.from(bone.values, Math.round), weights = Float32Array.from(weight.values);
    for (let n = 0; n < header.count; n++) {  // quantised weights sum to one again
      let sum = 0;
      for (let k = 0; k < reach; k++) sum += weights[reach * n + k];
      for (let k = 0; k < reach; k++) weights[reach * n + k] /= sum;
    }
    const size = log_scale.values.map(Math.exp);
    let coloured = false;
    return (time, place, shape) => {
      poseJoints(poses, joint.values, shift.values, turn.values, curveAt(header.keys, time));
      const rest = position.values, own = quaternion.values, solid = opacity.values;
      for (let n = 0; n < header.count; n++) {
        let xx = 0, xy = 0, xz = 0, yx = 0, yy = 0, yz = 0, zx = 0, zy = 0, zz = 0, ox = 0, oy = 0, oz = 0;
        let a = 0, b = 0, c = 0, d = 0;
        for (let to = reach * n, last = to + reach; to < last; to++) {
          const share = weights[to], from = 16 * bones[to];
          xx += share * poses[from], xy += share * poses[from + 1], xz += share * poses[from + 2];
          yx += share * poses[from + 3], yy += share * poses[from + 4], yz += share * poses[from + 5];
          zx += share * poses[from + 6], zy += share * poses[from + 7], zz += share * poses[from + 8];
          ox += share * poses[from + 9], oy += share * poses[from + 10], oz += share * poses[from + 11];
          a += share * poses[from + 12], b += share * poses[from + 13];
          c += share * poses[from + 14], d += share * poses[from + 15];
        }
        const x = rest[3 * n], y = rest[3 * n + 1], z = rest[3 * n + 2];
        place[4 * n] = xx * x + xy * y + xz * z + ox;
        place[4 * n + 1] = yx * x + yy * y + yz * z + oy;
        place[4 * n + 2] = zx * x + zy * y + zz * z + oz;
        place[4 * n + 3] = solid[n];
        const w = own[4 * n], i = own[4 * n + 1], j = own[4 * n + 2], k = own[4 * n + 3];
        writeCovariance(shape, 8 * n, a * w - b * i - c * j - d * k, a * i + b * w + c * k - d * j,
          a * j - b * k + c * w + d * i, a * k + b * j - c * i + d * w, size[3 * n], size[3 * n + 1], size[3 * n + 2]);
      }
      const changed = { shape: true, colour: !coloured };
      coloured = true;
      return changed;
    };
  },

  /** Any motion, evaluated at evenly spaced instants: cubic through positions, linear for everything else. */
  baked(header, fields) {
    const { position, opacity, quaternion, log_scale, colour } = fields;
    const count = header.count;
    const [start, end] = header.times;
    let shaped = false;
    const around = (field, time) => {
      const last = field.instants - 1;
      const at = last > 0 ? Math.min(Math.max((time - start) / (end - start), 0), 1) * last : 0;
      const before = Math.min(Math.floor(at), Math.max(last - 1, 0));
      return { before, after: Math.min(before + 1, last), part: at - before, last };
    };
    const blend = (field, time, write) => {
      const { before, after, part } = around(field, time);
      const from = before * count * field.width, to = after * count * field.width;
      write(field.values.subarray(from), field.values.subarray(to), part);
    };
    return (time, place, shape) => {
      const { before, after, part, last } = around(position, time);
      const span = count * 3, values = position.values;
      const one = before * span, two = after * span;
      const zero = Math.max(before - 1, 0) * span, three = Math.min(after + 1, last) * span;
      // One-sided slopes at the two ends of the clip, central ones between.
      const into = before > 0 ? 0.5 : 1, outof = after < last ? 0.5 : 1;
      const square = part * part, cube = square * part;
      for (let n = 0, i = 0; n < count; n++) {
        for (let axis = 0; axis < 3; axis++, i++) {
          const p = values[one + i], q = values[two + i];
          const slopeP = into * (q - values[zero + i]), slopeQ = outof * (values[three + i] - p);
          place[4 * n + axis] = p + (3 * square - 2 * cube) * (q - p)
            + (cube - 2 * square + part) * slopeP + (cube - square) * slopeQ;
        }
      }
      blend(opacity, time, (p, q, mix) => {
        for (let n = 0; n < count; n++) place[4 * n + 3] = p[n] + (q[n] - p[n]) * mix;
      });
      const moving = quaternion.instants > 1 || log_scale.instants > 1;
      if (moving || !shaped) {
        blend(quaternion, time, (q0, q1, turn) => blend(log_scale, time, (s0, s1, grow) => {
          for (let n = 0; n < count; n++) {
            const q = (i) => q0[4 * n + i] + (q1[4 * n + i] - q0[4 * n + i]) * turn;
            const s = (i) => Math.exp(s0[3 * n + i] + (s1[3 * n + i] - s0[3 * n + i]) * grow);
            writeCovariance(shape, 8 * n, q(0), q(1), q(2), q(3), s(0), s(1), s(2));
          }
        }));
      }
      const changed = { shape: moving || !shaped, colour: !shaped || colour.instants > 1 };
      shaped = true;
      return changed;
    };
  },
};

/** Weights of the keys in a cubic curve through them: slopes are central differences, one-sided at the two ends. */
function curveAt(keys, time) {
  const last = keys.length - 1, weights = new Float64Array(keys.length);
  if (last === 0) {
    weights[0] = 1;
    return weights;
  }
  const at = Math.min(Math.max(time, keys[0]), keys[last]);
  let left = 0;
  while (left < last - 1 && keys[left + 1] <= at) left++;
  const span = keys[left + 1] - keys[left], u = (at - keys[left]) / span;
  weights[left] += 2 * u ** 3 - 3 * u * u + 1;
  weights[left + 1] += 3 * u * u - 2 * u ** 3;
  for (const [key, share] of [[left, u ** 3 - 2 * u * u + u], [left + 1, u ** 3 - u * u]]) {
    const before = Math.max(key - 1, 0), after = Math.min(key + 1, last);
    weights[after] += share * span / (keys[after] - keys[before]);
    weights[before] -= share * span / (keys[after] - keys[before]);
  }
  return weights;
}

/** The joints' poses on a curve of their keys, 16 numbers each: a rotation by rows, an offset, a unit quaternion. */
function poseJoints(poses, joints, shifts, turns, curve) {
  const count = joints.length / 3;
  for (let joint = 0; joint < count; joint++) {
    const mean = (values, width, column) => curve.reduce((sum, share, key) =>
      sum + share * values[(key * count + joint) * width + column], 0);
    const turn = [0, 1, 2, 3].map((column) => mean(turns, 4, column));
    const norm = Math.hypot(...turn), [w, x, y, z] = turn.map((part) => part / norm);
    const matrix = [
      1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
      2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
      2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ];
    const p = joints.subarray(3 * joint, 3 * joint + 3);
    const offset = [0, 1, 2].map((row) => p[row] + mean(shifts, 3, row)
      - matrix[3 * row] * p[0] - matrix[3 * row + 1] * p[1] - matrix[3 * row + 2] * p[2]);
    poses.set([...matrix, ...offset, w, x, y, z], 16 * joint);
  }
}

/** Red, green and blue of every coefficient, at the nearest instant where colours were baked. */
function coloursAt(header, field, time) {
  if (field.instants === 1) return field.values;
  const [start, end] = header.times;
  const part = Math.min(Math.max((time - start) / (end - start), 0), 1) * (field.instants - 1);
  const size = header.count * field.width, before = Math.min(Math.floor(part), field.instants - 2);
  const mix = part - before, out = new Float32Array(size);
  for (let i = 0, a = before * size, b = a + size; i < size; i++, a++, b++) {
    out[i] = field.values[a] + (field.values[b] - field.values[a]) * mix;
  }
  return out;
}

/** Distances of the Gaussians along the view axis, and their indices from far to near by a counting sort. */
class DepthOrder {
  constructor(count) {
    this.depth = new Float32Array(count);
    this.key = new Uint16Array(count);
    this.seen = new Uint32Array(count);
    this.order = new Uint32Array(count);
    this.starts = new Uint32Array(65537);
    this.near = 0;
    this.far = 1;
  }

  /** Only what can be seen is kept: in front of the near plane, and opaque enough to reach one pixel. */
  sort(place, cameraFromWorld, nearPlane, alphaMin) {
    const { depth, key, seen, order, starts } = this;
    const [x, y, z, w] = [2, 6, 10, 14].map((i) => -cameraFromWorld[i]);  // the column-major matrix's third row
    let kept = 0, near = Infinity, far = -Infinity;
    for (let n = 0, i = 0; n < depth.length; n++, i += 4) {
      const distance = x * place[i] + y * place[i + 1] + z * place[i + 2] + w;
      if (distance <= nearPlane || place[i + 3] < alphaMin) continue;
      depth[n] = distance;
      seen[kept++] = n;
      if (distance < near) near = distance;
      if (distance > far) far = distance;
    }
    const scale = far > near ? 65535 / (far - near) : 0;
    starts.fill(0);
    for (let i = 0; i < kept; i++) {
      const bucket = ((far - depth[seen[i]]) * scale) | 0;
      key[i] = bucket;
      starts[bucket + 1]++;
    }
    for (let bucket = 0; bucket < 65536; bucket++) starts[bucket + 1] += starts[bucket];
    for (let i = 0; i < kept; i++) order[starts[key[i]]++] = seen[i];
    if (kept) [this.near, this.far] = [near, far];
    return kept;
  }
}

/** The asset at one time, seen one way: arrays as long as the painter's tables, and what has to be sent again. */
class Scene {
  constructor(header, fields) {
    this.header = header;
    this.fields = fields;
    this.count = header.count;
    this.coefficients = coefficientsOf(header);
    const room = (texels) => new Float32Array(4 * 2048 * Math.max(1, Math.ceil(texels / 2048)));
    this.place = room(this.count);
    this.shape = room(2 * this.count);
    this.colour = room(this.coefficients * this.count);
    this.depth = new DepthOrder(this.count);
    this.move = MOTIONS[header.motion](header, fields);
    this.time = null;
    this.valued = "";
    this.wanted = { shape: true, colour: true };
  }

  /**
   * All that the painter needs for a time (seconds), a camera (column-major cameraFromWorld) and a mode: places, order
   * and scale, with the shapes and colours where they are not as they were at the last call.
   */
  frame(time, cameraFromWorld, mode) {
    const { header, depth } = this;
    this.advance(time);
    this.measure(mode);
    const begun = performance.now();
    const kept = depth.sort(this.place, cameraFromWorld, header.near, header.alpha_min);
    const sorting = performance.now() - begun;
    const { shape, colour } = this.wanted;
    this.wanted = { shape: false, colour: false };
    return {
      place: this.place, shape: shape ? this.shape : null, colour: colour ? this.colour : null,
      order: depth.order.subarray(0, kept), kept, near: depth.near, far: depth.far, sorting,
      largest: mode === "colour" || mode === "depth" ? 1 : this.largest(kept),
    };
  }

  /** Everything is sent again with the next frame. */
  forget() {
    this.wanted = { shape: true, colour: true };
  }

  /** Evaluates the motion. */
  advance(time) {
    if (time === this.time) return;
    const changed = this.move(time, this.place, this.shape);
    if (changed.colour) {
      const values = coloursAt(this.header, this.fields.colour, time);
      for (let i = 0, from = 0, to = 0; i < this.coefficients * this.count; i++, to++) {
        for (let channel = 0; channel < 3; channel++) this.colour[to++] = values[from++];
      }
    }
    this.wanted.shape ||= changed.shape;
    this.wanted.colour ||= changed.colour;
    this.time = time;
    this.valued = "";
  }

  /** Gives every Gaussian the value that a scalar mode shows: its speed in units a second, or a packed field. */
  measure(mode) {
    const name = `${mode} ${this.time}`;
    if (mode === "colour" || mode === "depth" || name === this.valued) return;
    if (mode === "speed") {
      const [start, end] = this.header.times, step = Math.max((end - start) / 256, 1e-4);
      const later = new Float32Array(this.place.length), spare = new Float32Array(this.shape.length);
      const side = this.time + step > end ? -step : step;
      this.move(this.time + side, later, spare);
      for (let n = 0; n < this.count; n++) {
        const part = (axis) => later[4 * n + axis] - this.place[4 * n + axis];
        const there = this.place[4 * n + 3] > 0 && later[4 * n + 3] > 0;
        this.shape[8 * n + 7] = there ? Math.hypot(part(0), part(1), part(2)) / step : 0;
      }
    } else {
      for (let n = 0; n < this.count; n++) this.shape[8 * n + 7] = this.fields[mode].values[n];
    }
    this.wanted.shape = true;
    this.valued = name;
  }

  /** What everything is measured against in a scalar mode: the 98th percentile of what can be seen. */
  largest(kept) {
    const values = Float32Array.from(this.depth.order.subarray(0, kept), (n) => this.shape[8 * n + 7]).sort();
    return Math.max(values[Math.floor(0.98 * (kept - 1))] || 0, 1e-6);
  }
}

function coefficientsOf(header) {
  return header.harmonics * (header.degree + 1) ** 2;
}

/** In a worker: the first message is the header and the bytes, every other one asks for a frame. */
function serve() {
  let scene = null;
  onmessage = ({ data }) => {
    if (data.header) {
      scene = new Scene(data.header, unpackFields(data.header, data.bytes));
      return;
    }
    if (data.forget) scene.forget();
    const begun = performance.now();
    const frame = scene.frame(data.time, data.cameraFromWorld, data.mode);
    const own = (values) => values && values.slice();
    const sent = { ...frame, place: own(frame.place), shape: own(frame.shape), colour: own(frame.colour),
      order: own(frame.order), working: performance.now() - begun, number: data.number };
    postMessage(sent, [sent.place, sent.shape, sent.colour, sent.order].filter(Boolean).map((one) => one.buffer));
  };
}
