// Controls: what the viewer's state is, what changes it, and when a picture is drawn.

const element = (id) => document.getElementById(id);
const MODES = { colour: 0, depth: 1, speed: 2 };  // every packed scalar field joins as another 2

class Viewer {
  constructor(scene, painter, canvas) {
    const [start, end] = scene.header.times;
    Object.assign(this, { scene, painter, canvas, start, end });
    this.first = { ...scene.header.camera, target: [0, 0, 0] };
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
    this.sorted = "";
    this.onframe = () => {};
  }

  backgroundColour() {
    if (this.background === "white") return [1, 1, 1, 1];
    if (this.background === "black") return [0, 0, 0, 1];
    if (this.background === "own") return [...this.own, 1];
    return [0, 0, 0, 0];
  }

  /** The blur of the rasteriser is 0.3 px² at the size of the fit; the same share of a larger picture is more. */
  blurAt(height) {
    if (this.blur !== null) return this.blur;
    return this.scene.header.blur * Math.max(1, height / this.scene.header.fitted_size) ** 2;
  }

  draw() {
    const { scene, painter, canvas } = this;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [width, height] = this.fixed || [canvas.clientWidth * ratio, canvas.clientHeight * ratio].map(Math.round);
    if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
    if (!width || !height || painter.gl.isContextLost()) return;
    const view = cameraOf(this.camera, width / height);
    scene.advance(this.time, painter);
    const order = scene.order;
    const wanted = JSON.stringify([this.time, view.cameraFromWorld]);
    if (wanted !== this.sorted) {
      this.kept = order.sort(scene.place, view.cameraFromWorld, scene.header.near, scene.header.alpha_min);
      this.sorted = wanted;
    }
    scene.measure(this.mode, painter);
    this.fastest = this.mode in { colour: 0, depth: 0 } ? 1 : scene.largest(this.kept);
    painter.draw(order.order, this.kept, view, {
      background: this.backgroundColour(),
      mode: MODES[this.mode] ?? 2,
      blur: this.blurAt(Math.min(width, height) * this.detail),
      time: this.time,
      fastest: this.fastest,
      distances: [order.near, order.far],
      detail: this.detail,
    });
    this.dirty = false;
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
        this.step(seconds);
      }
      if (this.dirty) this.draw();
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
    s: actions.shot, d: actions.theme, f: actions.full, 0: actions.reset, Home: actions.reset, "?": actions.help,
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

/** What buttons and keys do, and keeping the page in step with the state. */
function connect(viewer, header) {
  const say = (text) => { element("spoken").textContent = text; };
  const cycle = (select) => {
    select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
    select.dispatchEvent(new Event("change"));
    say(`${select.getAttribute("aria-label")}: ${select.selectedOptions[0].textContent}`);
  };
  const toggle = (name) => () => {
    viewer[name] = !viewer[name];
    viewer.dirty = true;
  };
  const actions = {
    play: () => {
      viewer.playing = !viewer.playing;
      if (viewer.playing && !viewer.pingpong) viewer.direction = 1;
      viewer.dirty = true;
    },
    pingpong: toggle("pingpong"),
    turntable: toggle("turntable"),
    reset: () => viewer.reset(),
    background: () => cycle(element("background")),
    mode: () => cycle(element("mode")),
    nudge: (way) => {
      const step = (viewer.end - viewer.start) / Math.max((header.frames || 25) - 1, 1);
      viewer.playing = false;
      viewer.time = Math.min(Math.max(viewer.time + way * step, viewer.start), viewer.end);
      viewer.dirty = true;
      say(element("clock").textContent);
    },
    faster: (way) => {
      const select = element("speed");
      select.selectedIndex = Math.min(Math.max(select.selectedIndex + way, 0), select.options.length - 1);
      select.dispatchEvent(new Event("change"));
    },
    shot: () => {
      viewer.draw();
      viewer.canvas.toBlob((blob) => {
        const link = document.createElement("a");
        link.href = URL.createObjectURL(blob);
        link.download = `${header.title.replace(/[^\p{L}\p{N}]+/gu, "-") || "loom4d"}.png`;
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
        say("Picture saved");
      });
    },
    theme: () => {
      const root = document.documentElement;
      root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    },
    full: () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
    help: () => say("Arrows turn, plus and minus zoom, space plays, comma and full stop step, square brackets change the "
      + "speed, P back and forth, R turntable, B background, M mode, S picture, D dark, F full screen, 0 first view."),
  };
  for (const name of ["play", "pingpong", "turntable", "reset", "shot", "theme", "full"]) {
    element(name).addEventListener("click", actions[name]);
  }
  const on = (id, type, change) => element(id).addEventListener(type, () => {
    change(element(id));
    viewer.dirty = true;
  });
  on("time", "input", (slider) => Object.assign(viewer, { playing: false, time: Number(slider.value) }));
  on("speed", "change", (select) => { viewer.speed = Number(select.value); });
  on("mode", "change", (select) => { viewer.mode = select.value; });
  on("own", "input", (input) => {
    viewer.own = [1, 3, 5].map((at) => parseInt(input.value.slice(at, at + 2), 16) / 255);
  });
  on("background", "change", (select) => {
    viewer.background = select.value;
    element("own").hidden = select.value !== "own";
    element("stage").classList.toggle("clear", select.value === "clear");
  });
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const follow = () => { document.documentElement.dataset.theme = dark.matches ? "dark" : "light"; };
  follow();
  dark.addEventListener("change", follow);
  new ResizeObserver(() => { if (viewer.fixed === null) viewer.draw(); }).observe(element("stage"));
  viewer.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  viewer.canvas.addEventListener("webglcontextrestored", () => {
    viewer.painter.build();
    viewer.scene.move = MOTIONS[header.motion](header, viewer.scene.fields);
    Object.assign(viewer.scene, { time: null, valued: "" });
    viewer.dirty = true;
  });
  listen(viewer, actions);
}

/** The side panel, and a function that keeps it in step with the viewer. */
function describe(viewer, header) {
  element("summary").textContent = header.summary;
  for (const [name, value] of Object.entries(header.facts)) {
    const term = document.createElement("dt"), text = document.createElement("dd");
    [term.textContent, text.textContent] = [name, value];
    element("facts").append(term, text);
  }
  for (const name of header.values) {
    const option = new Option(name[0].toUpperCase() + name.slice(1), name);
    element("mode").append(option);
  }
  const slider = element("time");
  [slider.min, slider.max] = [viewer.start, viewer.end];
  element("timeline").hidden = viewer.end <= viewer.start;
  const strip = header.input && Object.assign(new Image(), { src: header.input.picture });
  const ink = element("input").getContext("2d");
  let shown = -1;
  const showInput = () => {
    const column = nearest(header.input.times, viewer.time);
    if (column === shown || !strip.naturalWidth) return;
    const width = strip.naturalWidth / header.input.times.length;
    [ink.canvas.width, ink.canvas.height] = [width, strip.naturalHeight];
    ink.drawImage(strip, -column * width, 0);
    shown = column;
  };
  if (strip) {
    element("given").hidden = false;
    strip.addEventListener("load", showInput);
  }
  const grid = header.grid;
  if (grid) {
    element("woven").hidden = false;
    element("grid").src = grid.picture;
    element("sheet").querySelector("button").addEventListener("click", (event) => {
      const box = element("sheet").getBoundingClientRect();
      const pick = (part, count) => Math.min(Math.max(Math.floor(part * count), 0), count - 1);
      const column = pick((event.clientX - box.left) / box.width, grid.times.length);
      const row = pick((event.clientY - box.top) / box.height, grid.azimuths.length);
      Object.assign(viewer.camera, { azimuth: grid.azimuths[row][column], elevation: grid.elevations[row][column] });
      Object.assign(viewer, { time: grid.times[column], playing: false, turntable: false, dirty: true });
    });
  }
  const follow = () => {
    for (const name of ["pingpong", "turntable"]) element(name).setAttribute("aria-pressed", viewer[name]);
    element("play").setAttribute("aria-pressed", viewer.playing);
    element("play").setAttribute("aria-label", viewer.playing ? "Pause" : "Play");
    slider.value = viewer.time;
    element("clock").textContent = `${viewer.time.toFixed(2)} s`;
    slider.setAttribute("aria-valuetext", element("clock").textContent);
    element("legend").hidden = viewer.mode === "colour";
    element("least").textContent = viewer.mode === "depth" ? "far" : "0";
    element("most").textContent = viewer.mode === "depth" ? "near" : viewer.fastest.toPrecision(2);
    if (strip) showInput();
    if (!grid) return;
    const column = nearest(grid.times, viewer.time);
    const turn = (degrees) => Math.abs(((degrees - viewer.camera.azimuth + 540) % 360) - 180);
    const away = grid.azimuths.map((row) => turn(row[column]));
    const row = away.indexOf(Math.min(...away));
    const percent = (part) => `${100 * part}%`;
    Object.assign(element("cell").style, {
      left: percent(column / grid.times.length), top: percent(row / grid.azimuths.length),
      width: percent(1 / grid.times.length), height: percent(1 / grid.azimuths.length),
    });
  };
  viewer.onframe = follow;
}

function nearest(values, wanted) {
  let best = 0;
  values.forEach((value, index) => { if (Math.abs(value - wanted) < Math.abs(values[best] - wanted)) best = index; });
  return best;
}

/** State from an address such as `#azimuth=30&time=0.5&size=256`: with a size, that picture and nothing else. */
function stateFromAddress() {
  const state = {};
  for (const [name, text] of new URLSearchParams(location.hash.slice(1))) {
    state[name] = ["background", "mode"].includes(name) ? text : Number(text);
  }
  return state;
}

async function start() {
  const message = element("message"), canvas = element("view");
  const header = JSON.parse(element("header").textContent);
  try {
    const fields = unpackFields(header, await inflate(element("data").textContent.trim()));
    const scene = new Scene(header, fields);
    const viewer = new Viewer(scene, new Painter(canvas, scene), canvas);
    describe(viewer, header);
    connect(viewer, header);
    const state = stateFromAddress();
    message.hidden = true;
    if (state.size) viewer.render(state);
    else {
      for (const name of ["azimuth", "elevation", "radius"]) if (name in state) viewer.camera[name] = state[name];
      if ("time" in state) viewer.time = state.time;
      viewer.playing = viewer.end > viewer.start && !("time" in state) && !matchMedia("(prefers-reduced-motion)").matches;
    }
    viewer.run();
    return viewer;
  } catch (error) {
    message.textContent = error.message === "WebGL2 is missing"
      ? "This page needs WebGL2, which this browser does not offer. Any current Firefox, Chrome, Edge or Safari has it; "
        + "it may be switched off in the settings, under hardware or graphics acceleration."
      : `The asset could not be shown: ${error.message}`;
    message.setAttribute("role", "alert");
    throw error;
  }
}

window.loom4d = { ready: start() };
window.loom4d.ready.then((viewer) => {
  Object.assign(window.loom4d, { viewer, render: (options) => viewer.render(options) });
}, () => {});
