// Controls: what the viewer's state is, what changes it, and when a picture is drawn.

const element = (id) => document.getElementById(id);
const MODES = { colour: 0, depth: 1, speed: 2 };  // every packed scalar field joins as another 2

class Viewer {
  constructor(header, bytes, painter, canvas) {
    const [start, end] = header.times;
    Object.assign(this, { header, bytes, painter, canvas, start, end });
    this.first = { ...header.camera, target: [0, 0, 0] };
    this.camera = { ...this.first, target: [...this.first.target] };
    this.time = start;
    this.direction = 1;
    this.speed = 1;
    this.pingpong = true;
    this.playing = false;
    this.turntable = false;
    this.mode = "colour";
    this.background = "page";
    this.own = [0.5, 0.6, 0.7];
    this.blur = null;      // px²; null: the blur the asset was fitted with, at the size it was fitted at
    this.detail = 1;       // drawn pixels per shown pixel: lowered while a slow machine plays
    this.fixed = null;     // [width, height] in canvas pixels where a script set them
    this.dirty = true;
    this.scene = null;     // of this thread, made when a picture is wanted at once
    this.filled = null;    // whose frame the painter's tables hold: the scene or the worker
    this.pending = null;   // what the worker was asked for and has not brought yet
    this.shown = null;     // the last frame and the state it was made for
    this.waiting = [];
    this.recording = false;
    this.onframe = () => {};
    this.worker = this.hire();
  }

  /** A worker that moves and sorts; null where the browser has none, and this thread does it. */
  hire() {
    const source = `${element("scene").textContent}\nserve();`;
    let worker;
    try {
      worker = new Worker(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
    } catch {
      return null;
    }
    worker.onerror = (event) => {
      event.preventDefault();
      Object.assign(this, { worker: null, pending: null, dirty: true });
    };
    worker.onmessage = ({ data }) => {
      const state = this.pending;
      this.pending = null;
      if (this.fixed === null) this.paint(data, state);  // else a script has drawn something else meanwhile
      if (!this.dirty) this.waiting.splice(0).forEach((done) => done());
    };
    worker.postMessage({ header: this.header, bytes: this.bytes });
    return worker;
  }

  /** Resolves when what is seen is what was last asked for. */
  settled() {
    if (!this.dirty && !this.pending) return Promise.resolve();
    return new Promise((done) => this.waiting.push(done));
  }

  backgroundColour() {
    if (this.background === "white") return [1, 1, 1, 1];
    if (this.background === "black") return [0, 0, 0, 1];
    if (this.background === "own") return [...this.own, 1];
    if (!this.recording) return [0, 0, 0, 0];
    const page = getComputedStyle(document.body).backgroundColor.match(/[\d.]+/g);  // videos are not transparent
    return [...page.slice(0, 3).map((part) => part / 255), 1];
  }

  /** The blur of the rasteriser is meant at the size of the fit; the same share of a larger picture is more. */
  blurAt(height) {
    if (this.blur !== null) return this.blur;
    return this.header.blur * Math.max(1, height / this.header.fitted_size) ** 2;
  }

  /** Sets the canvas to its size on the page; false where nothing can be drawn. */
  fit() {
    const { canvas } = this, ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [width, height] = this.fixed || [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    return width > 0 && height > 0 && !this.painter.gl.isContextLost();
  }

  state() {
    return { time: this.time, camera: { ...this.camera, target: [...this.camera.target] }, mode: this.mode };
  }

  /**
   * Has the picture of the present state drawn: by the worker, where there is one, a moment later. The picture is then
   * of the time and camera that its Gaussians were moved and sorted for, never of a later one.
   */
  ask() {
    if (this.pending) return;
    this.dirty = false;
    if (!this.worker) {
      this.draw();
      return;
    }
    this.pending = this.state();
    const { cameraFromWorld } = cameraOf(this.pending.camera, 1);
    const { time, mode } = this.pending, forget = this.filled !== this.worker;
    this.filled = this.worker;
    this.worker.postMessage({ time, mode, cameraFromWorld, forget });
  }

  /** Draws the present state at once. */
  draw() {
    this.scene ||= new Scene(this.header, unpackFields(this.header, this.bytes));
    if (this.filled !== this.scene) this.scene.forget();
    this.filled = this.scene;
    const state = this.state();
    this.dirty = false;
    this.paint(this.scene.frame(state.time, cameraOf(state.camera, 1).cameraFromWorld, state.mode), state);
  }

  /** Draws a frame; without one, the last again, as after a change of size or background. */
  paint(frame = null, state = null) {
    if (!this.fit()) return;
    const { canvas, painter } = this;
    if (frame) {
      painter.take(frame);
      this.shown = { frame, state };
    }
    if (!this.shown) return;
    const { camera, time, mode } = this.shown.state;
    painter.draw(this.shown.frame, cameraOf(camera, canvas.width / canvas.height), {
      background: this.backgroundColour(),
      mode: MODES[mode] ?? 2,
      blur: this.blurAt(Math.min(canvas.width, canvas.height) * this.detail),
      time,
      detail: this.detail,
    });
    this.onframe();
  }

  /** Moves time and turntable on by `seconds`. */
  step(seconds) {
    if (this.playing && this.end > this.start) {
      let time = this.time + seconds * this.speed * this.direction;
      if (time > this.end || time < this.start) {
        const span = this.end - this.start;
        if (this.pingpong) {
          const past = (((time - this.start) % (2 * span)) + 2 * span) % (2 * span);
          this.direction *= -1;
          time = this.start + (past > span ? 2 * span - past : past);
        } else {
          this.direction = 1;
          time = this.start + ((((time - this.start) % span) + span) % span);
        }
      }
      this.time = time;
      this.dirty = true;
    }
    if (this.turntable) {
      this.camera.azimuth = (this.camera.azimuth + 24 * seconds) % 360;
      this.dirty = true;
    }
  }

  /** Draws when something changed; coarser while a machine that cannot keep up plays, sharp again at rest. */
  run() {
    let before = performance.now(), slow = 0;
    const tick = (now) => {
      const seconds = Math.min((now - before) / 1000, 0.25);
      before = now;
      if (this.fixed === null) {
        const moving = this.playing || this.turntable;
        if (moving) {
          slow = 0.85 * slow + 0.15 * seconds;
          if (slow > 0.06 && this.detail > 0.4) [this.detail, slow] = [this.detail * 0.75, 0.03];
        } else if (this.detail < 1) [this.detail, this.dirty] = [1, true];
        if (!this.recording) this.step(seconds);
      }
      if (this.dirty && this.fixed === null) this.ask();
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  turn(azimuth, elevation) {
    this.camera.azimuth = (((this.camera.azimuth + azimuth) % 360) + 360) % 360;
    this.camera.elevation = Math.min(Math.max(this.camera.elevation + elevation, -89.9), 89.9);
    this.dirty = true;
  }

  zoom(factor) {
    this.camera.radius = Math.min(Math.max(this.camera.radius * factor, 0.2), 50);
    this.dirty = true;
  }

  /** Moves the target by a share of the picture's shorter side, right and up. */
  pan(right, up) {
    const view = cameraOf(this.camera, 1), reach = this.camera.radius / view.focal[1];
    this.camera.target = this.camera.target.map((part, axis) =>
      part - reach * (right * view.right[axis] + up * view.up[axis]));
    this.dirty = true;
  }

  reset() {
    this.camera = { ...this.first, target: [...this.first.target] };
    this.dirty = true;
  }

  /**
   * The same picture for the same options, whatever happened before: azimuth, elevation (degrees), radius, fov, time
   * (seconds), size (pixels, or [width, height]), background (a name or [r, g, b] in 0..1), mode, blur (px²).
   */
  render(options = {}) {
    const { time = this.start, size = 512, background = "white", mode = "colour", blur = null } = options;
    this.reset();
    for (const name of ["azimuth", "elevation", "radius", "fov", "target"]) {
      if (options[name] !== undefined) this.camera[name] = options[name];
    }
    Object.assign(this, { time, mode, blur, playing: false, turntable: false, detail: 1 });
    this.fixed = Array.isArray(size) ? size : [size, size];
    if (Array.isArray(background)) [this.background, this.own] = ["own", background];
    else this.background = background;
    document.body.classList.add("bare");
    [this.canvas.style.width, this.canvas.style.height] = this.fixed.map((pixels) => `${pixels}px`);
    this.draw();
    return this.canvas.toDataURL("image/png");
  }
}

/** Drags, pinches, wheel and keys. */
function listen(viewer, actions) {
  const canvas = viewer.canvas, pointers = new Map();
  const gap = () => {
    const [a, b] = [...pointers.values()];
    return Math.hypot(a.x - b.x, a.y - b.y);
  };
  const release = (event) => pointers.delete(event.pointerId);
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
  });
  for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(name, release);
  canvas.addEventListener("pointermove", (event) => {
    const last = pointers.get(event.pointerId);
    if (!last) return;
    const before = pointers.size === 2 ? gap() : 0;
    const x = event.clientX - last.x, y = event.clientY - last.y;
    pointers.set(event.pointerId, { x: event.clientX, y: event.clientY });
    const side = Math.min(canvas.clientWidth, canvas.clientHeight);
    if (pointers.size === 2) {
      viewer.zoom(before / Math.max(gap(), 1));
      viewer.pan(x / side / 2, -y / side / 2);
    } else if (event.shiftKey || event.buttons & 6) viewer.pan(x / side, -y / side);
    else viewer.turn(-x * 200 / side, y * 200 / side);
  });
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    viewer.zoom(Math.exp(Math.min(Math.max(event.deltaY, -200), 200) * (event.ctrlKey ? 0.01 : 0.0015)));
  }, { passive: false });
  const keys = {
    " ": actions.play, p: actions.pingpong, r: actions.turntable, b: actions.background, m: actions.mode,
    s: actions.shot, v: actions.film, d: actions.theme, f: actions.full, 0: actions.reset, Home: actions.reset, "?": actions.help,
    "+": () => viewer.zoom(0.9), "=": () => viewer.zoom(0.9), "-": () => viewer.zoom(1 / 0.9),
    ",": () => actions.nudge(-1), ".": () => actions.nudge(1), "[": () => actions.faster(-1), "]": () => actions.faster(1),
  };
  const arrows = { ArrowLeft: [-5, 0], ArrowRight: [5, 0], ArrowUp: [0, 5], ArrowDown: [0, -5] };
  window.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const inControl = event.target.closest("select, input, button") !== null;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (arrows[key] && !inControl) viewer.turn(...arrows[key]);
    else if (keys[key] && !(inControl && (key === " " || event.target.closest("select, input[type=color]")))) keys[key]();
    else return;
    event.preventDefault();
  });
}
