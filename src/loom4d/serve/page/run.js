// One run: what it does now, what it has shown so far, and in the end the asset with all its files.

import { ask, duration, film, h, size, spoken, STATES, twice, when } from "./parts.js";
import { Growing, Loom } from "./loom.js";
import { optionsForm, told } from "./options.js";

const STAGES = {
  sources: "Cut out", column: "All sides", row: "All moments", grid: "The grid", fit: "Fit in 3D", orbit: "Film", viewer: "Page",
};
const ENDS = ["sources", "fit", "orbit", "viewer"];  // of every method
const SILENT = ["imagine"];  // the end of the method's stages: nothing of its own to see

export async function run(main, id, offered) {
  const job = await ask(`/api/jobs/${id}`);
  document.title = `${job.title} · Loom4D`;
  const page = new RunPage(main, job, offered);
  page.listen();
}

class RunPage {
  constructor(main, job, offered) {
    Object.assign(this, { job, offered, last: 0, stage: "", at: {}, began: {} });
    this.stages = job.estimate.stages;
    this.badge = h("span", { className: "badge" });
    this.buttons = h("span", { className: "row" });
    this.wrong = h("p", { className: "wrong", role: "alert" });
    this.left = h("output", { className: "time" });
    this.rail = h("ol", { className: "rail", "aria-label": "Stages" });
    this.lost = h("p", { className: "wrong", role: "status" });
    this.notes = h("ul", { className: "notes" });
    this.stagePlace = h("div", { className: "stage" });
    this.files = h("ul", { className: "files" });
    this.fileRows = new Map();
    this.made = new Map(job.exports.map((one) => [one.format, one]));  // format -> what was last said of its file
    const { method, preset, quality, seed, priors } = job.choices;
    const facts = [["Method", method], ["Preset", preset], ["Quality", quality], ["Priors", priors], ["Seed", seed]];
    this.facts = h("dl", {}, facts.map(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))]));
    const side = h("aside", { "aria-label": "About this run" },
      this.input(), h("section", { id: "take", hidden: true }, h("h2", {}, "Take it home"), this.files),
      h("section", {}, h("h2", {}, "Facts"), this.facts),
      h("details", {}, h("summary", {}, "What was said on the way"), this.notes));
    main.replaceChildren(
      h("p", { className: "back" }, h("a", { href: "/" }, "← All runs")),
      h("header", { className: "row" }, h("h1", {}, job.title), this.badge, this.buttons),
      this.wrong, this.lost,
      h("div", { className: "pair" }, h("div", { className: "wide" }, this.rail, this.left, this.stagePlace), side));
    this.take = side.querySelector("#take");
    this.state(job.state, job.error);
  }

  input() {
    const look = this.job.look;
    if (!look) return null;
    const strip = film(`/api/uploads/${this.job.upload}/${look.pictures_at}/seen.png`, look.pictures, "The input as the program sees it");
    strip.classList.add("checked");
    return h("section", {}, h("h2", {}, "Input"), strip);
  }

  // --- what the server says ---

  listen() {
    const open = () => {
      if (this.source) this.source.close();
      this.source = new EventSource(`/api/jobs/${this.job.id}/events?after=${this.last}`);
      this.source.onopen = () => { this.lost.textContent = ""; };
      this.source.onmessage = (event) => {
        if (event.lastEventId) this.last = Number(event.lastEventId);
        this.told(JSON.parse(event.data));
      };
      this.source.onerror = () => {
        this.lost.textContent = "The server is not there. The run goes on when it is back; this page will notice.";
        if (this.source.readyState === EventSource.CLOSED) setTimeout(open, 3000);
      };
    };
    document.addEventListener("visibilitychange", () => {
      if (document.visibilityState === "visible") open();
      else this.source.close();  // browsers allow few open streams
    });
    open();
  }

  told(event) {
    if (event.kind === "gone") return this.gone();
    if (event.kind === "state") return this.state(event.state, event.error || "");
    if (event.kind === "export") return this.exported(event.format, event);
    if (event.kind === "note" || (event.kind === "done" && event.message)) this.noted(event);
    if (SILENT.includes(event.stage)) return null;
    if (event.stage !== this.stage) this.entered(event);
    if (event.total) this.at[event.stage] = { step: event.step || 0, total: event.total };
    if (event.picture) this.pictured(event);
    return this.progressed(event);
  }

  gone() {
    this.source.close();
    this.stagePlace.replaceChildren(h("p", {}, "This run was deleted."));
    this.buttons.replaceChildren();
  }

  state(state, error) {
    this.job.state = state;
    this.badge.textContent = STATES[state];
    this.badge.className = `badge ${state}`;
    this.wrong.textContent = error;
    const active = state === "queued" || state === "running";
    this.rail.hidden = this.left.hidden = !active;
    this.left.textContent = state === "queued" ? "Waiting for its turn" : "";
    const act = (label, path) => h("button", { type: "button", onclick: async (event) => {
      event.target.disabled = true;
      try {
        await ask(`/api/jobs/${this.job.id}/${path}`, "POST");
      } catch (reason) {
        this.wrong.textContent = reason.message;
      }
    } }, label);
    const remove = twice("Delete", "Delete for good?", async () => {
      await ask(`/api/jobs/${this.job.id}`, "DELETE").then(() => location.assign("/"), (reason) => {
        this.wrong.textContent = reason.message;
      });
    });
    this.buttons.replaceChildren(...(active ? [act("Stop", "cancel")]
      : state === "done" ? [remove] : [act("Go on", "again"), remove]));
    if (state === "running" && !this.loom) this.weaving();
    if (state === "done") this.finished();
    spoken(`${this.job.title}: ${STATES[state]}. ${error}`);
  }

  // --- under way ---

  weaving() {
    const sizes = this.offered.priors[this.job.choices.priors] || { views: 8, frames: 8 };
    this.loom = new Loom(sizes.views, sizes.frames);
    this.growing = new Growing();
    this.shown = [];
    this.slider = h("input", { type: "range", min: 0, max: 0, value: 0, hidden: true, "aria-label": "Earlier pictures",
      oninput: () => this.replay(Number(this.slider.value)) });
    this.caption = h("figcaption", {}, "The grid: a row for every side, a column for every moment");
    this.grown = h("figure", { hidden: true }, this.growing.canvas, h("figcaption", {}, "The asset, from four sides"));
    this.stagePlace.replaceChildren(h("figure", {}, this.loom.canvas, this.slider, this.caption), this.grown);
  }

  entered(event) {
    this.stage = event.stage;
    if (!(event.stage in this.stages)) this.stages = { ...this.stages, [event.stage]: 0 };
    spoken(`${this.job.title}: ${STAGES[event.stage] || event.stage}`);
  }

  noted(event) {
    this.notes.append(h("li", {}, event.message));
  }

  pictured(event) {
    if (!this.loom) this.weaving();
    const address = `/api/jobs/${this.job.id}/live/${event.picture}`;
    const { views, frames } = event.data || {};
    if (!views) {
      if (this.grown.hidden) this.stagePlace.prepend(this.grown);  // what grows now comes first
      this.grown.hidden = false;
      this.growing.show(address);
      return;
    }
    const line = `${STAGES[event.stage] || event.stage}, step ${event.step} of ${event.total}`;
    const following = Number(this.slider.value) === this.shown.length - 1 || !this.shown.length;
    this.shown.push({ address, views, frames, whole: event.stage === "grid", line });
    this.slider.max = this.shown.length - 1;
    this.slider.hidden = this.shown.length < 2;
    if (following) {
      this.slider.value = this.slider.max;
      this.replay(this.shown.length - 1);
    }
  }

  /** Shows the pictures up to one of the past: a whole grid stands alone, rows and columns gather. */
  replay(index) {
    const upto = this.shown.slice(0, index + 1);
    const start = Math.max(0, upto.findLastIndex((one) => one.whole));
    this.loom.show(upto.slice(start));
    this.caption.textContent = upto.at(-1).line;
  }

  progressed(event) {
    if (this.job.state !== "running") return;
    const names = this.names();
    const here = names.indexOf(event.stage);
    this.rail.replaceChildren(...names.map((name, place) => {
      const at = this.at[name], done = place < here, now = place === here;
      const share = done ? 1 : now && at ? at.step / at.total : 0;
      const bar = h("progress", { max: 1, value: share, "aria-label": STAGES[name] || name });
      if (now && !at) bar.removeAttribute("value");
      return h("li", { className: done ? "past" : now ? "now" : "", "aria-current": now ? "step" : null },
        h("span", {}, STAGES[name] || name), bar);
    }));
    const seconds = this.remaining(event.stage);
    this.left.textContent = this.job.estimate.seconds === null || seconds === null ? "" : `about ${duration(Math.max(1, seconds))} left`;
  }

  /** All stages in order: the method's own lie between the first and the last three, as far as they are known. */
  names() {
    const own = Object.keys(this.stages).filter((name) => !ENDS.includes(name) && !SILENT.includes(name));
    return [ENDS[0], ...own, ...ENDS.slice(1)];
  }

  /** Seconds left by the estimate of each stage; the one under way counts by its steps. */
  remaining(stage) {
    const names = this.names(), here = names.indexOf(stage), at = this.at[stage];
    const share = at ? 1 - at.step / at.total : 0.5;
    return names.slice(here + 1).reduce((sum, name) => sum + (this.stages[name] || 0), (this.stages[stage] || 0) * share);
  }

  // --- done ---

  async finished() {
    const fresh = await ask(`/api/jobs/${this.job.id}`).catch(() => this.job);
    this.loom = null;
    this.take.hidden = false;
    const frame = h("iframe", { src: `/api/jobs/${this.job.id}/viewer`, title: `${this.job.title}: the asset, to turn and play`,
      className: "viewer", allow: "fullscreen" });
    frame.setAttribute("sandbox", "allow-scripts allow-downloads");
    this.stagePlace.replaceChildren(frame);
    if (!this.fileRows.size) this.offerFiles(fresh.refused);
    const stages = fresh.report.stages || {};
    const more = [["Took", duration(fresh.seconds)], ["Finished", when(fresh.finished)],
      ["Input followed", stages.fit ? `${stages.fit.input_psnr} dB` : ""], ["Memory", fresh.report.peak_memory_gb ? `${fresh.report.peak_memory_gb} GB` : ""]];
    if (this.facts.childElementCount <= 10) {
      this.facts.append(...more.filter(([, value]) => value).flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]));
    }
  }

  offerFiles(refused) {
    const link = (name, about, address, file) => this.row(name, about, h("a", { className: "button", href: address, download: file }, "Download"));
    const files = `/api/jobs/${this.job.id}`;
    this.files.replaceChildren(
      link("page", "this viewer as one file that works offline", `${files}/viewer?download=true`, `${this.job.title}.html`),
      link("film", "once around, MP4", `${files}/files/orbit.mp4`, `${this.job.title}.mp4`),
      link("sheet", "the grid as one picture", `${files}/files/grid.png`, `${this.job.title}.png`),
      ...Object.entries(this.offered.formats).map(([name, one]) => this.formatRow(name, one, refused[name])));
  }

  row(name, about, action) {
    return h("li", {}, h("span", {}, h("b", {}, name), h("span", { className: "soft" }, about)), action);
  }

  /** A format that the asset can be written as, with its options, or why it cannot. */
  formatRow(name, one, refused) {
    const about = one.folder ? `${one.about} (ZIP)` : one.about;
    if (refused) {
      const row = this.row(name, `${about}. Not for this run: ${refused}.`, null);
      row.classList.add("refused");
      return row;
    }
    const action = h("span", { className: "action" }), chosen = h("span", { className: "soft" });
    const options = optionsForm(name, one.options, (values) => this.make(name, values));
    const row = this.row(name, about, action);
    row.firstChild.append(chosen);
    row.append(options.element);
    const made = this.made.get(name);
    if (made) options.fill(made.options || {});
    this.fileRows.set(name, { action, chosen, options });
    this.exported(name, made || { state: "" });
    return row;
  }

  /** Asks for a file; the stream tells how it goes on. */
  async make(format, options) {
    try {
      await ask(`/api/jobs/${this.job.id}/exports/${format}`, "POST", { options });
    } catch (reason) {
      this.exported(format, { state: "failed", error: reason.message, options });
    }
  }

  /** An export that can be asked for, is on its way, is there, or could not be made. */
  exported(format, news) {
    this.made.set(format, news);
    const { state, error = "", bytes = 0, options = {} } = news;
    const row = this.fileRows.get(format);
    if (!row) return;
    const make = (label) => h("button", { type: "button", "aria-label": `${label} ${format}`, onclick: (event) => {
      event.target.disabled = true;
      this.make(format, options);
    } }, label);
    const shown = {
      queued: () => h("span", { className: "soft", role: "status" }, "waiting…"),
      writing: () => h("span", { className: "soft", role: "status" }, "being made…"),
      done: () => h("a", { className: "button", href: `/api/jobs/${this.job.id}/exports/${format}`, download: true,
        "aria-label": `Download ${format}` }, size(bytes)),
      failed: () => h("span", {}, h("span", { className: "wrong" }, error), make("Try again")),
    }[state] || (() => make("Make"));
    row.action.replaceChildren(shown());
    row.chosen.textContent = state && Object.keys(options).length ? `with ${told(options)}` : "";
    row.options.allow(state !== "queued" && state !== "writing");
    if (state === "done") spoken(`${format} is ready`);
  }
}
