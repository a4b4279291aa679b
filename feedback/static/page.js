// The page works without this script. With it: single keys, drafts in the browser and on the server, leases that
// last while the page is seen, and answers that wait for a server that is away. An answer goes out with the key
// that its page came with, so however often it is sent, it is one row.
"use strict";
const $ = (what, where = document) => where.querySelector(what);
const main = () => $("main");
const field = (name) => $("#answer")?.elements[name];
const parse = (page) => new DOMParser().parseFromString(page, "text/html");
const store = { // of this browser; null where it keeps nothing
  get(name) { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* private window */ } },
  drop(name) { try { localStorage.removeItem(name); } catch { /* the same */ } },
};
const OVER = "The time for this one is over. You can still answer: if somebody else has answered by then, " +
  "your answer is kept as an extra one.";
const AWAY = "The server does not answer. What you typed is kept in this browser, and is sent when it is back.";
let began = 0; // when this page came
let seen = 0, since = null; // milliseconds for which it was visible, and when it last became so
let ends = 0; // when its lease ends
let busy = false; // while an answer is on its way
let saving, extending; // timers

function say(text, kind = "") { // kind "away" is unsaid as soon as the server answers again
  const status = $("#status");
  status.dataset.kind = kind;
  if (status.textContent !== text) status.textContent = text;
}
const unsay = () => { if ($("#status").dataset.kind === "away") say(""); };
const post = (action, body, accept) => fetch(action, { method: "POST", body, headers: { Accept: accept } });

async function send(action, body) { // again and again, until the server has said yes or no
  busy = true;
  store.set("pending", [action, `${body}`]);
  for (let wait = 1; ; wait = Math.min(2 * wait, 15)) {
    try {
      const reply = await post(action, body, "text/html");
      const page = parse(await reply.text());
      if (reply.status < 500 && reply.status !== 429) return settle(reply, page);
    } catch { /* away */ }
    say(`Not saved yet: the server does not answer. Your choice is kept here. Trying again in ${wait} s.`, "away");
    await new Promise((go) => { setTimeout(go, 1000 * wait); addEventListener("online", go, { once: true }); });
  }
}

function settle(reply, page) {
  busy = false;
  if (reply.status === 401 || reply.status === 403) { // the choice stays, for the next session to send
    const why = $("[role=alert]", page)?.textContent.trim() ?? "Your session has ended.";
    return say(`Not saved yet. ${why} What you chose and typed is kept in this browser.`);
  }
  store.drop("pending");
  if (reply.ok) store.drop(`draft ${main().dataset.draft}`);
  document.title = page.title;
  main().replaceWith(document.adoptNode($("main", page)));
  if (reply.redirected) history.replaceState(null, "", new URL(reply.url).pathname);
  say("");
  begin();
  scrollTo(0, 0);
  $("#heading").focus({ preventScroll: true });
}

function begin() { // a page has come
  began = performance.now();
  [seen, since] = [0, document.hidden ? null : began];
  ends = Date.now() + 1000 * main().dataset.seconds;
  const on = store.get("keys") !== false;
  document.documentElement.classList.toggle("keys", on);
  if ($("#keys")) [$("#keys").checked, $("#keys").parentElement.hidden] = [on, false];
  clearTimeout(saving);
  const old = store.get(`draft ${main().dataset.draft}`);
  for (const name of ["comment", "better"]) {
    if (!field(name) || !old?.[name] || old.saved) continue; // else the server knows it
    field(name).value = old[name];
    field(name).closest("details").open = true;
    keep();
  }
  later();
}

const texts = () => ({ comment: field("comment").value, better: field("better").value });
function keep() { // what is typed, here at once and on the server in a second
  store.set(`draft ${main().dataset.draft}`, { ...texts(), saved: false });
  clearTimeout(saving);
  saving = setTimeout(save, 1000);
}
async function save() {
  const [of, said] = [main().dataset.draft, texts()];
  const body = new URLSearchParams({ csrf: field("csrf").value, lease: field("lease").value, ...said });
  try {
    const reply = await post("/draft", body, "application/json");
    if (main().dataset.draft !== of || busy) return; // the answer had it
    if (reply.status === 401 || reply.status === 403)
      return say("Your session has ended. Open your link again: what you typed is kept in this browser.");
    if (!reply.ok) throw reply;
    unsay();
    if (`${Object.values(texts())}` === `${Object.values(said)}`) store.set(`draft ${of}`, { ...said, saved: true });
  } catch {
    if (main().dataset.draft !== of || busy) return;
    say(AWAY, "away");
    saving = setTimeout(save, 5000);
  }
}

function later() {
  clearTimeout(extending);
  if (main().dataset.seconds) extending = setTimeout(extend, 1000 * Math.max(1, main().dataset.seconds / 3));
}
async function extend() { // the lease, while the page is visible; its end is said
  const lease = field("lease")?.value;
  if (!lease) return;
  try {
    if (document.hidden || busy) throw null;
    const body = new URLSearchParams({ csrf: field("csrf").value, lease });
    const reply = await post("/lease/extend", body, "application/json");
    if (field("lease")?.value !== lease) return;
    if (reply.ok) ends = Date.now() + 1000 * (await reply.json()).seconds;
    else if (reply.status < 500 && reply.status !== 429) ends = 0;
    if (ends) unsay();
  } catch { /* away, or not seen */ }
  if (Date.now() > ends) say(OVER);
  later();
}

document.addEventListener("visibilitychange", () => {
  if (since !== null) seen += performance.now() - since;
  since = document.hidden ? null : performance.now();
  if (!document.hidden) extend();
});
document.addEventListener("input", (event) => { if (event.target.matches("#answer textarea")) keep(); });
document.addEventListener("change", (event) => {
  if (!event.target.matches("#keys")) return;
  store.set("keys", event.target.checked);
  document.documentElement.classList.toggle("keys", event.target.checked);
});
document.addEventListener("submit", (event) => {
  if (!event.target.matches("[data-send]")) return;
  event.preventDefault();
  if (busy) return;
  const by = event.submitter;
  const body = new URLSearchParams(new FormData(event.target, by));
  body.set("visible_ms", Math.round(seen + (since === null ? 0 : performance.now() - since)));
  by?.classList.add("chosen");
  send(by?.getAttribute("formaction") ?? event.target.getAttribute("action"), body);
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.matches("textarea")) return $("#heading").focus();
  if (event.repeat || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.shiftKey && /^[a-z]$/i.test(event.key)) return;
  if (store.get("keys") === false || performance.now() - began < 400 || $("dialog[open]")) return;
  if (event.target.closest("textarea, select, input:not([type=checkbox])")) return;
  const all = [...document.querySelectorAll(".skip[open] [data-key], main [data-key]")];
  const key = event.key.toLowerCase();
  const wanted = all.filter((one) => one.dataset.key === key);
  const found = wanted.find((one) => one.closest(".skip[open]")) ?? wanted.find((one) => !one.closest(".reasons"));
  if (!found) return;
  event.preventDefault();
  found.click();
  if (found.matches("summary") && found.parentElement.open) $("textarea, button", found.parentElement).focus();
});
document.addEventListener("click", async (event) => { // guidelines and keys over the page
  if (event.ctrlKey || event.metaKey || event.shiftKey) return;
  const [link, dialog] = [event.target.closest("[data-dialog]"), $("#dialog")];
  if (event.target.closest("dialog [data-close]")) { event.preventDefault(); dialog.close(); }
  if (!link) return;
  event.preventDefault();
  try {
    const page = parse(await (await fetch(link.href)).text());
    dialog.replaceChildren(...$("main", page).children);
    dialog.setAttribute("aria-label", page.title);
    dialog.showModal();
  } catch { say("The server does not answer.", "away"); }
});

begin();
const pending = store.get("pending");
if (pending && main().dataset.csrf) {
  const body = new URLSearchParams(pending[1]);
  body.set("csrf", main().dataset.csrf);
  send(pending[0], body);
}
