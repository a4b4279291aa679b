// The rows of the owner's page that follows judgements: fetched again while the box is checked and the page is seen.
"use strict";
const [box, rows] = [document.querySelector("#follow"), document.querySelector("#rows")];
if (box && rows) {
  box.parentElement.hidden = false;
  setInterval(async () => {
    if (!box.checked || document.hidden || rows.contains(document.activeElement)) return;
    const reply = await fetch(location.href).catch(() => null);
    const page = reply?.ok && new DOMParser().parseFromString(await reply.text(), "text/html").querySelector("#rows");
    if (page) rows.replaceChildren(...page.childNodes);
  }, 5000);
}
