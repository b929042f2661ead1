// Draws the explorer: error against cost, the map of the best V, and the sliders and switches beside them.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("explorer-data").textContent);
  const root = document.getElementById("explorer");
  const state = {
    ...data.start, sizes: data.llms.map(() => true), counts: data.counts.map(() => true),
  };
  const LONGEST = 1000, WIDTH = 700, COLUMNS = 110;
  // The least and the longest prompt whose time was measured, where costs are times of a measured engine.
  const known = data.efficiency && data.kind !== "flops" &&
    [data.efficiency.lengths[0], data.efficiency.lengths.at(-1)];
  const SVG = "http://www.w3.org/2000/svg";

  function make(name, attributes = {}, parent = null, text = null) {
    const html = ["div", "label", "input", "span", "p", "output", "fieldset", "legend"].includes(name);
    const node = html ? document.createElement(name) : document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== null) node.textContent = text;
    if (parent) parent.append(node);
    return node;
  }

  // Numbers as people write them.
  const digits = (x) => String(Number(x.toPrecision(3)));
  const percent = (x) => (100 * x).toFixed(2) + " %";
  const sizeName = (n) => n >= 0.1 ? digits(n) + "B" : n >= 1e-3 ? digits(n * 1e3) + "M" : digits(n * 1e6) + "k";
  function prefixed(x, unit) {
    const k = Math.min(Math.max(Math.floor(Math.log10(Math.max(x, 1)) / 3), 0), 6);
    return `${digits(x / 1000 ** k)} ${["", "k", "M", "G", "T", "P", "E"][k]}${unit}`;
  }
  function amount(x) {
    if (data.kind === "flops") return prefixed(x, "FLOP");
    if (data.kind === "seconds") return x < 1 ? digits(1e3 * x) + " ms" : digits(x) + " s";
    return "$" + digits(x);
  }
  // On an axis whose label names the unit.
  const short = (x) => data.kind === "flops" ? prefixed(x, "") : amount(x);
  const name = (each) => {
    const llm = data.llms[each.i];
    return `${sizeName(llm.n)}${llm.name ? ` (${llm.name})` : ""}, V = ${each.v}`;
  };

  // Shapes of radius r around the origin, one for each V, in the order of the PNG figures.
  const polygon = (points, r) => "M" + points.map(([px, py]) => `${px * r} ${py * r}`).join("L") + "Z";
  const plus = [[-1, -3], [1, -3], [1, -1], [3, -1], [3, 1], [1, 1], [1, 3], [-1, 3], [-1, 1], [-3, 1], [-3, -1],
    [-1, -1]].map(([px, py]) => [0.42 * px, 0.42 * py]);
  const turned = plus.map(([px, py]) => [0.71 * (px - py), 0.71 * (px + py)]);
  const SHAPES = [
    (r) => `M${-r} 0A${r} ${r} 0 1 0 ${r} 0A${r} ${r} 0 1 0 ${-r} 0Z`,
    (r) => polygon([[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]], r),
    (r) => polygon([[0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0]], r),
    (r) => polygon([[0, -1.2], [1.2, 0.9], [-1.2, 0.9]], r),
    (r) => polygon([[0, 1.2], [1.2, -0.9], [-1.2, -0.9]], r),
    (r) => polygon(plus, r),
    (r) => polygon(turned, r),
  ];
  const shape = (j, r) => SHAPES[j % SHAPES.length](r);

  const tip = make("div", { class: "tip", role: "status" }, root);
  // A text beside a place of the window.
  function tell(text, clientX, clientY) {
    tip.textContent = text;
    tip.style.display = "block";
    const box = root.getBoundingClientRect();
    const x = Math.min(clientX - box.left + 14, box.width - tip.offsetWidth - 4);
    tip.style.left = `${Math.max(x, 0)}px`;
    tip.style.top = `${clientY - box.top + 16}px`;
  }
  const hush = () => { tip.style.display = "none"; };
  function hover(node, text) {
    node.addEventListener("pointerenter", (event) => tell(text(), event.clientX, event.clientY));
    node.addEventListener("pointermove", (event) => tell(tip.textContent, event.clientX, event.clientY));
    node.addEventListener("pointerleave", hush);
  }
  // The arrow keys on a panel: `move` gets how far they go to the right and up.
  function arrows(svg, move) {
    const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowDown: [0, -1], ArrowUp: [0, 1] };
    svg.addEventListener("keydown", (event) => {
      if (!(event.key in steps)) return;
      event.preventDefault();
      move(...steps[event.key]);
    });
    svg.addEventListener("blur", hush);
  }

  // Controls.
  const said = make("p", { class: "said", "aria-live": "polite" }, root);
  const controls = make("div", { class: "controls" }, root);
  function slider(label, from, get, set, show) {
    const row = make("label", {}, controls);
    make("span", {}, row, label);
    const input = make("input", { type: "range", min: 0, max: 1000, step: 1 }, row);
    const out = make("output", {}, row);
    const refresh = () => { input.value = Math.round(1000 * from(get())); out.textContent = show(get()); };
    input.addEventListener("input", () => { set(input.value / 1000); draw(); });
    return refresh;
  }
  const toShare = (x, low, high) => Math.log(x / low) / Math.log(high / low);
  const fromShare = (share, low, high) => low * (high / low) ** share;
  const tokensTo = (q) => toShare(q + 4, 4, LONGEST + 4);
  const tokensFrom = (share) => Math.round(fromShare(share, 4, LONGEST + 4) - 4);
  // Budgets from the cheapest choice to the dearest, for the current G; cost grows with the text, but where an engine
  // was measured it need not.
  let low = 1, high = 2;
  function setRange() {
    const open = { ...data, machine: data.machine && { ...data.machine, memory: Infinity } };
    const all = { ...state, sizes: state.sizes.map(() => true), counts: state.counts.map(() => true) };
    const steps = data.efficiency ? 2 * COLUMNS : 1;
    const found = Array.from({ length: steps + 1 }, (_, k) => {
      const text = tokensFrom(k / steps);
      return model.choices(open, { ...all, text, question: data.follows ? text : state.question });
    });
    low = Math.min(...found.map((sorted) => sorted[0].cost), state.budget);
    high = Math.max(...found.map((sorted) => sorted.at(-1).cost), state.budget);
  }
  const sliders = [
    slider("budget " + data.per, (x) => toShare(x, low, high), () => state.budget,
      (share) => { state.budget = fromShare(share, low, high); }, amount),
    slider("text tokens Q", tokensTo, () => state.text, (share) => {
      state.text = tokensFrom(share);
      if (data.follows) state.question = state.text;
    }, (q) => `${q} tokens`),
  ];
  if (data.counted) {
    sliders.push(slider("generated tokens G", (g) => toShare(g, 1, 1024), () => state.answer,
      (share) => { state.answer = Math.round(fromShare(share, 1, 1024)); }, (g) => `${g} tokens`));
  }
  function switches(title, names, on, colour) {
    const group = make("fieldset", {}, controls);
    make("legend", {}, group, title);
    names.forEach((text, k) => {
      const row = make("label", { class: "switch" }, group);
      const input = make("input", { type: "checkbox", checked: "" }, row);
      make("span", { class: "swatch", style: `background: var(--${colour}${k})` }, row);
      if (colour === "v") {
        const icon = make("svg", { viewBox: "-8 -8 16 16", class: "icon" }, row);
        make("path", { d: shape(k, 5) }, icon);
      }
      make("span", {}, row, text);
      input.addEventListener("change", () => { on[k] = input.checked; redraw(); });
    });
  }
  switches("LLM", data.llms.map((llm) => sizeName(llm.n)), state.sizes, "n");
  switches("V", data.counts.map(String), state.counts, "v");

  // A panel with axes: x and y map values to places.
  function panel(title, keys, height, xs, ys, xLabel, yLabel) {
    const figure = make("div", { class: "panel" }, root);
    make("p", { class: "panel-title" }, figure, title);
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${height}`, role: "application", tabindex: 0,
      "aria-label": `${title}. ${keys}` }, make("div", { class: "window" }, figure));
    make("p", { class: "hint", "aria-hidden": "true" }, figure, "scrolls sideways →");
    const box = { left: 84, right: WIDTH - 22, top: 10, bottom: height - 48 };
    const x = (value) => box.left + xs.share(value) * (box.right - box.left);
    const y = (value) => box.bottom - ys.share(value) * (box.bottom - box.top);
    const axes = make("g", { class: "axes" }, svg);
    for (const tick of xs.ticks) {
      make("line", { x1: x(tick), x2: x(tick), y1: box.top, y2: box.bottom }, axes);
      make("text", { x: x(tick), y: box.bottom + 18, "text-anchor": "middle" }, axes, xs.show(tick));
    }
    for (const tick of ys.ticks) {
      make("line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick) }, axes);
      make("text", { x: box.left - 7, y: y(tick) + 4, "text-anchor": "end" }, axes, ys.show(tick));
    }
    make("text", { x: (box.left + box.right) / 2, y: height - 8, "text-anchor": "middle", class: "label" }, axes, xLabel);
    make("text", { x: 0, y: 0, "text-anchor": "middle", class: "label",
      transform: `translate(14 ${(box.top + box.bottom) / 2}) rotate(-90)` }, axes, yLabel);
    return { svg, box, x, y, layer: () => make("g", {}, svg), figure };
  }
  function logAxis(from, to, show) {
    const decades = [], all = [];
    for (let k = Math.floor(Math.log10(from)); k <= Math.ceil(Math.log10(to)); k++) {
      for (const m of [1, 2, 5]) {
        const tick = m * 10 ** k;
        if (tick >= from * 0.999 && tick <= to * 1.001) { all.push(tick); if (m === 1) decades.push(tick); }
      }
    }
    const ticks = decades.length >= 3 ? decades : all;
    const step = Math.ceil(ticks.length / 8);
    return { share: (v) => toShare(v, from, to), ticks: ticks.filter((_, k) => k % step === 0), show };
  }
  function linearAxis(from, to, show) {
    const rough = (to - from) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((m) => m * power >= rough);
    const ticks = [];
    for (let t = Math.ceil(from / step) * step; t <= to + 1e-12; t += step) ticks.push(t);
    return { share: (v) => (v - from) / (to - from), ticks, show };
  }
  const path = (points) => "M" + points.map(([px, py]) => `${px.toFixed(1)} ${py.toFixed(1)}`).join("L");

  // Error against cost.
  const priced = (i, v, j) => model.queryCost(data, model.work(data, state, i, v, j), state.text + v);
  function curve(i) {
    const llm = data.llms[i], counts = data.counts;
    const at = (v, j) => ({ v, n: llm.n, i, cost: priced(i, v, j),
      error: model.lawError(data, data.law, llm.n, v, state.text) });
    if (data.counted) return counts.map(at);
    const from = counts[0], to = counts.at(-1);
    return Array.from({ length: 81 }, (_, k) => at(fromShare(k / 80, from, to), 0));
  }
  let chart = null;
  function drawChart(sorted, frontier, chosen) {
    const curves = data.llms.map((_, i) => state.sizes[i] ? curve(i) : []);
    const measured = data.measured.filter((cell) => state.sizes[cell.i] && state.counts[cell.j])
      .map((cell) => ({ ...cell, v: data.counts[cell.j], n: data.llms[cell.i].n,
        cost: priced(cell.i, data.counts[cell.j], cell.j) }));
    const everything = [...curves.flat(), ...measured];
    if (chart) chart.figure.remove();
    chart = null;
    if (!everything.length) return;
    const costs = everything.map((each) => each.cost), errors = everything.map((each) => each.error);
    const room = 0.06 * (Math.max(...errors) - Math.min(...errors) || 0.01);
    chart = panel(`Error against cost (${data.convention})`, "Arrow keys go from mark to mark.", 400,
      logAxis(Math.min(...costs) / 1.15, Math.max(...costs) * 1.15, short),
      linearAxis(Math.min(...errors) - room, Math.max(...errors) + room, (e) => digits(100 * e) + " %"),
      data.axis, "error");
    root.insertBefore(chart.figure, map ? map.figure : null);
    const heavy = data.llms.some((_, k) => state.sizes[k] && !sorted.some((each) => each.i === k));
    make("p", { class: "panel-title" }, chart.figure, "Colour: N; shape: V. Lines and small marks: the law" +
      (measured.length ? "; hollow marks: measured" : "") +
      (heavy && data.machine ? "; a line without marks does not fit the machine's memory" : "") +
      (known ? `; costs are as measured for prompts of ${known[0]} to ${known[1]} positions ` +
        "and by the nearest of these elsewhere" : "") +
      ". Band: the least error that each cost buys. Circle: what the budget buys. " +
      "Point at a mark, or go from one to the next with the arrow keys, for its values.");
    const { svg, box, x, y } = chart;
    const marks = [];
    function marked(node, cost, text) { marks.push({ node, cost, text }); hover(node, text); }
    if (frontier.length) {
      const steps = [];
      frontier.forEach((each, k) => {
        if (k) steps.push([x(each.cost), y(frontier[k - 1].error)]);
        steps.push([x(each.cost), y(each.error)]);
      });
      make("path", { d: path(steps), class: "frontier" }, svg);
    }
    curves.forEach((points, i) => {
      if (!points.length) return;
      const line = points.map((p) => [x(p.cost), y(p.error)]);
      make("path", { d: path(line), class: "curve", style: `stroke: var(--n${i})` }, svg);
    });
    for (const cell of measured) {
      const mark = make("path", { d: shape(cell.j, 5), class: "measured", style: `stroke: var(--n${cell.i})`,
        transform: `translate(${x(cell.cost).toFixed(1)} ${y(cell.error).toFixed(1)})` }, svg);
      marked(mark, cell.cost,
        () => `${name(cell)}: measured error ${percent(cell.error)}, cost ${amount(cell.cost)}`);
    }
    for (const each of sorted) {
      const mark = make("path", { d: shape(each.j, data.measured.length ? 2.6 : 4.5), class: "mark",
        style: `fill: var(--n${each.i})`,
        transform: `translate(${x(each.cost).toFixed(1)} ${y(each.error).toFixed(1)})` }, svg);
      marked(mark, each.cost,
        () => `${name(each)}: error ${percent(each.error)} by the law${far(each) ? ", extrapolated" : ""}, cost ${amount(each.cost)}`);
    }
    marks.sort((a, b) => a.cost - b.cost);
    let at = -1;
    arrows(svg, (right, up) => {
      if (at >= 0) marks[at].node.classList.remove("at");
      at = at < 0 ? 0 : (at + right + up + marks.length) % marks.length;
      const { node, text } = marks[at];
      node.classList.add("at");
      node.scrollIntoView({ block: "nearest", inline: "nearest" });
      const place = node.getBoundingClientRect();
      tell(text(), place.right, place.bottom);
    });
    const edge = Math.min(Math.max(x(state.budget), box.left), box.right);
    make("line", { x1: edge, x2: edge, y1: box.top, y2: box.bottom, class: "budget" }, svg);
    const right = edge > box.left + 90;
    make("text", { x: edge + (right ? -5 : 5), y: box.top + 12, class: "note",
      "text-anchor": right ? "end" : "start" }, svg, "budget");
    if (chosen) make("circle", { cx: x(chosen.cost), cy: y(chosen.error), r: 10, class: "chosen" }, svg);
  }

  // The best V for every text length and budget.
  let map = null, cross = null;
  function drawMap() {
    if (map) map.figure.remove();
    const xs = { share: tokensTo, ticks: [0, 10, 30, 100, 300, 1000], show: String };
    map = panel(`Best V, by colour, for every Q and budget (${data.convention})`,
      "Arrow keys set Q and the budget.", 340, xs, logAxis(low, high, short), "text tokens Q", "budget: " + data.unit);
    const { box, svg, y } = map;
    const width = (box.right - box.left) / COLUMNS;
    const cells = make("g", { class: "cells" }, svg);
    for (let k = 0; k < COLUMNS; k++) {
      const text = tokensFrom((k + 0.5) / COLUMNS), question = data.follows ? text : state.question;
      // Between one frontier cost and the next, the cheaper choice is the best.
      const best = model.frontier(model.choices(data, { ...state, text, question }));
      best.forEach((each, r) => {
        const until = r + 1 < best.length ? best[r + 1].cost : Infinity;
        const top = y(Math.min(until, high)), bottom = y(each.cost);
        if (bottom - top < 0.05) return;
        const cell = make("rect", { x: (box.left + k * width).toFixed(2), y: top.toFixed(2),
          width: (width + 0.05).toFixed(2), height: (bottom - top).toFixed(2),
          style: `fill: var(--v${each.j})` }, cells);
        const range = until === Infinity ? `from ${amount(each.cost)}` : `${amount(each.cost)} to ${amount(until)}`;
        hover(cell, () => `Q = ${text}, ${range}: ${name(each)}, error ${percent(each.error)}`);
        cell.addEventListener("click", (event) => {
          const frame = svg.getBoundingClientRect();
          const place = (event.clientY - frame.top) / frame.height * 340;
          const budget = fromShare((box.bottom - place) / (box.bottom - box.top), low, high);
          Object.assign(state, { text, question, budget });
          draw();
        });
      });
    }
    cross = make("path", { class: "cross" }, svg);
    const within = (share) => Math.min(Math.max(share, 0), 1);
    arrows(svg, (right, up) => {
      // A step of Q is at least one token, a step of the budget a fiftieth of the axis.
      const text = tokensFrom(within(tokensTo(state.text) + 0.02 * right));
      state.text = text === state.text ? Math.min(Math.max(text + right, 0), LONGEST) : text;
      if (data.follows) state.question = state.text;
      if (up) state.budget = fromShare(within(toShare(state.budget, low, high) + 0.02 * up), low, high);
      draw();
    });
  }

  // Where an engine was measured: the other bound, and whether the measured lengths hold the prompt's.
  function atPeaks(chosen) {
    if (!known) return "";
    const bound = model.queryCost(data, chosen.parts, state.text + chosen.v, true);
    return ` as measured (${amount(bound)} at the chip's peaks)`;
  }
  function unmeasured(chosen) {
    const length = state.text + chosen.v;
    if (!known || (known[0] <= length && length <= known[1])) return "";
    return ` Its prompt of ${length} positions lies outside the measured ${known[0]} to ${known[1]}: ` +
      "efficiencies are those of the nearest measured.";
  }

  const far = (each) => model.extrapolates(data, each.n, each.v, state.text);

  function sentence(chosen, votes) {
    if (!chosen) return `${amount(state.budget)} ${data.per} buys no choice.`;
    let text = `${amount(state.budget)} ${data.per} buys ${name(chosen)}: predicted error ${percent(chosen.error)}`;
    if (votes) text += ` (95 % interval ${percent(votes.interval[0])} to ${percent(votes.interval[1])})`;
    text += `, for ${amount(chosen.cost)}${atPeaks(chosen)}.${unmeasured(chosen)}`;
    if (far(chosen)) text += " It lies outside the grid that the law was fitted on: its error is extrapolated.";
    if (votes) {
      const list = votes.shares.slice(0, 3).map(([each, share]) => `${name(each)} (${Math.round(100 * share)} %)`);
      text += ` Chosen by the bootstrap laws: ${list.join("; ")}.`;
    }
    const total = Object.values(chosen.parts).reduce((sum, part) => sum + part.flops, 0);
    if (data.counted) {
      const shares = Object.entries(chosen.parts).map(([part, w]) => `${part} ${Math.round(100 * w.flops / total)} %`);
      text += ` FLOPs: ${shares.join(", ")}.`;
    }
    return text;
  }

  function draw() {
    const sorted = model.choices(data, state), chosen = model.best(sorted, state.budget);
    said.textContent = sentence(chosen, model.votes(data, state, sorted, chosen));
    if (drawn.answer !== state.answer) setRange();
    sliders.forEach((refresh) => refresh());
    drawChart(sorted, model.frontier(sorted), chosen);
    if (drawn.answer !== state.answer) { drawMap(); drawn.answer = state.answer; }
    const cx = map.x(Math.min(state.text, LONGEST)), cy = map.y(Math.min(Math.max(state.budget, low), high));
    cross.setAttribute("d", `M${cx - 9} ${cy}H${cx + 9}M${cx} ${cy - 9}V${cy + 9}`);
  }
  const drawn = { answer: null };
  function redraw() { drawn.answer = null; draw(); }
  redraw();
})();
