// What all pages are made of: elements without markup in strings, questions to the server, words for times and sizes.

/** An element. Text is only ever text: nothing that a user named is read as markup. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list" && name !== "form") element[name] = value;
    else if (value !== false && value !== null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Says a line to those who listen instead of looking. */
export function spoken(line) {
  const place = document.getElementById("spoken");
  if (place.textContent !== line) place.textContent = line;
}

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The server's answer as JSON; what it refuses is an error with its own words. */
export async function ask(path, method = "GET", body = undefined) {
  const options = { method, headers: { accept: "application/json" } };
  if (body !== undefined) {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Refused("The server gives no answer. Is it still running?", 0);
  }
  return told(answer.status, await answer.text());
}

function told(status, text) {
  if (status === 401) location.assign("/login");
  let body = null;
  try {
    body = text ? JSON.parse(text) : null;
  } catch { /* not ours: the status says it all */ }
  if (status >= 400) throw new Refused(body?.error || `The server answered ${status}.`, status);
  return body;
}

/** What can be chosen; the server waits with its answer while it gets ready. */
export async function offer(onwait) {
  for (;;) {
    try {
      return await ask("/api/offer");
    } catch (error) {
      if (error.status !== 503) throw error;
      onwait(error.message);
      await new Promise((done) => setTimeout(done, 500));
    }
  }
}

/** Sends a file as it is; `onprogress` hears the share that has gone. */
export function send(file, onprogress) {
  return new Promise((done, failed) => {
    const request = new XMLHttpRequest();
    request.open("POST", `/api/uploads?name=${encodeURIComponent(file.name.slice(0, 200))}`);
    request.upload.onprogress = (event) => onprogress(event.lengthComputable ? event.loaded / event.total : 0);
    request.onload = () => {
      try {
        done(told(request.status, request.responseText));
      } catch (error) {
        failed(error);
      }
    };
    request.onerror = () => failed(new Refused("The upload broke off: the server refused it or has gone.", 0));
    request.send(file);
  });
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "";
  if (seconds < 1) return "under a second";
  if (seconds < 95) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function about(seconds) {
  return seconds === null || seconds === undefined ? "time not known yet" : `about ${duration(seconds)}`;
}

export function size(bytes) {
  if (bytes < 1e3) return `${bytes} bytes`;
  return bytes < 1e6 ? `${Math.round(bytes / 1e3)} kB` : `${Number((bytes / 1e6).toFixed(1))} MB`;
}

export function when(seconds) {
  const past = Date.now() / 1000 - seconds;
  if (past < 90) return "just now";
  if (past < 5400) return `${Math.round(past / 60)} minutes ago`;
  if (past < 86400) return `${Math.round(past / 3600)} hours ago`;
  return new Date(seconds * 1000).toLocaleDateString();
}

export const STATES = {
  queued: "waiting", running: "under way", done: "done", failed: "failed", cancelled: "stopped",
};

export const still = matchMedia("(prefers-reduced-motion: reduce)");

/** A strip of square pictures, frame beside frame, as a small film. */
export function film(address, frames, label) {
  const place = h("span", { className: frames > 1 ? "film moving" : "film", role: "img", "aria-label": label });
  place.style.backgroundImage = `url("${address}")`;
  place.style.backgroundSize = `${frames * 100}% 100%`;
  place.style.setProperty("--steps", frames);
  return place;
}

/** A button that asks once more before it does what cannot be undone. */
export function twice(label, question, action, className = "") {
  const button = h("button", { type: "button", className }, label);
  let armed = 0;
  button.addEventListener("click", async () => {
    if (!armed) {
      button.textContent = question;
      button.classList.add("armed");
      armed = setTimeout(() => {
        armed = 0;
        button.textContent = label;
        button.classList.remove("armed");
      }, 4000);
      return;
    }
    clearTimeout(armed);
    armed = 0;
    button.disabled = true;
    try {
      await action();
    } finally {
      button.disabled = false;
      button.textContent = label;
      button.classList.remove("armed");
    }
  });
  return button;
}
