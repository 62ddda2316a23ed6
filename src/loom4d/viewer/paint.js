// Paint: Gaussians to pixels with WebGL2, by the rules of the Python rasteriser, so that both draw one picture.

const SPLAT_VERTEX = `#version 300 es
precision highp float;
precision highp sampler2D;
uniform sampler2D place;   // x y z opacity
uniform sampler2D shape;   // covariance xx xy xz yy | yz zz, moment, value
uniform sampler2D colour;  // one texel per coefficient: harmonics outermost, then spherical harmonics
uniform mat4 cameraFromWorld;
uniform vec3 eye;
uniform vec2 focal, centre, size;  // pixels, y up
uniform vec2 plane;                // widest slope the projection is linearised at
uniform vec2 distances;            // nearest and farthest Gaussian
uniform float blur, alphaMin, time, period, fastest;
uniform int degree, harmonics, mode;
in uint index;
flat out vec2 middle;
flat out vec3 conic;
flat out vec4 tint;

vec4 texel(sampler2D table, int place) {
  int width = textureSize(table, 0).x;
  return texelFetch(table, ivec2(place % width, place / width), 0);
}

vec3 shade(int splat, vec3 towards, float moment) {
  float x = towards.x, y = towards.y, z = towards.z, basis[16];
  basis[0] = 0.28209479177387814;
  basis[1] = -0.4886025119029199 * y; basis[2] = 0.4886025119029199 * z; basis[3] = -0.4886025119029199 * x;
  basis[4] = 1.0925484305920792 * x * y; basis[5] = -1.0925484305920792 * y * z;
  basis[6] = 0.31539156525252005 * (2.0 * z * z - x * x - y * y);
  basis[7] = -1.0925484305920792 * x * z; basis[8] = 0.5462742152960396 * (x * x - y * y);
  basis[9] = -0.5900435899266435 * y * (3.0 * x * x - y * y); basis[10] = 2.890611442640554 * x * y * z;
  basis[11] = -0.4570457994644658 * y * (4.0 * z * z - x * x - y * y);
  basis[12] = 0.3731763325901154 * z * (2.0 * z * z - 3.0 * x * x - 3.0 * y * y);
  basis[13] = -0.4570457994644658 * x * (4.0 * z * z - x * x - y * y);
  basis[14] = 1.445305721320277 * z * (x * x - y * y); basis[15] = -0.5900435899266435 * x * (x * x - 3.0 * y * y);
  int bands = (degree + 1) * (degree + 1), first = splat * bands * harmonics;
  vec3 sum = vec3(0.5);
  for (int n = 0; n < harmonics; n++) {
    float beat = cos(6.283185307179586 * float(n) * (moment - time) / period);
    for (int band = 0; band < bands; band++) sum += beat * basis[band] * texel(colour, first + n * bands + band).rgb;
  }
  return max(sum, 0.0);
}

void main() {
  int splat = int(index);
  vec4 here = texel(place, splat), upper = texel(shape, 2 * splat), lower = texel(shape, 2 * splat + 1);
  vec3 local = (cameraFromWorld * vec4(here.xyz, 1.0)).xyz;
  float depth = -local.z;
  middle = centre + focal * local.xy / depth;

  // EWA: the projection's slope at the centre, held inside a little more than the picture.
  vec2 slope = clamp(local.xy / depth, -plane, plane);
  mat3 world = mat3(upper.x, upper.y, upper.z, upper.y, upper.w, lower.x, upper.z, lower.x, lower.y);
  mat3 turn = mat3(cameraFromWorld);
  mat3 inCamera = turn * world * transpose(turn);
  vec3 across = vec3(focal.x, 0.0, focal.x * slope.x) / depth;
  vec3 upward = vec3(0.0, focal.y, focal.y * slope.y) / depth;
  vec3 carried = inCamera * across;
  float xx = dot(across, carried) + blur, xy = dot(upward, carried), yy = dot(upward, inCamera * upward) + blur;
  float area = xx * yy - xy * xy;
  conic = vec3(yy, -xy, xx) / area;

  // The smallest turned box around every pixel where alpha reaches alphaMin.
  float mean = 0.5 * (xx + yy), spread = length(vec2(0.5 * (xx - yy), xy));
  vec2 axis = spread > 1e-6 * mean ? vec2(0.5 * (xx - yy) + spread, xy) : vec2(1.0, 0.0);
  axis = dot(axis, axis) > 1e-12 * mean * mean ? normalize(axis) : vec2(0.0, 1.0);
  float reach = sqrt(2.0 * log(max(here.w / alphaMin, 1.0)));
  vec2 corner = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
  vec2 offset = corner.x * axis * sqrt(mean + spread) + corner.y * vec2(-axis.y, axis.x) * sqrt(max(mean - spread, 0.0));
  gl_Position = vec4((middle + offset * reach) / size * 2.0 - 1.0, 0.0, 1.0);

  vec3 seen;
  if (mode == 0) seen = shade(splat, normalize(here.xyz - eye), lower.z);
  else if (mode == 1) seen = vec3((distances.y - depth) / max(distances.y - distances.x, 1e-6));
  else seen = vec3(clamp(lower.w / fastest, 0.0, 1.0));
  tint = vec4(seen, here.w);
}`;

const SPLAT_FRAGMENT = `#version 300 es
precision highp float;
uniform float alphaMin, alphaMax;
flat in vec2 middle;
flat in vec3 conic;
flat in vec4 tint;
out vec4 result;
void main() {
  vec2 d = gl_FragCoord.xy - middle;
  float alpha = tint.a * exp(-0.5 * (conic.x * d.x * d.x + conic.z * d.y * d.y) - conic.y * d.x * d.y);
  alpha = min(alpha, alphaMax);
  if (alpha < alphaMin) discard;
  result = vec4(tint.rgb * alpha, alpha);
}`;

const SCREEN_VERTEX = `#version 300 es
out vec2 at;
void main() {
  at = vec2((gl_VertexID << 1) & 2, gl_VertexID & 2);
  gl_Position = vec4(at * 2.0 - 1.0, 0.0, 1.0);
}`;

const SCREEN_FRAGMENT = `#version 300 es
precision highp float;
uniform sampler2D layer;
uniform vec4 background;  // premultiplied
uniform int mode;
in vec2 at;
out vec4 result;
vec3 scale(float v) {  // dark blue, teal, yellow: even in lightness, and readable without red or green
  vec3 low = vec3(0.13, 0.10, 0.33), half_ = vec3(0.10, 0.55, 0.55), high = vec3(0.99, 0.91, 0.30);
  return v < 0.5 ? mix(low, half_, v * 2.0) : mix(half_, high, v * 2.0 - 1.0);
}
void main() {
  vec4 paint = texture(layer, at);
  if (mode != 0 && paint.a > 0.0) paint.rgb = scale(paint.r / paint.a) * paint.a;
  result = min(paint + (1.0 - paint.a) * background, 1.0);
}`;

class Painter {
  /** Throws where the browser has no WebGL2. */
  constructor(canvas, header) {
    this.canvas = canvas;
    this.header = header;
    const gl = canvas.getContext("webgl2", { alpha: true, antialias: false, depth: false, premultipliedAlpha: true });
    if (!gl) throw new Error("WebGL2 is missing");
    this.gl = gl;
    this.build();
  }

  build() {
    const { gl } = this, { count } = this.header;
    // Blending hundreds of faint layers needs more than 8 bits; where 16 cannot be had, 8 still show the asset.
    this.deep = Boolean(gl.getExtension("EXT_color_buffer_float") || gl.getExtension("EXT_color_buffer_half_float"));
    this.splats = this.program(SPLAT_VERTEX, SPLAT_FRAGMENT);
    this.screen = this.program(SCREEN_VERTEX, SCREEN_FRAGMENT);
    this.place = this.table(count);
    this.shape = this.table(2 * count);
    this.colour = this.table(coefficientsOf(this.header) * count);
    this.indices = gl.createBuffer();
    this.splatArray = gl.createVertexArray();
    gl.bindVertexArray(this.splatArray);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.indices);
    gl.bufferData(gl.ARRAY_BUFFER, Math.max(4 * count, 4), gl.DYNAMIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribIPointer(0, 1, gl.UNSIGNED_INT, 0, 0);
    gl.vertexAttribDivisor(0, 1);
    this.screenArray = gl.createVertexArray();
    this.layer = gl.createTexture();
    this.framebuffer = gl.createFramebuffer();
    this.layerSize = [0, 0];
  }

  program(vertex, fragment) {
    const gl = this.gl, handle = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(handle, shader);
    }
    gl.bindAttribLocation(handle, 0, "index");
    gl.linkProgram(handle);
    if (!gl.getProgramParameter(handle, gl.LINK_STATUS) && !gl.isContextLost()) {
      const logs = gl.getAttachedShaders(handle).map((shader) => gl.getShaderInfoLog(shader));
      throw new Error(`The graphics driver refused a shader: ${logs.join(" ")} ${gl.getProgramInfoLog(handle)}`);
    }
    const uniforms = {};
    for (let i = 0; i < (gl.getProgramParameter(handle, gl.ACTIVE_UNIFORMS) || 0); i++) {
      const { name } = gl.getActiveUniform(handle, i);
      uniforms[name] = gl.getUniformLocation(handle, name);
    }
    return { handle, uniforms };
  }

  /** A float texture of at least `texels` texels in rows of 2048; its last row may be part empty. */
  table(texels) {
    const gl = this.gl, width = 2048, height = Math.max(1, Math.ceil(texels / width));
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texStorage2D(gl.TEXTURE_2D, 1, gl.RGBA32F, width, height);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.NEAREST);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MAG_FILTER, gl.NEAREST);
    return { texture, width, height };
  }

  /** Sends what a frame of the scene brings. */
  take(frame) {
    this.fill(this.place, frame.place);
    if (frame.shape) this.fill(this.shape, frame.shape);
    if (frame.colour) this.fill(this.colour, frame.colour);
  }

  /** Sends an array as long as the table. */
  fill(table, values) {
    const gl = this.gl;
    gl.bindTexture(gl.TEXTURE_2D, table.texture);
    gl.texSubImage2D(gl.TEXTURE_2D, 0, 0, 0, table.width, table.height, gl.RGBA, gl.FLOAT, values);
  }

  /** The layer that Gaussians are blended in, `width` × `height`. */
  prepareLayer(width, height) {
    const gl = this.gl;
    gl.bindFramebuffer(gl.FRAMEBUFFER, this.framebuffer);
    if (this.layerSize[0] === width && this.layerSize[1] === height) return;
    gl.bindTexture(gl.TEXTURE_2D, this.layer);
    const [inside, type] = this.deep ? [gl.RGBA16F, gl.HALF_FLOAT] : [gl.RGBA8, gl.UNSIGNED_BYTE];
    gl.texImage2D(gl.TEXTURE_2D, 0, inside, width, height, 0, gl.RGBA, type, null);
    for (const name of [gl.TEXTURE_MIN_FILTER, gl.TEXTURE_MAG_FILTER]) gl.texParameteri(gl.TEXTURE_2D, name, gl.LINEAR);
    for (const name of [gl.TEXTURE_WRAP_S, gl.TEXTURE_WRAP_T]) gl.texParameteri(gl.TEXTURE_2D, name, gl.CLAMP_TO_EDGE);
    gl.framebufferTexture2D(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.TEXTURE_2D, this.layer, 0);
    this.layerSize = [width, height];
  }

  /**
   * Draws a frame of the scene that was taken, in its order, to the whole canvas. `view` has cameraFromWorld
   * (column-major), eye and focal as `cameraOf` makes them; `look` has background (rgba), mode, blur (px² in the
   * layer), time and detail (layer pixels per canvas pixel).
   */
  draw(frame, view, look) {
    const { gl, header, canvas } = this;
    const width = Math.max(1, Math.round(canvas.width * look.detail));
    const height = Math.max(1, Math.round(canvas.height * look.detail));
    this.prepareLayer(width, height);
    gl.viewport(0, 0, width, height);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.enable(gl.BLEND);
    gl.blendFunc(gl.ONE, gl.ONE_MINUS_SRC_ALPHA);
    gl.useProgram(this.splats.handle);
    const at = this.splats.uniforms;
    [this.place, this.shape, this.colour].forEach((table, unit) => {
      gl.activeTexture(gl.TEXTURE0 + unit);
      gl.bindTexture(gl.TEXTURE_2D, table.texture);
    });
    gl.uniform1i(at.place, 0), gl.uniform1i(at.shape, 1), gl.uniform1i(at.colour, 2);
    gl.uniformMatrix4fv(at.cameraFromWorld, false, view.cameraFromWorld);
    gl.uniform3fv(at.eye, view.eye);
    gl.uniform2f(at.focal, view.focal[0] * width, view.focal[1] * height);
    gl.uniform2f(at.centre, width / 2, height / 2);
    gl.uniform2f(at.size, width, height);
    gl.uniform2f(at.plane, header.slope_limit * 0.5 / view.focal[0], header.slope_limit * 0.5 / view.focal[1]);
    gl.uniform2f(at.distances, frame.near, frame.far);
    gl.uniform1f(at.blur, look.blur), gl.uniform1f(at.time, look.time), gl.uniform1f(at.fastest, frame.largest);
    gl.uniform1f(at.alphaMin, header.alpha_min), gl.uniform1f(at.alphaMax, header.alpha_max);
    gl.uniform1f(at.period, header.period);
    gl.uniform1i(at.degree, header.degree), gl.uniform1i(at.harmonics, header.harmonics);
    gl.uniform1i(at.mode, look.mode);
    gl.bindVertexArray(this.splatArray);
    gl.bindBuffer(gl.ARRAY_BUFFER, this.indices);
    gl.bufferSubData(gl.ARRAY_BUFFER, 0, frame.order, 0, frame.kept);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, frame.kept);

    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.disable(gl.BLEND);
    gl.useProgram(this.screen.handle);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, this.layer);
    gl.uniform1i(this.screen.uniforms.layer, 0);
    gl.uniform1i(this.screen.uniforms.mode, look.mode);
    const [red, green, blue, alpha] = look.background;
    gl.uniform4f(this.screen.uniforms.background, red * alpha, green * alpha, blue * alpha, alpha);
    gl.bindVertexArray(this.screenArray);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }
}

/** `cameras.orbit` moved to look at `target`, with `fov` degrees across the shorter side of a picture. */
function cameraOf({ azimuth, elevation, radius, target, fov }, aspect) {
  const a = azimuth * Math.PI / 180, e = elevation * Math.PI / 180;
  const back = [Math.cos(e) * Math.sin(a), Math.sin(e), Math.cos(e) * Math.cos(a)];
  const right = [Math.cos(a), 0, -Math.sin(a)];
  const up = [-Math.sin(e) * Math.sin(a), Math.cos(e), -Math.sin(e) * Math.cos(a)];
  const eye = back.map((part, axis) => target[axis] + radius * part);
  const along = (row) => -(row[0] * eye[0] + row[1] * eye[1] + row[2] * eye[2]);
  const focal = 0.5 / Math.tan(fov * Math.PI / 360);
  return {
    eye, right, up,
    cameraFromWorld: [
      right[0], up[0], back[0], 0, right[1], up[1], back[1], 0, right[2], up[2], back[2], 0,
      along(right), along(up), along(back), 1,
    ],
    focal: [focal / Math.max(aspect, 1), focal * Math.min(aspect, 1)],
  };
}
