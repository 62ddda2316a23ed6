// The form of a format's options, made of what the server offers: one field a choice, parts of parts folded away.

import { h } from "./parts.js";

const PLAIN = { switch: "checkbox", whole: "number", number: "number", text: "text" };
const same = (one, other) => JSON.stringify(one) === JSON.stringify(other);

/** "mesh.most_faces" as "most faces"; angles say that they are degrees. */
export function words(name) {
  return name.split(".").at(-1).replace(/_deg$/, " (°)").replaceAll("_", " ");
}

/** What was chosen that is no default, for people. */
export function told(options) {
  return Object.entries(options).map(([name, value]) => `${words(name)} ${shown(value)}`).join(", ");
}

function shown(value) {
  if (value === null) return "empty";
  if (typeof value === "boolean") return value ? "on" : "off";
  return Array.isArray(value) ? value.join(" ") : String(value);
}

/** The element, and `values()`: what differs from the defaults. `onmake` hears when it is to be made so. */
export function optionsForm(format, choices, onmake) {
  const fields = choices.map((choice) => field(format, choice));
  const values = () => Object.fromEntries(fields.map(({ choice, read }) => [choice.name, read(), choice.default])
    .filter(([, value, usual]) => !same(value, usual)).map(([name, value]) => [name, value]));
  const button = h("button", { type: "submit", "aria-label": `Make ${format} with these options` }, "Make with these");
  const fill = (given) => fields.forEach(({ choice, write }) => write(choice.name in given ? given[choice.name] : choice.default));
  const reset = h("button", { type: "button", "aria-label": `Usual options of ${format}`, onclick: () => fill({}) }, "As usual");
  const form = h("form", { onsubmit: (event) => {
    event.preventDefault();
    onmake(values());
  } }, grouped(fields, 0), h("p", { className: "row" }, button, reset));
  const element = h("details", { className: "settings" }, h("summary", {}, "Options"), form);
  fill({});
  return { element, fill, allow: (free) => { button.disabled = !free; } };
}

/** Fields of this depth one below the other, those of each part in a fold of its own. */
function grouped(fields, depth) {
  const own = fields.filter(({ choice }) => choice.name.split(".").length === depth + 1);
  const parts = new Set(fields.filter((one) => !own.includes(one)).map(({ choice }) => choice.name.split(".")[depth]));
  return [h("div", { className: "options" }, own.map(({ element }) => element)), [...parts].map((part) =>
    h("details", {}, h("summary", {}, words(part)),
      grouped(fields.filter((one) => !own.includes(one) && one.choice.name.split(".")[depth] === part), depth + 1)))];
}

function field(format, choice) {
  const label = words(choice.name), id = `${format}-${choice.name}`;
  const about = choice.about.replaceAll("`", "").replace(/\bNone\b/g, "empty");
  const number = { type: "number", min: choice.low, max: choice.high, step: choice.kind === "whole" ? 1 : "any" };
  const bounded = Math.abs(choice.low) < 1e9 ? { title: `${choice.low} to ${choice.high}` } : {};
  const wanted = { required: !choice.optional, placeholder: choice.optional ? "empty" : "" };
  let input, read, write;
  if (choice.kind === "one of") {
    input = h("select", { id }, choice.values.map((value) => h("option", { value: String(value) }, String(value))));
    read = () => choice.values.find((value) => String(value) === input.value);
    write = (value) => { input.value = String(value); };
  } else if (choice.kind === "numbers") {
    const parts = Array.from({ length: choice.count }, (_, place) =>
      h("input", { ...number, ...bounded, ...wanted, "aria-label": `${label}, number ${place + 1}` }));
    input = h("span", { className: "several" }, parts);
    read = () => parts.every((one) => one.value === "") ? null : parts.map((one) => Number(one.value));
    write = (value) => parts.forEach((one, place) => { one.value = value === null ? "" : value[place]; });
  } else if (choice.kind === "switch") {
    input = h("input", { id, type: "checkbox" });
    read = () => input.checked;
    write = (value) => { input.checked = value; };
  } else {
    const numeric = PLAIN[choice.kind] === "number";
    input = h("input", { id, ...wanted, ...(numeric ? { ...number, ...bounded } : { type: "text", maxLength: 200 }) });
    read = () => input.value === "" && choice.optional ? null : numeric ? Number(input.value) : input.value;
    write = (value) => { input.value = value === null ? "" : value; };
  }
  const element = h("div", { className: `option ${choice.kind === "numbers" ? "wide" : ""}` },
    choice.kind === "numbers" ? h("span", {}, label) : h("label", { htmlFor: id }, label), input,
    about ? h("span", { className: "soft" }, about) : null);
  return { choice, element, read, write };
}
