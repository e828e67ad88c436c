/* memwatch: curves, flame graphs and local times of a report.  Reads what memwatch/report/drawing.py writes. */
"use strict";

const memwatch = (() => {
  const isDark = matchMedia("(prefers-color-scheme: dark)");
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const shade = (coloured) => (isDark.matches ? coloured.dark : coloured.light);
  const element = (tag, attributes = {}, ...children) => {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
    made.append(...children);
    return made;
  };

  /* Units, as memwatch/units.py writes them. */

  const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];
  const size = (value) => {
    let amount = Math.abs(value), unit = 0;
    while (amount >= 1023.5 && unit < UNITS.length - 1) { amount /= 1024; unit += 1; }
    const digits = unit === 0 ? 0 : amount < 9.995 ? 2 : amount < 99.95 ? 1 : 0;
    return `${value < 0 ? "-" : ""}${amount.toFixed(digits)} ${UNITS[unit]}`;
  };
  const number = (value) => Math.round(value).toLocaleString("en-US");
  const amount = (value, unit) => (unit === "bytes" ? size(value) : number(value));

  const two = (value) => String(value).padStart(2, "0");
  const day = (date) => `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  const clock = (date) => `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}`;
  const clockUTC = (date) => date.toISOString().slice(11, 19);
  const zone = Intl.DateTimeFormat().resolvedOptions().timeZone || "local time";
  /* A moment in the reader's zone, with UTC beside it where that is another. */
  const moment = (date) => {
    if (Number.isNaN(date.getTime())) return null;
    const utc = date.getTimezoneOffset() === 0 ? " UTC" : ` (${clockUTC(date)} UTC)`;
    return `${day(date)} ${clock(date)}${utc}`;
  };
  const localise = (root) => {
    for (const time of root.querySelectorAll("time[datetime]")) {
      const told = moment(new Date(time.dateTime));
      if (told !== null) { time.textContent = told; time.title = zone; }
    }
  };

  /* Curves. */

  const unpack = (steps, factor = 1, start = 0) => {
    let at = 0;
    const found = [];
    for (const one of steps) {
      const [step, times] = Array.isArray(one) ? one : [one, 1];
      for (let again = 0; again < times; again += 1) found.push(start + (at += step) * factor);
    }
    return found;
  };
  const columns = (data) => {
    const times = unpack(data.times, data.tick_s, data.start);
    const series = data.series.map((one) => {
      const values = unpack(one.values, one.quantum);
      if (one.places === undefined) return values;
      const column = new Array(times.length).fill(undefined); // not read: the line goes on
      unpack(one.places).forEach((place, index) => { column[place] = values[index]; });
      for (const gap of data.gaps) column[gap] = null; // nobody watched: it does not
      return column;
    });
    return [times, ...series];
  };

  /* Round values; bytes are round in their own unit, which is binary and the same for a whole axis. */
  const power = (low, high, unit) => {
    let number = 0;
    while (unit === "bytes" && number < UNITS.length - 1 && Math.max(Math.abs(low), Math.abs(high)) >= 1024 ** (number + 1)) number += 1;
    return number;
  };
  const ticks = (low, high, unit) => {
    const factor = 1024 ** power(low, high, unit);
    const raw = (high - low) / factor / 5;
    if (!(raw > 0)) return [low];
    const tens = 10 ** Math.floor(Math.log10(raw));
    let step = [1, 2, 5, 10].map((nice) => nice * tens).find((nice) => nice >= raw * 0.999);
    if (unit !== "bytes") step = Math.max(1, step);
    const places = [];
    for (let at = Math.ceil(low / factor / step); at <= high / factor / step; at += 1) places.push(at * step * factor);
    return places;
  };

  /* What stands at the axis of time: from this step on, this, and below it the date where that is another. */
  const clocks = (step, text) => [step, text, "\n{D} {MMM} {YYYY}", null, "\n{D} {MMM}", null, null, null, 1];
  const MOMENTS = [
    [31536000, "{YYYY}", null, null, null, null, null, null, 1],
    [86400, "{D} {MMM}", "\n{YYYY}", null, null, null, null, null, 1],
    clocks(60, "{HH}:{mm}"),
    clocks(1, "{HH}:{mm}:{ss}"),
    clocks(0.001, "{HH}:{mm}:{ss}.{fff}"),
  ];

  class Curve {
    constructor(figure, data) {
      this.figure = figure;
      this.box = figure.querySelector(".live");
      this.hidden = new Set();
      this.zoomed = false;
      this.legend = element("div", { class: "legend lines", role: "group", "aria-label": "lines" });
      this.plot = element("div", {
        class: "plot", tabindex: "0", role: "application",
        "aria-label": `${figure.querySelector("figcaption").textContent} over time. Arrow keys move along the curve, plus and minus `
          + "zoom, shift with arrows moves the picture, 0 shows all.",
      });
      this.readout = element("p", { class: "readout" });
      this.all = element("button", { type: "button" }, "Show all");
      this.all.disabled = true;
      this.all.addEventListener("click", () => this.reset());
      const hint = element("span", { class: "soft" }, "drag to zoom");
      this.box.append(element("div", { class: "tools" }, this.legend, hint, this.all), this.plot, this.readout);
      this.plot.addEventListener("keydown", (event) => this.key(event));
      this.box.hidden = false;
      figure.classList.add("drawn");
      this.take(data);
      new ResizeObserver(() => this.fit()).observe(this.plot);
      isDark.addEventListener("change", () => { this.legends(); this.chart.redraw(); });
    }

    /* Show other data, of the same figure; a zoom stays. */
    take(data) {
      const names = (one) => one.series.map((series) => series.channel).join();
      const same = this.data !== undefined && names(this.data) === names(data);
      const scale = this.chart && this.zoomed ? { ...this.chart.scales.x } : null;
      this.data = data;
      this.columns = columns(data);
      if (same) {
        this.chart.setData(this.columns, false);
      } else {
        if (this.chart) this.chart.destroy();
        this.make();
        this.legends();
      }
      if (scale) this.chart.setScale("x", { min: scale.min, max: scale.max });
      else this.reset();
    }

    make() {
      const unit = this.data.unit;
      const axis = { stroke: () => css("--soft"), grid: { stroke: () => css("--rule"), width: 1 }, ticks: { stroke: () => css("--rule") } };
      this.chart = new uPlot({
        width: Math.max(200, this.plot.clientWidth),
        height: this.height(),
        padding: [26, 24, 0, 0],
        legend: { show: false },
        cursor: {
          drag: { x: true, y: false, setScale: true },
          bind: { dblclick: () => () => this.reset() },
          points: { size: 7 },
        },
        scales: { x: { time: true }, y: { range: (chart, low, high) => this.range(low, high) } },
        axes: [
          { ...axis, space: 70, values: MOMENTS },
          {
            ...axis, size: 76,
            splits: (chart, index, low, high) => ticks(low, high, unit),
            values: (chart, places) => {
              const { min, max } = chart.scales.y, own = power(min, max, unit);
              if (unit !== "bytes") return places.map(number);
              return places.map((place) => (place === 0 ? "0" : `${Number((place / 1024 ** own).toPrecision(6))} ${UNITS[own]}`));
            },
          },
        ],
        series: [{}, ...this.data.series.map((one) => ({
          label: one.title,
          stroke: () => shade(one),
          width: one.channel === "rss" ? 2 : 1.6,
          dash: one.dash,
          spanGaps: false,
          show: !this.hidden.has(one.channel),
          points: { show: false },
        }))],
        hooks: {
          drawClear: [() => this.ground()],
          draw: [() => this.overlay()],
          setCursor: [() => this.tell()],
          setScale: [(chart, key) => key === "x" && this.scaled()],
        },
      }, this.columns, this.plot);
      this.chart.root.setAttribute("aria-hidden", "true");
    }

    height() { return matchMedia("(max-width: 640px)").matches ? 260 : this.figure.dataset.curve === "resources" ? 240 : 340; }

    fit() {
      const width = Math.max(200, this.plot.clientWidth);
      if (width !== this.chart.width || this.height() !== this.chart.height) this.chart.setSize({ width, height: this.height() });
    }

    /* From zero where that does not press the curves flat; with the limit where it is drawn. */
    range(low, high) {
      const { limit, projection } = this.data;
      if (low == null || high == null) return [0, 1];
      if (!this.zoomed && limit && limit.drawn) high = Math.max(high, limit.value);
      if (!this.zoomed && projection) high = Math.max(high, this.ahead(this.data.until));
      if (low < 0.7 * high) low = 0;
      const margin = 0.06 * ((high - low) || Math.abs(high) || 1);
      return [low ? low - margin : 0, high + margin];
    }

    ahead(time) {
      const { from, until, level, limit } = this.data.projection;
      return level + (limit - level) * Math.min(1, (time - from) / (until - from || 1));
    }

    bounds() { return [this.columns[0][0], Math.max(this.data.until, this.columns[0].at(-1))]; }

    reset() {
      const [min, max] = this.bounds();
      this.zoomed = false;
      this.chart.setScale("x", { min, max });
    }

    scaled() {
      const [min, max] = this.bounds();
      const { min: from, max: until } = this.chart.scales.x;
      if (from == null) return;
      const slack = (max - min) * 1e-6;
      const zoomed = from > min + slack || until < max - slack;
      this.all.disabled = !zoomed;
      if (zoomed !== this.zoomed) {
        this.zoomed = zoomed;
        queueMicrotask(() => this.chart.setScale("x", { min: from, max: until })); // the height follows whether it is zoomed
      }
    }

    show(from, until) {
      const [min, max] = this.bounds();
      const width = Math.min(until - from, max - min);
      const left = Math.min(Math.max(from, min), max - width);
      if (width > 0) this.chart.setScale("x", { min: left, max: left + width });
    }

    key(event) {
      const { min, max } = this.chart.scales.x;
      const width = max - min;
      const at = this.chart.cursor.idx ?? null;
      const middle = at === null ? (min + max) / 2 : this.columns[0][at];
      const zoom = (factor) => this.show(middle - (middle - min) * factor, middle + (max - middle) * factor);
      const done = () => { event.preventDefault(); };
      switch (event.key) {
        case "+": case "=": zoom(0.5); return done();
        case "-": case "_": zoom(2); return done();
        case "0": case "Escape": this.reset(); return done();
        case "Home": this.point(0); return done();
        case "End": this.point(this.columns[0].length - 1); return done();
        case "ArrowLeft": case "ArrowRight": {
          const forward = event.key === "ArrowRight" ? 1 : -1;
          if (event.shiftKey) this.show(min + forward * width / 4, max + forward * width / 4);
          else this.step(at, forward);
          return done();
        }
        default:
      }
    }

    /* To the next reading that is at least a pixel or so away. */
    step(at, forward) {
      const times = this.columns[0];
      const { min, max } = this.chart.scales.x;
      const least = (max - min) / 150;
      let place = at === null ? (forward > 0 ? times.findIndex((time) => time >= min) : times.length - 1) : at;
      if (at !== null) {
        do place += forward;
        while (place > 0 && place < times.length - 1 && Math.abs(times[place] - times[at]) < least);
      }
      this.point(Math.min(Math.max(place, 0), times.length - 1));
    }

    point(place) {
      const time = this.columns[0][place];
      const { min, max } = this.chart.scales.x;
      if (time < min || time > max) this.show(time - (max - min) / 2, time + (max - min) / 2);
      this.readout.setAttribute("aria-live", "polite");
      this.chart.setCursor({ left: this.chart.valToPos(time, "x"), top: this.chart.bbox.height / devicePixelRatio / 3 });
    }

    /* What the curves say at the cursor, in words. */
    tell() {
      const at = this.chart.cursor.idx;
      if (at == null) { this.readout.textContent = `Times in ${zone}.`; return; }
      const time = this.columns[0][at];
      const parts = [moment(new Date(time * 1000))];
      this.data.series.forEach((one, index) => {
        if (this.hidden.has(one.channel)) return;
        const column = this.columns[index + 1];
        let place = at;
        while (place > 0 && column[place] === undefined) place -= 1; // read rarely: what was read last
        if (column[place] != null) parts.push(`${one.title} ${amount(column[place], this.data.unit)}`);
      });
      const span = this.data.spans.find((one) => one.from <= time && time <= one.until);
      if (span) parts.push(span.state);
      const near = (this.chart.scales.x.max - this.chart.scales.x.min) / 100;
      for (const mark of this.data.marks) if (Math.abs(mark.time - time) <= near) parts.push(`${mark.kind}: ${mark.text}`);
      this.readout.textContent = parts.join(" · ");
    }

    legends() {
      this.legend.replaceChildren(...this.data.series.map((one, index) => {
        const button = element("button", { type: "button", "aria-pressed": String(!this.hidden.has(one.channel)) });
        const line = document.createElementNS("http://www.w3.org/2000/svg", "svg");
        const drawn = document.createElementNS("http://www.w3.org/2000/svg", "path");
        for (const [name, value] of [["viewBox", "0 0 26 8"], ["width", 26], ["height", 8], ["aria-hidden", "true"]]) line.setAttribute(name, value);
        for (const [name, value] of [["d", "M0 4h26"], ["stroke", shade(one)], ["stroke-width", 2.4], ["stroke-dasharray", one.dash.join(" ")]]) drawn.setAttribute(name, value);
        line.append(drawn);
        button.append(line, one.title);
        button.addEventListener("click", () => {
          const on = this.hidden.delete(one.channel);
          if (!on) this.hidden.add(one.channel);
          button.setAttribute("aria-pressed", String(on));
          this.chart.setSeries(index + 1, { show: on });
        });
        return button;
      }));
    }

    /* Behind the curves: the verdict over time, and what happened. */
    ground() {
      const { ctx, bbox } = this.chart;
      const scale = devicePixelRatio;
      const x = (time) => this.chart.valToPos(time, "x", true);
      const clip = (value) => Math.min(Math.max(value, bbox.left), bbox.left + bbox.width);
      ctx.save();
      ctx.font = `600 ${10 * scale}px system-ui, sans-serif`;
      ctx.textBaseline = "middle";
      ctx.textAlign = "left";
      for (const span of this.data.spans) {
        const left = clip(x(span.from)), right = clip(x(span.until));
        if (right <= left) continue;
        ctx.fillStyle = shade(span);
        ctx.fillRect(left, bbox.top - 18 * scale, Math.max(scale, right - left), 13 * scale);
        if (ctx.measureText(span.state).width + 10 * scale < right - left) {
          ctx.fillStyle = isDark.matches ? "#101317" : "#ffffff";
          ctx.fillText(span.state, left + 5 * scale, bbox.top - 11 * scale);
        }
      }
      ctx.strokeStyle = ctx.fillStyle = css("--soft");
      ctx.lineWidth = scale;
      ctx.setLineDash([scale, 4 * scale]);
      for (const mark of this.data.marks) {
        const at = x(mark.time);
        if (at < bbox.left - 1 || at > bbox.left + bbox.width + 1) continue;
        ctx.beginPath(); ctx.moveTo(at, bbox.top); ctx.lineTo(at, bbox.top + bbox.height); ctx.stroke();
        ctx.beginPath();
        ctx.moveTo(at, bbox.top); ctx.lineTo(at - 4 * scale, bbox.top - 5 * scale); ctx.lineTo(at + 4 * scale, bbox.top - 5 * scale);
        ctx.fill();
      }
      ctx.restore();
    }

    /* Above the curves: the growth that was fitted, the limit, and where it leads. */
    overlay() {
      const { ctx, bbox } = this.chart;
      const scale = devicePixelRatio;
      const x = (time) => this.chart.valToPos(time, "x", true), y = (value) => this.chart.valToPos(value, "y", true);
      const { trend, projection, limit, alarm } = this.data;
      ctx.save();
      ctx.beginPath(); ctx.rect(bbox.left, bbox.top, bbox.width, bbox.height); ctx.clip();
      ctx.font = `600 ${12 * scale}px system-ui, sans-serif`;
      ctx.setLineDash([]);
      ctx.textAlign = "left";
      const write = (text, left, top) => { // readable on top of any line
        ctx.save();
        ctx.strokeStyle = css("--ground");
        ctx.lineWidth = 4 * scale;
        ctx.lineJoin = "round";
        ctx.setLineDash([]);
        ctx.strokeText(text, left, top);
        ctx.restore();
        ctx.fillText(text, left, top);
      };
      if (trend && !this.hidden.has(trend.channel)) {
        const [[from, to], [lowFrom, lowTo], [highFrom, highTo]] = trend.lines;
        const left = x(trend.from), right = x(trend.until), middle = (left + right) / 2, height = y((from + to) / 2);
        ctx.fillStyle = ctx.strokeStyle = shade(alarm);
        ctx.globalAlpha = 0.16; // two lines that cross in the middle: the interval of the rate
        ctx.beginPath();
        ctx.moveTo(left, y(lowFrom)); ctx.lineTo(middle, height); ctx.lineTo(left, y(highFrom)); ctx.closePath();
        ctx.moveTo(right, y(lowTo)); ctx.lineTo(middle, height); ctx.lineTo(right, y(highTo)); ctx.closePath();
        ctx.fill();
        ctx.globalAlpha = 0.4;
        ctx.lineWidth = 5 * scale;
        ctx.beginPath(); ctx.moveTo(left, y(from)); ctx.lineTo(right, y(to)); ctx.stroke();
        ctx.globalAlpha = 1;
      }
      if (limit) {
        ctx.fillStyle = ctx.strokeStyle = css("--ink");
        if (limit.drawn) {
          ctx.lineWidth = 1.4 * scale;
          ctx.setLineDash([2 * scale, 4 * scale]);
          ctx.beginPath(); ctx.moveTo(bbox.left, y(limit.value)); ctx.lineTo(bbox.left + bbox.width, y(limit.value)); ctx.stroke();
          ctx.setLineDash([]);
          write(limit.text, bbox.left + 8 * scale, y(limit.value) - 6 * scale);
        } else {
          ctx.textAlign = "right";
          write(`↑ ${limit.text}`, bbox.left + bbox.width - 6 * scale, bbox.top + 14 * scale);
        }
      }
      if (projection) {
        const until = Math.min(this.data.until, projection.until), end = this.ahead(until);
        ctx.strokeStyle = ctx.fillStyle = shade(alarm);
        ctx.lineWidth = 1.8 * scale;
        ctx.setLineDash([5 * scale, 4 * scale]);
        ctx.beginPath(); ctx.moveTo(x(projection.from), y(projection.level)); ctx.lineTo(x(until), y(end)); ctx.stroke();
        ctx.textAlign = "right";
        const right = Math.min(x(until), bbox.left + bbox.width) - 6 * scale;
        const below = y(projection.level) + 18 * scale; // under the line, which rises
        if (x(until) > bbox.left) write(projection.text, right, Math.min(below, bbox.top + bbox.height - 8 * scale));
      }
      ctx.restore();
    }
  }

  /* Flame graphs: the outermost frame on top, a width is bytes. */

  class Flame {
    constructor(box, profiles) {
      this.box = box;
      this.profiles = profiles;
      this.details = element("p", { class: "readout", "aria-live": "polite" });
      this.graph = element("div", {
        class: "frames", role: "group", "aria-label": "Flame graph of allocation stacks. Arrow keys move, Enter zooms, Escape shows all.",
      });
      this.all = element("button", { type: "button" }, "Show all");
      this.all.addEventListener("click", () => this.zoom(0));
      this.find = element("input", { type: "search", placeholder: "function or file", "aria-label": "Find a function or file" });
      this.find.addEventListener("input", () => this.draw());
      this.choices = element("div", { class: "legend", role: "group", "aria-label": "what the bytes are" });
      this.graph.addEventListener("keydown", (event) => this.key(event));
      this.graph.addEventListener("click", (event) => this.clicked(event));
      this.graph.addEventListener("mouseover", (event) => this.told(event));
      this.graph.addEventListener("focusin", (event) => this.told(event));
      box.append(element("div", { class: "tools" }, this.choices, this.find, this.all), this.graph, this.details);
      box.hidden = false;
      this.choose(0);
      new ResizeObserver(() => this.draw()).observe(this.graph);
    }

    choose(index) {
      const profile = this.profiles[index];
      this.choices.replaceChildren(...this.profiles.map((one, place) => {
        const button = element("button", { type: "button", "aria-pressed": String(place === index) }, one.title);
        button.addEventListener("click", () => { this.choose(place); this.choices.children[place].focus(); });
        return button;
      }));
      this.frames = profile.frames;
      this.total = profile.total;
      /* A row is [depth, frame, bytes]; children come behind their parent, beginning where it begins. */
      const free = [0];
      this.nodes = [{ depth: 0, name: "all", place: "", bytes: profile.total, from: 0, parent: -1 }];
      const last = [0];
      for (const [depth, frame, bytes] of profile.rows) {
        const from = free[depth] ?? 0;
        free[depth] = from + bytes;
        free[depth + 1] = from;
        const [name, place] = profile.frames[frame];
        last[depth + 1] = this.nodes.length;
        this.nodes.push({ depth: depth + 1, name, place, bytes, from, parent: last[depth] });
      }
      this.zoom(0);
    }

    zoom(index) {
      this.root = index;
      this.current = index;
      this.all.disabled = index === 0;
      this.draw();
    }

    draw() {
      const width = this.graph.clientWidth || 800;
      const root = this.nodes[this.root];
      const wanted = this.find.value.trim().toLowerCase();
      const above = new Set();
      for (let up = this.root; up >= 0; up = this.nodes[up].parent) above.add(up);
      let deepest = 0, found = 0, foundUntil = -1;
      const had = this.graph.contains(document.activeElement);
      this.drawn = new Map();
      const buttons = [];
      this.nodes.forEach((node, index) => {
        const whole = above.has(index);
        const inside = node.from >= root.from && node.from + node.bytes <= root.from + root.bytes && node.depth > root.depth;
        const hit = wanted !== "" && `${node.name} ${node.place}`.toLowerCase().includes(wanted);
        if (hit && (inside || index === this.root) && node.from >= foundUntil) { found += node.bytes; foundUntil = node.from + node.bytes; }
        if (!whole && !inside) return;
        const left = whole ? 0 : (node.from - root.from) / root.bytes * width;
        const wide = whole ? width : node.bytes / root.bytes * width;
        if (wide < 2.5) return;
        const button = element("button", { type: "button", tabindex: "-1", class: `frame tint${this.tint(node)}${hit ? " hit" : ""}${whole && index !== this.root ? " above" : ""}` });
        button.title = this.describe(node);
        button.setAttribute("aria-label", this.describe(node));
        button.dataset.node = String(index);
        button.style.left = `${left}px`;
        button.style.width = `${Math.max(1, wide - 1)}px`;
        button.style.top = `${node.depth * 25}px`;
        if (wide > 28) button.textContent = node.name;
        deepest = Math.max(deepest, node.depth);
        this.drawn.set(index, button);
        buttons.push(button);
      });
      this.graph.style.height = `${(deepest + 1) * 25}px`;
      this.graph.replaceChildren(...buttons);
      if (!this.drawn.has(this.current)) this.current = this.root;
      const focus = this.drawn.get(this.current);
      if (focus) { focus.tabIndex = 0; if (had) focus.focus({ preventScroll: true }); }
      this.details.textContent = wanted === "" ? this.describe(root) : `${size(found)} in what matches “${this.find.value.trim()}”, ${this.share(found)} of all`;
    }

    share(bytes) { return `${(100 * bytes / (this.total || 1)).toFixed(1)} %`; }

    describe(node) { return `${node.name}${node.place ? `  ${node.place}` : ""}  ${size(node.bytes)}, ${this.share(node.bytes)}`; }

    tint(node) {
      const file = node.place.replace(/:\d+$/, "");
      let sum = 0;
      for (const char of file) sum = (sum * 31 + char.codePointAt(0)) % 997;
      return node.depth === 0 ? "r" : sum % 4;
    }

    nodeOf(event) {
      const button = event.target.closest(".frame");
      return button ? Number(button.dataset.node) : null;
    }

    clicked(event) {
      const index = this.nodeOf(event);
      if (index !== null) this.zoom(index);
    }

    told(event) {
      const index = this.nodeOf(event);
      if (index !== null) this.details.textContent = this.describe(this.nodes[index]);
    }

    key(event) {
      const node = this.nodes[this.current];
      const move = (index) => {
        const button = this.drawn.get(index);
        event.preventDefault();
        if (!button) return;
        const before = this.drawn.get(this.current);
        if (before) before.tabIndex = -1;
        this.current = index;
        button.tabIndex = 0;
        button.focus({ preventScroll: false });
      };
      const beside = (forward) => {
        const row = [...this.drawn.keys()].filter((index) => this.nodes[index].depth === node.depth);
        return row[row.indexOf(this.current) + forward];
      };
      switch (event.key) {
        case "ArrowUp": return move(node.parent);
        case "ArrowDown": return move([...this.drawn.keys()].find((index) => this.nodes[index].parent === this.current));
        case "ArrowLeft": return move(beside(-1));
        case "ArrowRight": return move(beside(1));
        case "Escape": event.preventDefault(); return this.zoom(0);
        default:
      }
    }
  }

  const drawn = new Map();
  /* Draw what the page has places for; again with other data, curves move on where they are. */
  const show = (data) => {
    for (const [name, curve] of Object.entries(data.curves)) {
      const figure = document.querySelector(`figure[data-curve="${name}"]`);
      if (figure === null) continue;
      const known = drawn.get(name);
      if (known && known.figure === figure) known.take(curve);
      else drawn.set(name, new Curve(figure, curve));
    }
    const box = document.querySelector(".flame");
    if (box !== null && data.stacks.length > 0 && box.childElementCount === 0) new Flame(box, data.stacks);
  };

  const start = () => {
    localise(document);
    const embedded = document.getElementById("memwatch-data");
    if (embedded !== null) show(JSON.parse(embedded.textContent));
    /* A link to a place inside something folded unfolds it; on paper everything is unfolded. */
    addEventListener("beforeprint", () => { for (const one of document.querySelectorAll("details:not(.long)")) one.open = true; });
  };
  start();
  return { show, localise, size, curves: drawn };
})();
