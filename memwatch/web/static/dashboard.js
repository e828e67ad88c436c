/* The dashboard's pages move: parts of a page that have changed come by server-sent events and take the place of the old ones.
   Reads what memwatch/web/live.py sends. */
"use strict";

(() => {
  const root = document.body;
  const byId = (id) => document.getElementById(id);
  const parsed = (html) => {
    const template = document.createElement("template");
    template.innerHTML = html; // made by the server, which escapes what comes from a process
    memwatch.localise(template.content);
    return template.content;
  };

  /* Where the reader is in a part that is replaced: what is unfolded, and what has the focus. */
  const keeping = (box, replace) => {
    const path = (node) => {
      const steps = [];
      for (; node !== box && node.parentElement; node = node.parentElement) steps.unshift([...node.parentElement.children].indexOf(node));
      return steps;
    };
    const at = (steps) => steps.reduce((node, step) => node && node.children[step], box);
    const open = new Set([...box.querySelectorAll("details[open] > summary")].map((summary) => path(summary).join()));
    const focused = box.contains(document.activeElement) && document.activeElement !== box ? path(document.activeElement) : null;
    const tag = focused && document.activeElement.tagName;
    const scrolled = [...box.querySelectorAll(".scroll")].map((one) => one.scrollLeft);
    replace();
    for (const summary of box.querySelectorAll("details > summary")) if (open.has(path(summary).join())) summary.parentElement.open = true;
    [...box.querySelectorAll(".scroll")].forEach((one, index) => { one.scrollLeft = scrolled[index] ?? 0; });
    const target = focused && at(focused);
    if (target && target.tagName === tag) target.focus({ preventScroll: true });
  };

  const fill = (box, html) => { if (box !== null) keeping(box, () => box.replaceChildren(parsed(html))); };

  /* The fleet. */

  const filter = byId("filter");
  const words = () => (filter ? filter.value.toLowerCase().split(/\s+/).filter(Boolean) : []);
  const sift = () => {
    if (!filter) return;
    const wanted = words();
    let shown = 0, all = 0;
    for (const row of document.querySelectorAll("tr[data-row]")) {
      row.hidden = !wanted.every((word) => row.dataset.words.includes(word));
      all += 1;
      shown += row.hidden ? 0 : 1;
    }
    const told = wanted.length === 0 ? "" : `${shown} of ${all}`;
    if (byId("shown").textContent !== told) byId("shown").textContent = told;
  };

  const sort = () => {
    const { sort: column, order } = root.dataset;
    const value = (row) => {
      const text = row.getAttribute(`data-${column}`);
      return text === "" ? null : column === "name" || column === "kind" ? text : Number(text);
    };
    for (const body of document.querySelectorAll("table.fleet tbody")) {
      const before = [...body.children];
      const rows = before.map((row, place) => [value(row), place, row]);
      rows.sort(([one, first], [other, second]) => {
        if (one === null || other === null) return (one === null) - (other === null) || first - second;
        return (one < other ? -1 : one > other ? 1 : 0) * (order === "desc" ? -1 : 1) || first - second;
      });
      /* Moving a row takes the focus from it: only what is out of place is moved. */
      const focused = document.activeElement;
      rows.forEach(([, , row], place) => { if (body.children[place] !== row) body.insertBefore(row, body.children[place]); });
      if (body.contains(focused) && document.activeElement !== focused) focused.focus({ preventScroll: true });
      body.closest("section").hidden = before.length === 0;
    }
  };

  const takeFleet = ({ order, parts }) => {
    fill(byId("summary"), parts.summary ?? byId("summary").innerHTML);
    if (parts.errors !== undefined) fill(byId("errors"), parts.errors);
    const known = new Map([...document.querySelectorAll("tr[data-row]")].map((row) => [row.dataset.row, row]));
    const names = order.filter((name) => name.startsWith("row:")).map((name) => name.slice(4));
    for (const name of names) {
      const html = parts[`row:${name}`];
      if (html === undefined) continue;
      const row = parsed(`<table><tbody>${html}</tbody></table>`).querySelector("tr");
      const body = document.querySelector(`#${row.dataset.fate} tbody`);
      const old = known.get(name);
      if (old && old.parentElement === body) {
        for (const { name: attribute, value } of row.attributes) old.setAttribute(attribute, value);
        keeping(old, () => old.replaceChildren(...row.children));
      } else {
        if (old) old.remove();
        body.append(row);
      }
    }
    const there = new Set(names);
    for (const [name, row] of known) if (!there.has(name)) row.remove();
    byId("empty").hidden = names.length > 0;
    document.querySelector("form.filter").hidden = names.length === 0;
    sort();
    sift();
  };

  /* One process. */

  const takeCurves = (section, fresh) => {
    const figures = section.querySelectorAll("figure[data-curve]");
    const names = (list) => [...list].map((one) => one.dataset.curve).join();
    if (names(figures) !== names(fresh.querySelectorAll("figure[data-curve]"))) return false;
    for (const figure of figures) {
      figure.querySelector(".still").replaceChildren(...fresh.querySelector(`figure[data-curve="${figure.dataset.curve}"] .still`).childNodes);
    }
    return true;
  };

  const takeProcess = ({ order, parts }) => {
    const names = order.filter((name) => name.startsWith("section:")).map((name) => name.slice(8));
    const box = byId("sections");
    for (const section of [...box.children]) if (!names.includes(section.id)) section.remove();
    names.forEach((name, place) => {
      const html = parts[`section:${name}`];
      if (html === undefined) return;
      const fresh = parsed(html).firstElementChild;
      const old = byId(name);
      if (old === null) box.insertBefore(fresh, box.children[place] ?? null);
      else if (name !== "curve" || !takeCurves(old, fresh)) keeping(old, () => old.replaceChildren(...fresh.children));
    });
    if (parts.links !== undefined) fill(byId("links"), parts.links);
    if (parts.head !== undefined) fill(byId("head"), parts.head);
    if (parts.title !== undefined) document.title = parts.title;
    if (parts.state !== undefined) byId("told").textContent = parts.state; // said aloud, and only when it changes
    if (parts.data !== undefined) memwatch.show(JSON.parse(parts.data));
  };

  /* The stream. */

  const follow = () => {
    const line = byId("live"), text = byId("live-text"), pause = byId("pause");
    const take = root.dataset.live === "/events" ? takeFleet : takeProcess;
    let version = root.dataset.version, source = null, moved = "";
    const say = (state, told) => { line.dataset.state = state; text.textContent = told; };
    const open = () => {
      source = new EventSource(`${root.dataset.live}?since=${encodeURIComponent(version)}`);
      source.addEventListener("open", () => say("live", `live${moved}`));
      source.addEventListener("parts", (event) => {
        const news = JSON.parse(event.data);
        version = news.version;
        take(news);
        moved = `, last change ${new Date().toLocaleTimeString("en-GB")}`;
        say("live", `live${moved}`);
      });
      source.addEventListener("error", () => {
        if (source.readyState === EventSource.CLOSED) say("lost", `no longer live${moved}: reload the page`);
        else say("lost", `not connected${moved}; trying again`);
      });
    };
    pause.addEventListener("click", () => {
      if (source !== null) {
        source.close();
        source = null;
        pause.textContent = "Go on";
        say("paused", `paused${moved}`);
      } else {
        pause.textContent = "Pause";
        open();
      }
    });
    line.hidden = false;
    say("lost", "connecting");
    open();
    addEventListener("pagehide", () => { if (source !== null) source.close(); });
    addEventListener("pageshow", (event) => { if (event.persisted && source !== null) open(); });
  };

  if (filter) {
    filter.form.querySelector("button").hidden = true; // it filters as one types
    filter.addEventListener("input", sift);
    filter.form.addEventListener("submit", (event) => { event.preventDefault(); sift(); });
    for (const link of document.querySelectorAll("table.fleet th a")) {
      link.addEventListener("click", () => {
        const to = new URL(link.href);
        if (filter.value) to.searchParams.set("q", filter.value);
        else to.searchParams.delete("q");
        link.href = to.href;
      });
    }
  }
  if (root.dataset.live !== undefined) follow();
})();
