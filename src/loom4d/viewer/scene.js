// Scene: from the packed bytes to Gaussians at any time, and their order in depth. No graphics here.

/** Undoes base64 and gzip. */
async function inflate(base64) {
  const packed = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(base64)
    : Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/**
 * Fields by name: {values, width, instants}, values as (instant, Gaussian, column).
 * In the bytes a column of all instants and Gaussians comes after the other, and of a number first all low bytes,
 * then all next ones, which is what gzip likes.
 */
function unpackFields(header, bytes) {
  const fields = {};
  for (const { name, kind, width, instants, offset, low, step } of header.fields) {
    const rows = instants * header.count;
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
    fields[name] = { values, width, instants };
  }
  return fields;
}

/** Upper triangle of R S Sᵀ Rᵀ (3DGS, Equation 6) of quaternion (w, x, y, z) and log scales into `out` at `to`. */
function writeCovariance(out, to, w, x, y, z, logX, logY, logZ) {
  const norm = 1 / Math.hypot(w, x, y, z);
  w *= norm, x *= norm, y *= norm, z *= norm;
  const a = Math.exp(logX), b = Math.exp(logY), c = Math.exp(logZ);
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
          ...log_scale.values.subarray(3 * n, 3 * n + 3));
        shape[8 * n + 6] = moment.values[n];
      }
      shaped = true;
      return { shape: true, colour: true };
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
            const s = (i) => s0[3 * n + i] + (s1[3 * n + i] - s0[3 * n + i]) * grow;
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
