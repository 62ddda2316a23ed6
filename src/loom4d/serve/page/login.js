// The token comes after "#", which browsers never send anywhere; it is traded for a cookie and taken out of the address.

const form = document.getElementById("form"), field = document.getElementById("token");

async function login(token) {
  const answer = await fetch("/api/login", {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ token }),
  });
  if (answer.ok) return location.replace("/");
  const told = await answer.json().catch(() => ({}));
  document.getElementById("wrong").textContent = told.error || "The server gave no answer.";
  field.select();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  login(field.value.trim());
});

const given = decodeURIComponent(location.hash.slice(1));
if (given) {
  history.replaceState(null, "", "/login");
  login(given);
} else field.focus();
