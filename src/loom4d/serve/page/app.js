// Which page an address means.

import { offer, spoken, h } from "./parts.js";
import { home } from "./home.js";
import { run } from "./run.js";

const main = document.getElementById("main");
const job = location.pathname.match(/^\/jobs\/([0-9a-f]{20})$/)?.[1];

try {
  const offered = await offer((waiting) => spoken(waiting));
  document.getElementById("machine").textContent = offered.machine;
  await (job ? run(main, job, offered) : home(main, offered));
  if (!location.hash) main.focus({ preventScroll: true });
} catch (error) {
  main.replaceChildren(h("h1", {}, "This did not work"), h("p", { role: "alert" }, error.message),
    h("p", {}, h("a", { href: "/" }, "All runs")));
}
