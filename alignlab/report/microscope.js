"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const dial = document.getElementById("threshold"), value = document.getElementById("value"), tip = document.getElementById("tip");
  const groups = [...document.querySelectorAll(".tokens")];
  const counts = [...document.querySelectorAll(".count")];
  const rows = [...document.querySelectorAll("#figures tbody tr")];
  const lines = [...document.querySelectorAll(".charts .here")];
  const buckets = Array.from({ length: data.stops.length + 1 }, () => []);  // tokens by level: detected at stop i means level > i
  groups.forEach((group, g) => data.tokens[g][2].forEach((level, t) => buckets[level].push([g, t])));
  let stop = Number(dial.defaultValue), open = null;

  function move(to) {
    const step = Math.sign(to - stop);
    for (; stop !== to; stop += step)
      for (const [g, t] of buckets[step > 0 ? stop + 1 : stop]) {
        groups[g].children[t].classList.toggle("d", step < 0);
        counts[g].textContent = Number(counts[g].textContent) - step;
      }
    value.textContent = data.stops[to];
    const words = rows.map((row, m) => {
      data.figures[m][to].forEach((figure, i) => { row.children[i + 1].textContent = figure; });
      return `${row.children[0].textContent} ${data.figures[m][to][0]} detected`;
    });
    dial.setAttribute("aria-valuetext", `${data.stops[to]}: ${words.join(", ")}`);
    lines.forEach(line => line.setAttribute("transform", `translate(${data.x[to]})`));
    if (open) show(...open);
  }

  const chance = logp => logp === null ? "0" : Math.exp(logp).toPrecision(3);

  function show(g, t) {
    hide();
    const token = groups[g].children[t], [plain, judged, levels] = data.tokens[g];
    const pair = (name, text) => {
      const line = document.createElement("span");
      line.append(name, document.createElement("span"));
      line.lastChild.textContent = text;
      return line;
    };
    const title = document.createElement("b");
    title.textContent = `\u2068${token.textContent.replace(/\s/g, " ")}\u2069`;
    const known = plain[t] !== null && judged[t] !== null;
    const nats = judged[t] - plain[t];
    tip.replaceChildren(title, pair("p without the judgment", chance(plain[t])), pair("p with it", chance(judged[t])));
    if (known) tip.append(pair("ratio", Math.exp(nats).toPrecision(4)), pair("log ratio", `${nats > 0 ? "+" : ""}${nats.toFixed(3)} nats`));
    const detected = levels[t] > stop ? "detected" : "not detected";
    tip.append(pair(detected + (token.classList.contains("g") ? ", known to be wrong" : ""), ""));
    token.classList.add("at");
    tip.hidden = false;
    open = [g, t];
    place();
  }

  function place() {
    const box = groups[open[0]].children[open[1]].getClientRects()[0], height = tip.offsetHeight;
    tip.style.left = `${Math.max(8, Math.min(box.left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
    tip.style.top = `${box.bottom + 8 + height < innerHeight ? box.bottom + 8 : box.top - 8 - height}px`;
  }

  function hide() {
    if (open) groups[open[0]].children[open[1]].classList.remove("at");
    open = null;
    tip.hidden = true;
  }

  function under(target) {
    const token = target.closest?.(".tokens > span");
    if (!token) return null;
    return [groups.indexOf(token.parentElement), [...token.parentElement.children].indexOf(token)];
  }

  dial.hidden = false;
  dial.addEventListener("input", () => move(dial.valueAsNumber));
  for (const kind of ["pointerover", "click"])
    document.addEventListener(kind, event => { const place = under(event.target); if (place) show(...place); else if (event.target !== dial) hide(); });
  document.addEventListener("scroll", () => { if (open) place(); }, { passive: true });
  groups.forEach((group, g) => {
    group.addEventListener("focus", () => { if (group.matches(":focus-visible") && group.children.length) show(g, 0); });
    group.addEventListener("blur", hide);
    group.addEventListener("keydown", event => {
      const last = group.children.length - 1, t = open && open[0] === g ? open[1] : -1;
      const to = { ArrowRight: Math.min(t + 1, last), ArrowLeft: Math.max(t - 1, 0), Home: 0, End: last }[event.key];
      if (to === undefined || last < 0) return;
      event.preventDefault();
      group.children[to].scrollIntoView({ block: "nearest" });
      show(g, to);
    });
  });
  document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
  move(dial.valueAsNumber);  // a browser keeps a slider's place over a reload
})();
