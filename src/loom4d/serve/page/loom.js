// Two canvases: the grid while it is woven, and the asset while it grows.

import { still } from "./parts.js";

const CELL = 72, GAP = 4;

function picture(address) {
  return new Promise((done, failed) => {
    const image = new Image();
    image.onload = () => done(image);
    image.onerror = () => failed(new Error("a picture is gone"));
    image.src = address;
  });
}

/** Views × frames cells; what is not woven yet shows its threads, one a view and one a frame. */
export class Loom {
  constructor(views, frames) {
    this.canvas = document.createElement("canvas");
    this.canvas.className = "loom";
    this.canvas.setAttribute("role", "img");
    this.turn = 0;
    this.sized(views, frames);
  }

  sized(views, frames) {
    Object.assign(this, { views, frames });
    this.canvas.width = frames * (CELL + GAP) - GAP;
    this.canvas.height = views * (CELL + GAP) - GAP;
    this.threads();
  }

  threads() {
    const pen = this.canvas.getContext("2d"), style = getComputedStyle(document.documentElement);
    pen.clearRect(0, 0, this.canvas.width, this.canvas.height);
    pen.lineWidth = 2;
    pen.strokeStyle = style.getPropertyValue("--line");
    const middle = (index) => index * (CELL + GAP) + CELL / 2;
    for (let frame = 0; frame < this.frames; frame += 1) {
      for (let view = 0; view < this.views; view += 1) {
        const x = middle(frame), y = middle(view), over = (view + frame) % 2 === 0;
        const reach = (CELL + GAP) / 2, short = over ? 9 : 0, long = over ? 0 : 9;
        pen.beginPath();  // the thread that goes under is broken at the crossing
        for (const way of [-1, 1]) {
          pen.moveTo(x + way * short, y);
          pen.lineTo(x + way * reach, y);
          pen.moveTo(x, y + way * long);
          pen.lineTo(x, y + way * reach);
        }
        pen.stroke();
      }
    }
    this.canvas.setAttribute("aria-label", `Grid of ${this.views} sides by ${this.frames} moments`);
  }

  /** Draws sheets of pictures one over the other, each from the upper left corner. */
  async show(sheets) {
    const turn = this.turn += 1;
    const images = await Promise.all(sheets.map((one) => picture(one.address).catch(() => null)));
    if (turn !== this.turn) return;  // another one has come
    const whole = sheets.find((one) => one.whole);
    const views = whole ? whole.views : Math.max(this.views, ...sheets.map((one) => one.views));
    const frames = whole ? whole.frames : Math.max(this.frames, ...sheets.map((one) => one.frames));
    this.sized(views, frames);
    const pen = this.canvas.getContext("2d");
    sheets.forEach((sheet, index) => {
      const image = images[index];
      if (!image) return;
      const width = image.naturalWidth / sheet.frames, height = image.naturalHeight / sheet.views;
      for (let view = 0; view < sheet.views; view += 1) {
        for (let frame = 0; frame < sheet.frames; frame += 1) {
          const x = frame * (CELL + GAP), y = view * (CELL + GAP);
          pen.fillStyle = "#ffffff";
          pen.fillRect(x, y, CELL, CELL);
          pen.drawImage(image, frame * width, view * height, width, height, x, y, CELL, CELL);
        }
      }
    });
  }
}

/** The fit's previews, four sides by four moments: the sides stand side by side and play their moments. */
export class Growing {
  constructor() {
    this.canvas = document.createElement("canvas");
    Object.assign(this.canvas, { width: 4 * 150, height: 150, className: "growing" });
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", "The asset so far, from four sides");
    this.moment = 0;
  }

  async show(address) {
    this.image = await picture(address).catch(() => this.image);
    if (!this.image) return;
    this.draw();
    if (!this.timer && !still.matches) {
      this.timer = setInterval(() => {
        if (!this.canvas.isConnected) {
          clearInterval(this.timer);
          return;
        }
        this.moment += 1;
        this.draw();
      }, 220);
    }
  }

  draw() {
    const pen = this.canvas.getContext("2d"), part = this.image.naturalWidth / 4;
    const moment = [0, 1, 2, 3, 2, 1][this.moment % 6];
    pen.fillStyle = "#ffffff";
    pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    for (let side = 0; side < 4; side += 1) {
      pen.drawImage(this.image, moment * part, side * part, part, part, side * 150, 0, 150, 150);
    }
  }
}
