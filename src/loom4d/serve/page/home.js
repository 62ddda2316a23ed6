// The first page: give a picture, see what the program will see, choose, start; and all runs.

import { about, ask, duration, film, h, send, size, spoken, STATES, twice, when } from "./parts.js";

const LABELS = {
  clip: "One view over time", orbit: "One moment, seen from all around",
  auto: "Find out", given: "The picture's own transparency", key: "A plain background's colour", u2netp: "A network",
};
const PAGE = 24;

export async function home(main, offered) {
  const room = h("div", { id: "room" });
  const drop = dropZone(offered, (upload) => {
    history.replaceState(null, "", `/?upload=${upload.id}`);
    show(upload);
  });
  const show = (upload) => {
    room.replaceChildren(workbench(upload, offered, () => {
      history.replaceState(null, "", "/");
      room.replaceChildren(drop);
    }));
    room.querySelector("h2").focus({ preventScroll: true });
    spoken(`${upload.name} is here. ${upload.look.line}`);
  };
  room.append(drop);
  const runs = h("section", { "aria-labelledby": "runs-title" });
  main.replaceChildren(
    h("h1", { className: "motto" }, "A picture in, a moving thing out"),
    h("p", { className: "lead" }, "Loom4D weaves views and moments of what you give it into a 3D asset that moves."),
    room, runs);
  const given = new URLSearchParams(location.search).get("upload");
  if (given && /^[0-9a-f]{20}$/.test(given)) {
    try {
      show(await ask(`/api/uploads/${given}`));
    } catch {
      history.replaceState(null, "", "/");
    }
  }
  await listRuns(runs);
}

// --- giving a file ---

function dropZone(offered, ondone) {
  const limits = offered.limits;
  const message = h("p", { className: "wrong", role: "alert" });
  const bar = h("progress", { max: 1, value: 0, hidden: true, "aria-label": "Upload" });
  const input = h("input", {
    type: "file", id: "file", className: "unseen", accept: "image/*,video/*,.glb,model/gltf-binary",
    onchange: () => input.files[0] && take(input.files[0]),
  });
  const words = h("span", { className: "big" }, "Drop a picture, a clip or a GLB");
  const zone = h("div", { className: "drop" }, input,
    h("label", { htmlFor: "file" }, words,
      h("span", { className: "button main" }, "Choose a file"),
      h("span", { className: "soft" }, `or paste a picture. Cut-outs with transparency work best. Up to ${size(limits.bytes)}, `
        + `${Math.round(limits.pixels / 1e6)} megapixels, ${limits.seconds} seconds.`)),
    bar, message);
  const take = async (file) => {
    message.textContent = "";
    if (file.size > limits.bytes) {
      message.textContent = `That file has ${size(file.size)}; at most ${size(limits.bytes)} are taken.`;
      return;
    }
    bar.hidden = false;
    bar.value = 0;
    zone.classList.add("busy");
    words.textContent = "Sending…";
    try {
      const upload = await send(file, (share) => {
        bar.value = share;
        if (share >= 1) {
          bar.removeAttribute("value");
          words.textContent = "Looking at it…";
        }
      });
      ondone(upload);
    } catch (error) {
      message.textContent = error.message;
    }
    zone.classList.remove("busy");
    words.textContent = "Drop a picture, a clip or a GLB";
    bar.hidden = true;
    input.value = "";
  };
  const over = (event) => {
    if (![...event.dataTransfer.types].includes("Files")) return;
    event.preventDefault();
    zone.classList.toggle("over", event.type === "dragover");
    if (event.type === "drop" && zone.isConnected) take(event.dataTransfer.files[0]);
  };
  for (const type of ["dragover", "dragleave", "drop"]) document.addEventListener(type, over);
  document.addEventListener("paste", (event) => {
    const file = event.clipboardData.files[0];
    if (file && zone.isConnected) take(file);
  });
  return zone;
}

// --- what it will see, and what is to be made of it ---

function workbench(upload, offered, onclose) {
  const choices = { ...offered.defaults };
  const seen = h("div", { className: "seen" });
  const wrong = h("p", { className: "wrong", role: "alert" });
  const start = h("button", { className: "main large", type: "submit" }, "Weave it");
  const time = h("output", { className: "time" });
  const how = h("p", { className: "soft" });
  const times = new Map();  // "preset default" -> its place on the form

  const look = async () => {
    seen.setAttribute("aria-busy", "true");
    wrong.textContent = "";
    try {
      const query = new URLSearchParams({ kind: choices.kind, matting: choices.matting, priors: choices.priors });
      shownAs(seen, await ask(`/api/uploads/${upload.id}?${query}`));
      start.disabled = false;
    } catch (error) {
      wrong.textContent = error.message;
      start.disabled = true;
    }
    seen.removeAttribute("aria-busy");
  };
  let asked = 0;
  const estimate = async () => {
    const turn = asked += 1;
    const { method, preset, quality, priors, kind } = choices;
    const query = new URLSearchParams({ input: upload.kind, method, preset, quality, priors, kind });
    const told = await ask(`/api/estimate?${query}`).catch(() => null);
    if (!told || turn !== asked) return;  // something else was chosen meanwhile
    for (const [group, values] of [["preset", told.presets], ["quality", told.qualities]]) {
      for (const [name, seconds] of Object.entries(values)) {
        const place = times.get(`${group} ${name}`);
        if (place) place.textContent = seconds === null ? "" : duration(seconds);
      }
    }
    time.textContent = told.seconds === null ? "" : about(told.seconds);
    how.textContent = told.seconds === null ? "The time is being measured on this machine." : `Known ${told.line}.`;
    const unknown = [told.seconds, ...Object.values(told.presets), ...Object.values(told.qualities)].includes(null);
    if (unknown) setTimeout(() => form.isConnected && estimate(), 3000);  // a trial may be under way
  };
  const choose = (name, value) => {
    choices[name] = value;
    if (name === "method") {
      if (!(choices.preset in offered.methods[value].presets)) choices.preset = Object.keys(offered.methods[value].presets)[0];
      presets.replaceWith(presets = presetCards());
    }
    if (["kind", "matting", "priors"].includes(name)) look();
    estimate();
  };
  const presetCards = () => cards("preset", "Preset", named(offered.methods[choices.method].presets)
    .filter(({ name }) => !(name in offered.qualities)), choices, choose, times);  // those are what the quality means
  let presets = presetCards();
  const sources = Object.entries(offered.priors).map(([name, facts]) =>
    ({ name, about: facts.missing || `${facts.views} × ${facts.frames} pictures of ${facts.resolution}²`, missing: Boolean(facts.missing) }));
  const seed = h("input", { type: "number", id: "seed", min: 0, max: 2147483647, value: 0, step: 1, onchange: () => {
    choices.seed = Math.max(0, Math.min(2147483647, Math.round(Number(seed.value)) || 0));
  } });
  const form = h("form", { className: "choices", onsubmit: async (event) => {
    event.preventDefault();
    start.disabled = true;
    try {
      const job = await ask("/api/jobs", "POST", { upload: upload.id, ...choices });
      location.assign(`/jobs/${job.id}`);
    } catch (error) {
      wrong.textContent = error.message;
      start.disabled = false;
    }
  } },
    Object.keys(offered.methods).length > 1
      ? cards("method", "Method", Object.entries(offered.methods).map(([name, one]) => ({ name, about: one.about })), choices, choose, times)
      : null,
    presets,
    cards("quality", "Quality", named(offered.qualities), choices, choose, times),
    h("details", {}, h("summary", {}, "More choices"),
      h("div", { className: "fields" },
        upload.kind !== "picture" ? select("kind", "The input shows", offered.kinds, choices, choose) : null,
        upload.kind !== "model" ? select("matting", "Cut out by", offered.matting, choices, choose) : null,
        h("p", { className: "field" }, h("label", { htmlFor: "seed" }, "Seed"), seed)),
      cards("priors", "Priors", sources, choices, choose, times)),
    h("div", { className: "go" }, start, time, how), wrong);
  look();
  estimate();
  return h("section", { className: "bench", "aria-label": "Your input" },
    h("header", { className: "row" }, h("h2", { tabIndex: -1 }, upload.name),
      h("button", { type: "button", onclick: onclose }, "Another file")),
    seen, form);
}

function named(table) {
  return Object.entries(table).map(([name, line]) => ({ name, about: line }));
}

/** Radio buttons that look like cards. */
function cards(group, legend, options, choices, choose, times) {
  return h("fieldset", { className: "cards" }, h("legend", {}, legend), options.map(({ name, about: line, missing }) => {
    const time = h("span", { className: "soft" });
    times.set(`${group} ${name}`, time);
    return h("label", { className: missing ? "card missing" : "card", title: line || "" },
      h("input", { type: "radio", name: group, value: name, checked: choices[group] === name, disabled: Boolean(missing),
        onchange: () => choose(group, name) }),
      h("span", { className: "name" }, name), time, h("span", { className: "about" }, line || ""));
  }));
}

function select(name, label, values, choices, choose) {
  return h("p", { className: "field" }, h("label", { htmlFor: name }, label),
    h("select", { id: name, onchange: (event) => choose(name, event.target.value) },
      values.map((value) => h("option", { value, selected: choices[name] === value }, LABELS[value] || value))));
}

/** The input as given with the crop on it, cut out, and as the program will see it. */
function shownAs(place, upload) {
  const look = upload.look, folder = `/api/uploads/${upload.id}/${look.pictures_at}`;
  const figure = (picture, caption, more = "") => h("figure", { className: more }, picture, h("figcaption", {}, caption));
  const frames = look.pictures;
  const what = look.kind === "model" ? `${frames} sides` : frames > 1 ? `${frames} moments` : "one picture";
  const parts = [];
  if (look.crop) {
    const [left, top, width, height] = look.crop;
    const box = h("span", { className: "crop" });
    Object.assign(box.style, { left: `${100 * left}%`, top: `${100 * top}%`, width: `${100 * width}%`, height: `${100 * height}%` });
    const given = h("span", { className: "given" }, h("img", { src: `${folder}/original.png`, alt: "The input as you gave it" }), box);
    given.style.aspectRatio = look.aspect;
    const cut = h("span", { className: "given checked" }, h("img", { src: `${folder}/cutout.png`, alt: "The input, cut out" }));
    cut.style.aspectRatio = look.aspect;
    parts.push(figure(given, "As given, and the square that is used"), figure(cut, look.matte));
  }
  const strip = film(`${folder}/seen.png`, frames, "What the program will see");
  strip.classList.add("checked");
  parts.push(figure(strip, `What the program sees: ${what} of ${look.resolution} × ${look.resolution} pixels`, "end"));
  place.replaceChildren(...parts, h("p", { className: "soft" }, look.line));
}

// --- all runs ---

async function listRuns(place) {
  const grid = h("ul", { className: "runs" });
  const more = h("button", { type: "button", hidden: true }, "Earlier runs");
  let shown = [];
  const draw = (jobs) => {
    place.hidden = !jobs.length;
    const cards = jobs.map((job) => runCard(job, () => refresh()));
    grid.replaceChildren(...cards);
    shown = jobs;
  };
  const refresh = async () => {
    const { jobs } = await ask(`/api/jobs?limit=${Math.min(100, Math.max(PAGE, shown.length))}`);
    if (JSON.stringify(jobs) !== JSON.stringify(shown)) draw(jobs);
    more.hidden = jobs.length < PAGE;
  };
  more.addEventListener("click", async () => {
    const { jobs } = await ask(`/api/jobs?limit=${PAGE}&before=${shown.at(-1).created}`);
    more.hidden = jobs.length < PAGE;
    draw([...shown, ...jobs]);
  });
  place.append(h("h2", { id: "runs-title" }, "Runs"), grid, more);
  place.hidden = true;
  await refresh();
  setInterval(() => {
    const active = shown.some((job) => job.state === "queued" || job.state === "running");
    if (active && document.visibilityState === "visible" && !grid.contains(document.activeElement)) refresh().catch(() => {});
  }, 2500);
}

function runCard(job, onchange) {
  const picture = job.state === "done"
    ? film(`/api/jobs/${job.id}/live/thumb.png`, 8, "")
    : h("span", { className: "film woven" });
  const latest = job.latest.total ? ` · ${job.latest.stage} ${job.latest.step}/${job.latest.total}` : "";
  const line = job.state === "done" ? `${when(job.finished)} · ${duration(job.seconds)}` : STATES[job.state] + latest;
  const ended = !["queued", "running"].includes(job.state);
  return h("li", { className: `run ${job.state}` },
    h("a", { href: `/jobs/${job.id}` }, picture, h("b", {}, job.title), h("span", { className: "soft" }, line)),
    ended ? twice("Delete", "Delete for good?", async () => {
      await ask(`/api/jobs/${job.id}`, "DELETE");
      await onchange();
    }, "small") : null);
}
