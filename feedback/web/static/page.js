// The page works without this script. With it: single keys, drafts, leases that last while the page is seen, and
// answers that wait for a server that is away: sent again and again with one key, an answer is one row.
"use strict";
const $ = (what, where = document) => where.querySelector(what);
const main = () => $("main"), field = (name) => $("#answer")?.elements[name];
const parse = (page) => new DOMParser().parseFromString(page, "text/html");
const post = (action, body, accept) => fetch(action, { method: "POST", body, headers: { Accept: accept } });
const away = (reply) => !reply || reply.status >= 500 || reply.status === 429;
const ended = (reply) => [401, 403].includes(reply?.status);
const store = { // of this browser; one that keeps nothing gives null
  get(name) { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } },
  set(name, value) { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* full, or forbidden */ } },
};
const OVER = "The time for this one is over. You can still answer; if others have by then, yours is kept as an extra.";
const AWAY = "The server does not answer. What you typed is kept in this browser until it does.";
const ENDED = "Your session has ended. Open your link again: what you chose and typed is kept in this browser.";
let began = 0, seen = 0, since = null; // when this page came, for how long it was visible, since when it is now
let ends = 0, busy = false, saving, extending; // when its lease ends, whether an answer is on its way, timers

const say = (text) => { if ($("#status").textContent !== text) $("#status").textContent = text; };
const calm = () => say(Date.now() > ends ? OVER : "");
const draft = () => `draft ${main().dataset.draft}`;
const texts = () => ({ comment: field("comment").value, better: field("better").value });
const visible = () => seen + (since === null ? 0 : performance.now() - since);

async function send(action, body) { // again and again, until the server has said yes or no
  busy = true;
  store.set("pending", [action, `${body}`]);
  for (let wait = 1; ; wait = Math.min(2 * wait, 15)) {
    try {
      const reply = await post(action, body, "text/html");
      const page = parse(await reply.text());
      if (!away(reply)) return settle(reply, page);
    } catch { /* the network */ }
    say(`Not saved yet: the server does not answer. Your choice is kept here. Trying again in ${wait} s.`);
    await new Promise((go) => { setTimeout(go, 1000 * wait); addEventListener("online", go, { once: true }); });
  }
}
function settle(reply, page) {
  busy = false;
  if (ended(reply)) return say(`Not saved yet. ${ENDED}`); // the next session sends it
  store.set("pending", null);
  if (reply.ok) store.set(draft(), null);
  document.title = page.title;
  main().replaceWith(document.adoptNode($("main", page)));
  if (reply.redirected) history.replaceState(null, "", new URL(reply.url).pathname);
  begin();
  scrollTo(0, 0);
  $("#heading").focus({ preventScroll: true });
}
function begin() { // a page has come
  const { seconds } = main().dataset, old = store.get(draft());
  [began, seen, since] = [performance.now(), 0, document.hidden ? null : performance.now()];
  ends = Date.now() + 1000 * seconds;
  clearTimeout(saving);
  clearInterval(extending);
  if (seconds) extending = setInterval(extend, 1000 * Math.max(1, seconds / 3));
  calm();
  switchKeys();
  for (const name of ["comment", "better"].filter((x) => field("lease") && old?.[x] && !old.saved)) {
    field(name).value = old[name];
    field(name).closest("details").open = true;
    keep();
  }
}
function switchKeys() {
  const on = store.get("keys") !== false, box = $("#keys");
  document.documentElement.classList.toggle("keys", on);
  if (box) [box.checked, box.parentElement.hidden] = [on, false];
}
function keep() { // what is typed: here at once, and on the server in a second
  store.set(draft(), { ...texts(), saved: false });
  clearTimeout(saving);
  saving = setTimeout(save, 1000);
}
async function save() {
  const of = draft(), said = texts();
  const reply = await call("/draft", said);
  if (draft() !== of || busy) return; // the answer had it
  if (reply?.ok && JSON.stringify(texts()) === JSON.stringify(said)) store.set(of, { ...said, saved: true });
  if (away(reply)) saving = setTimeout(save, 5000);
  if (reply?.ok) calm(); else say(ended(reply) ? ENDED : AWAY);
}
async function extend() { // the lease, while the page is visible; its end is said
  const of = draft();
  if (!field("lease") || document.hidden || busy) return;
  const reply = await call("/lease/extend");
  if (draft() !== of) return;
  if (reply?.ok) ends = Date.now() + 1000 * (await reply.json()).seconds;
  else if (!away(reply) && !ended(reply)) ends = 0;
  if (reply?.ok || Date.now() > ends) calm();
}
async function call(action, more = {}) { // the reply about this page's lease; null where the server is away
  const body = new URLSearchParams({ csrf: field("csrf").value, lease: field("lease").value, ...more });
  try { return await post(action, body, "application/json"); } catch { return null; }
}
function press(event) { // a single key
  if (event.repeat || event.isComposing || event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.shiftKey && /^[a-z]$/i.test(event.key)) return;
  if (store.get("keys") === false || performance.now() - began < 400 || $("dialog[open]")) return;
  if (event.target.closest("textarea, select, input:not([type=checkbox])")) return;
  const all = [...document.querySelectorAll(`main [data-key="${CSS.escape(event.key.toLowerCase())}"]`)];
  const found = all.find((x) => x.closest(".skip[open] .reasons")) ?? all.find((x) => !x.closest(".reasons"));
  if (!found) return;
  event.preventDefault();
  found.click();
  if (found.matches("summary") && found.parentElement.open) $("textarea, button", found.parentElement).focus();
}
async function show(link) { // guidelines and keys over the page
  const dialog = $("#dialog"), page = await fetch(link.href).then((reply) => reply.text(), () => "");
  if (!page) return say("The server does not answer.");
  dialog.replaceChildren(...$("main", parse(page)).children);
  dialog.setAttribute("aria-label", parse(page).title);
  dialog.showModal();
}
addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target.matches("textarea")) $("#heading").focus(); else press(event);
});
addEventListener("click", (event) => {
  const close = event.target.closest("dialog [data-close]"), link = event.target.closest("[data-dialog]");
  if (!(close || link) || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  if (close) $("#dialog").close(); else show(link);
});
addEventListener("input", (event) => { if (event.target.matches("#answer textarea")) keep(); });
addEventListener("change", (event) => {
  if (event.target.id === "keys") store.set("keys", event.target.checked);
  switchKeys();
});
addEventListener("visibilitychange", () => {
  [seen, since] = [visible(), document.hidden ? null : performance.now()];
  if (!document.hidden) extend();
});
addEventListener("submit", (event) => {
  const form = event.target, by = event.submitter, body = new URLSearchParams(new FormData(form, by));
  if (form.matches("[data-send]")) event.preventDefault();
  if (busy || by?.hidden || !event.defaultPrevented) return;
  body.set("visible_ms", Math.round(visible()));
  by?.classList.add("chosen");
  send(by?.getAttribute("formaction") ?? form.getAttribute("action"), body);
});

begin();
const [action, left] = store.get("pending") ?? []; // by a page that was closed before the server had answered
if (action && main().dataset.csrf) {
  const body = new URLSearchParams(left);
  body.set("csrf", main().dataset.csrf);
  send(action, body);
}
