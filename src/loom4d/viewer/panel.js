// Panel: buttons, keys and the side panel, in step with the viewer; and the start of it all.

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
      viewer.paint();  // a canvas forgets its picture once it is on the page
      viewer.canvas.toBlob((blob) => {
        save(blob, header.title, "png");
        say("Picture saved");
      });
    },
    film: async () => {
      if (viewer.recording) return;
      element("film").setAttribute("aria-pressed", true);
      say(`Recording one turn, ${TURN_SECONDS} seconds`);
      save(...await recorded(viewer, header.title));
      element("film").setAttribute("aria-pressed", false);
      say("Turntable saved");
    },
    theme: () => {
      const root = document.documentElement;
      root.dataset.theme = root.dataset.theme === "dark" ? "light" : "dark";
    },
    full: () => (document.fullscreenElement ? document.exitFullscreen() : document.documentElement.requestFullscreen()),
    help: () => say("Arrows turn, plus and minus zoom, space plays, comma and full stop step, square brackets change the "
      + "speed, P back and forth, R turntable, V records a turn, B background, M mode, S picture, D dark, F full screen, "
      + "0 first view."),
  };
  element("film").hidden = !window.MediaRecorder;
  for (const name of ["play", "pingpong", "turntable", "reset", "shot", "film", "theme", "full"]) {
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
  new ResizeObserver(() => { if (viewer.fixed === null) viewer.paint(); }).observe(element("stage"));
  viewer.canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
  viewer.canvas.addEventListener("webglcontextrestored", () => {
    viewer.painter.build();
    Object.assign(viewer, { filled: null, dirty: true });
  });
  listen(viewer, actions);
}

function save(blob, title, suffix) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${title.replace(/[^\p{L}\p{N}]+/gu, "-") || "loom4d"}.${suffix}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const TURN_SECONDS = 8, RATE = 30;
const FILMS = ["video/webm;codecs=vp9", "video/webm;codecs=vp8", "video/webm", "video/mp4"];

/** A video of one turn around the asset as it plays, its title and its suffix. A slow machine takes longer over it. */
async function recorded(viewer, title, seconds = TURN_SECONDS) {
  const mimeType = FILMS.find((kind) => MediaRecorder.isTypeSupported(kind));
  const stream = viewer.canvas.captureStream(0), [track] = stream.getVideoTracks();
  const recorder = new MediaRecorder(stream, { mimeType, videoBitsPerSecond: 8e6 });
  const parts = [], start = viewer.camera.azimuth, count = Math.round(seconds * RATE);
  recorder.ondataavailable = (event) => parts.push(event.data);
  const ended = new Promise((done) => { recorder.onstop = done; });
  viewer.recording = true;  // the clock stands still but for the steps taken here
  recorder.start();
  const begun = performance.now();
  for (let picture = 0; picture < count; picture++) {
    viewer.camera.azimuth = (start + 360 * picture / count) % 360;
    viewer.dirty = true;
    await viewer.settled();
    viewer.paint();
    track.requestFrame();
    const due = begun + 1000 * (picture + 1) / RATE;
    await new Promise((done) => setTimeout(done, Math.max(due - performance.now(), 0)));
    viewer.step(1 / RATE);
  }
  recorder.stop();
  await ended;
  track.stop();
  viewer.camera.azimuth = start;
  Object.assign(viewer, { recording: false, dirty: true });
  const suffix = recorder.mimeType.includes("mp4") ? "mp4" : "webm";
  return [new Blob(parts, { type: recorder.mimeType }), `${title} turntable`, suffix];
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
    if (grid.heat) {
      element("heat").src = grid.heat;
      element("heating").hidden = false;
      element("heated").addEventListener("change", () => { element("heat").hidden = !element("heated").checked; });
    }
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
    element("most").textContent = viewer.mode === "depth" ? "near" : (viewer.shown?.frame.largest ?? 1).toPrecision(2);
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
    const bytes = await inflate(element("data").textContent.trim());
    const viewer = new Viewer(header, bytes, new Painter(canvas, header), canvas);
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
