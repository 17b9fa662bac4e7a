// Charts: a card with a title, its controls, and what every chart has: SVG and CSV to save, light and dark, and room that
// follows the window.
"use strict";

(() => {
  const { el } = bupo;
  const live = new Set();
  /** What may change with a control is handed over as a function. */
  const now = (x) => (typeof x === "function" ? x() : x);

  const base = () => ({
    animation: false,
    backgroundColor: "transparent",
    textStyle: { fontFamily: "system-ui, sans-serif", color: bupo.css("--ink") },
    grid: { left: 58, right: 18, top: 38, bottom: 44 },
    tooltip: {
      confine: true, backgroundColor: bupo.css("--card"), borderColor: bupo.css("--line"),
      textStyle: { color: bupo.css("--ink"), fontSize: 13 }, extraCssText: "border-radius: 8px; z-index: 5;",
    },
    legend: { top: 0, left: 0, padding: [2, 0], itemGap: 12, itemWidth: 18, itemHeight: 9, textStyle: { color: bupo.css("--ink"), fontSize: 12 } },
  });

  /** Pixels that a legend of these names takes in a chart so wide: it wraps. */
  bupo.legendHeight = (names, width) => {
    let rows = 1, x = 0;
    for (const name of names) {
      const own = 18 + 5 + 6.6 * name.length + 12;
      if (x > 0 && x + own > width) { rows += 1; x = 0; }
      x += own;
    }
    return names.length > 1 ? 20 * rows : 0;
  };

  /** A tick in as few digits as say it whole: ticks are round, but those of a narrow range agree in their first digits. */
  const tick = (v) => bupo.show(v, bupo.range(9).map((i) => 3 + i).find((digits) => Math.abs(Number(v.toPrecision(digits)) - v) <= 1e-13 * Math.abs(v)) ?? 3);

  /** An axis in the page's colours. */
  bupo.axis = (type, name, more = {}) => ({
    type, name, nameLocation: "middle", nameGap: type === "category" ? 28 : 40, scale: type !== "category",
    nameTextStyle: { color: bupo.css("--dim"), fontSize: 12 },
    axisLabel: { color: bupo.css("--dim"), fontSize: 11, hideOverlap: true, formatter: type === "category" ? undefined : tick },
    axisLine: { lineStyle: { color: bupo.css("--line") } }, axisTick: { show: false },
    splitLine: { show: type !== "category", lineStyle: { color: bupo.css("--line"), opacity: 0.6 } },
    ...more,
  });
  bupo.xAxis = (name, more = {}) => bupo.axis("value", name, { nameGap: 26, scale: true, splitLine: { show: false }, ...more });

  /**
   * A chart's card. `option()`: ECharts' option, made anew when the theme or a control changes. `data()`: {columns, rows}, saved
   * as CSV. `controls`: elements; they call `redraw` of the card. `note`: text or elements, as a function where the theme or a
   * control changes them. What the card's `ready` holds is called with the picture when it is first drawn.
   */
  bupo.chart = ({ title, note, option, data, controls = [], size = "", height, heavy = false, label }) => {
    const box = el("div", { class: "chart", role: "img", "aria-label": label ?? title });
    if (height) box.style.height = `${height}px`;
    const name = bupo.slug(title);
    const said = note ? el("p", { class: "note" }) : null;
    const say = () => said?.replaceChildren(...[now(note)].flat());
    say();
    const card = el("div", { class: `card ${size}`, "data-chart": name },
      el("header", {}, el("h3", {}, title), el("div", { class: "tools" }, controls,
        el("button", { type: "button", class: "quiet", title: "Save the picture as SVG", onclick: () => bupo.save(`${name}.svg`, "image/svg+xml", card.svg()) }, "SVG"),
        el("button", { type: "button", class: "quiet", title: "Save the numbers as CSV", onclick: () => bupo.save(`${name}.csv`, "text/csv", card.csv()) }, "CSV"))),
      said, box);
    const whole = () => {
      const made = option(box.clientWidth || 600);
      const common = base();
      for (const key of ["grid", "tooltip", "legend"]) {
        if (!Array.isArray(made[key])) common[key] = made[key] === null ? undefined : { ...common[key], ...made[key] };
        else common[key] = made[key];
      }
      return { ...common, ...Object.fromEntries(Object.entries(made).filter(([k]) => !["grid", "tooltip", "legend"].includes(k))) };
    };
    card.box = box;
    card.csv = () => { const { columns, rows } = data(); return bupo.csv(columns, rows); };
    // Drawn apart from the page: the same picture whatever draws it there.
    card.svg = () => {
      const apart = echarts.init(null, null, { renderer: "svg", ssr: true, width: box.clientWidth || 800, height: box.clientHeight || 400 });
      apart.setOption({ ...whole(), backgroundColor: bupo.css("--card") });
      const text = apart.renderToSVGString();
      apart.dispose();
      return text;
    };
    card.ready = [];
    card.redraw = () => { say(); if (card.picture) card.picture.setOption(whole(), { notMerge: true }); };
    card.draw = () => {
      if (card.picture) return;
      card.picture = echarts.init(box, null, { renderer: heavy ? "canvas" : "svg" });
      card.picture.setOption(whole());
      card.ready.forEach((f) => f(card.picture));
    };
    live.add(card);
    watcher.observe(card);
    return card;
  };

  // A chart is drawn when it comes near the window, so that a page of a hundred opens at once.
  const watcher = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) { entry.target.draw(); watcher.unobserve(entry.target); }
  }, { rootMargin: "600px" });
  bupo.drawAll = () => live.forEach((card) => card.draw());
  bupo.forgetCharts = (within) => live.forEach((card) => {
    if (within.contains(card)) { watcher.unobserve(card); card.picture?.dispose(); live.delete(card); }
  });
  bupo.onTheme(() => live.forEach((card) => card.redraw()));
  let soon = 0;
  addEventListener("resize", () => {
    clearTimeout(soon);
    soon = setTimeout(() => live.forEach((card) => card.picture?.resize()), 80);
  });

  /**
   * Lines over x. `lines`: [{name, x, y, low, high, colour (index), dashed (see `dash`), axis (0 or 1)}]; `low` and `high` are the band.
   * `marks`: [{from, to, name}] shaded spans, `rules`: [{at, name, colour}] upright lines. `doubling()`: the ticks of an x axis on
   * which every doubling is as wide.
   */
  bupo.lines = ({ title, note, x, y, right, lines, size, marks = () => [], rules = () => [], zero = false, height, log = false, bands = true, controls = [], digits = 4, min, max, doubling }) => {
    const banded = lines().filter((l) => l.low).length;
    // Many bands over each other hide what they show.
    const state = { bands: bands && banded < 3, log };
    const extra = [...controls];
    if (bands && banded) extra.push(bupo.toggle("spread", state.bands, (on) => { state.bands = on; card.redraw(); }));
    if (log) extra.push(bupo.toggle("log", true, (on) => { state.log = on; card.redraw(); }));
    const option = (width) => {
      const series = [];
      const all = lines();
      all.forEach((line, i) => {
        const colour = bupo.colour(line.colour ?? i);
        const points = line.x.map((at, j) => [at, positive(line.y[j], state.log)]);
        if (state.bands && line.low) series.push(band(line, colour), ...edges(line));
        series.push({
          // ECharts' own symbol is hollow and filled white, in the dark too.
          name: line.name, type: "line", data: points, symbol: "circle", showSymbol: points.length < 2 || Boolean(line.symbols), symbolSize: 5, yAxisIndex: line.axis ?? 0, connectNulls: false,
          lineStyle: { color: colour, width: 2, type: dash(line) }, itemStyle: { color: colour }, emphasis: { disabled: true }, z: 3,
        });
      });
      const grid = { right: right ? 58 : 18, left: 60, top: 20 + bupo.legendHeight(all.map((l) => l.name), width) };
      if (series.length) decorate(series, inside(marks(), all, width - grid.left - grid.right), rules(), zero);
      const yAxes = [bupo.axis(state.log ? "log" : "value", now(y), { min, max })];
      if (right) yAxes.push(bupo.axis("value", right, { splitLine: { show: false }, scale: true }));
      return {
        xAxis: { ...bupo.xAxis(x, { min: "dataMin", max: "dataMax", minInterval: 1 }), ...(doubling ? octaves(doubling()) : {}) }, yAxis: yAxes, series, grid,
        legend: { show: all.length > 1, data: all.map((l) => ({ name: l.name, lineStyle: { type: dash(l) } })) },
        tooltip: { trigger: "axis", axisPointer: { type: "line", lineStyle: { color: bupo.css("--dim") } }, formatter: (shown) => {
          const list = shown.filter((s) => all.some((l) => l.name === s.seriesName));
          if (!list.length) return "";
          const at = list[0].value[0];
          const rows = list.map((s) => {
            const line = all.find((l) => l.name === s.seriesName);
            const j = line ? line.x.indexOf(at) : -1;
            const spread = line?.low && j >= 0 ? ` (${bupo.show(line.low[j], 3)} … ${bupo.show(line.high[j], 3)})` : "";
            return [bupo.colour(line?.colour ?? all.indexOf(line)), s.seriesName, bupo.show(line && j >= 0 ? line.y[j] : s.value[1], digits) + spread];
          });
          const span = marks().find((m) => m.name && m.from <= at && at <= m.to);
          return bupo.tip(`${x} ${bupo.show(at)}${span ? `, ${span.name}` : ""}`, rows);
        } },
      };
    };
    const data = () => {
      const columns = [x];
      const all = lines();
      const xs = [...new Set(all.flatMap((l) => l.x))].sort((a, b) => a - b);
      for (const l of all) columns.push(l.name, ...(l.low ? [`${l.name} low`, `${l.name} high`] : []));
      const at = all.map((l) => new Map(l.x.map((v, j) => [v, j])));
      return { columns, rows: xs.map((v) => [v, ...all.flatMap((l, i) => {
        const j = at[i].get(v);
        return l.low ? [l.y[j], l.low[j], l.high[j]] : [l.y[j]];
      })]) };
    };
    const card = bupo.chart({ title, note, option, data, controls: extra, size, height });
    return card;
  };

  /** Lines of one colour are told apart by their dashes: `dashed` is a kind, or true for the first. */
  const dash = (line) => ["solid", [5, 4], [2, 3], [9, 3, 2, 3]][Number(line.dashed ?? 0) % 4];
  const positive = (v, log) => (v === undefined || v === null || (log && v <= 0) ? null : v);

  /** What makes an axis one of base 2, with a tick at each value. */
  const octaves = (values) => ({ type: "log", logBase: 2, minInterval: undefined,
    axisTick: { show: true, customValues: values, lineStyle: { color: bupo.css("--line") } },
    axisLabel: { color: bupo.css("--dim"), fontSize: 11, hideOverlap: true, customValues: values, formatter: tick } });

  /** Spans cut to where the lines are, in a plot so wide; a name goes where its span has no room for it. */
  const inside = (marks, lines, width) => {
    const xs = lines.flatMap((l) => l.x);
    const first = xs.reduce((a, b) => Math.min(a, b), Infinity), last = xs.reduce((a, b) => Math.max(a, b), -Infinity);
    return marks.map((m) => ({ ...m, from: Math.max(m.from, first), to: Math.min(m.to, last) })).filter((m) => m.from < m.to)
      .map((m) => ({ ...m, name: ((m.to - m.from) / (last - first)) * width < 6.5 * m.name.length ? "" : m.name }));
  };

  /** The band of a line, as one shape. */
  const band = (line, colour) => ({
    name: `${line.name} band`, type: "custom", silent: true, data: [[line.x[0], line.y[0]]], yAxisIndex: line.axis ?? 0, z: 1, clip: true,
    tooltip: { show: false }, itemStyle: { color: colour },
    renderItem: (_, api) => {
      const inside = bupo.range(line.x.length).filter((j) => Number.isFinite(line.low[j]) && Number.isFinite(line.high[j]));
      const up = inside.map((j) => api.coord([line.x[j], line.high[j]]));
      const down = inside.map((j) => api.coord([line.x[j], line.low[j]])).reverse();
      return { type: "polygon", shape: { points: [...up, ...down] }, style: { fill: colour, opacity: 0.16 } };
    },
  });

  /** A band's edges, unseen: they make the axis reach as far as the band does. */
  const edges = (line) => ["low", "high"].map((side) => ({ name: `${line.name} ${side}`, type: "line", data: line.x.map((at, j) => [at, line[side][j]]), yAxisIndex: line.axis ?? 0,
    showSymbol: false, silent: true, lineStyle: { opacity: 0 }, itemStyle: { opacity: 0 }, z: 0 }));

  const decorate = (series, marks, rules, zero) => {
    const first = series.find((s) => s.type === "line" && !s.silent);
    const dim = bupo.css("--dim");
    if (marks.length) {
      first.markArea = { silent: true, label: { color: dim, fontSize: 11, position: "insideTop" }, data: marks.map((m, i) => [
        { name: m.name, xAxis: m.from, itemStyle: { color: bupo.colour(m.colour ?? i), opacity: 0.07 } }, { xAxis: m.to }]) };
    }
    const data = rules.map((r) => ({ xAxis: r.at, lineStyle: { color: r.colour === undefined ? dim : bupo.colour(r.colour), type: "dashed", width: 1.4 },
      label: { formatter: r.name, color: dim, fontSize: 11, position: "end", distance: 3, align: r.name.length > 3 ? "right" : "center" } }));
    if (zero) data.push({ yAxis: 0, lineStyle: { color: dim, type: "solid", width: 1 }, label: { show: false } });
    if (data.length) first.markLine = { silent: true, symbol: "none", data };
  };

  /** Decimals in which a hundredth of a range shows. */
  const decimals = (low, high) => Math.min(20, Math.max(0, 2 - Math.floor(Math.log10(high - low))));

  /**
   * A heat map. `cells()`: {xs, ys, values: [y][x]}. `signed`: colours around zero. `about(x, y, value)`: rows of the tooltip.
   * `zoom`: columns that the window shows of a map with more; the card's `reveal(column)` moves it. `log`: colours by powers of ten, until a
   * button says otherwise.
   */
  bupo.heat = ({ title, note, x, y, unit, cells, signed = () => false, about, size, height, controls, span, left = 58, upward = true, zoom = false, label, formatX, log = false }) => {
    // Where the window is, kept when the picture is made anew.
    const view = { from: 0, to: zoom - 1 };
    const state = { log };
    const controlled = log ? [...(controls ?? []), bupo.toggle("log", true, (on) => { state.log = on; card.redraw(); })] : controls;
    // What is coloured: of a value, or of its power of ten.
    const coloured = (v) => (state.log ? (v > 0 ? Math.log10(v) : NaN) : v);
    const option = () => {
      const { xs, ys, values } = cells();
      const points = [];
      let low = Infinity, high = -Infinity;
      values.forEach((row, j) => row.forEach((v, i) => {
        const at = coloured(v);
        if (!Number.isFinite(at)) return;
        points.push([i, j, at, v]);
        low = Math.min(low, at);
        high = Math.max(high, at);
      }));
      if (!points.length) { low = 0; high = 1; }
      const both = signed();
      if (span) [low, high] = span(low, high);
      else if (both) { high = Math.max(Math.abs(low), Math.abs(high)) || 1; low = -high; }
      else if (low === high) high = low + 1;
      const windowed = zoom && xs.length > zoom;
      const places = decimals(low, high);
      const named = (v) => (state.log ? bupo.show(10 ** v, 2) : String(Number(v.toFixed(places))));
      const room = 11 + 28 + 6.5 * Math.max(...[low, high].map((v) => named(v).length));
      return {
        legend: { show: false },
        grid: { left, right: Math.max(84, room), top: 14, bottom: windowed ? 100 : 48 },
        xAxis: bupo.axis("category", x, { data: xs, nameGap: windowed ? 62 : 30, axisLabel: { color: bupo.css("--dim"), fontSize: 11, hideOverlap: true, rotate: formatX && xs.some((v) => formatX(v).length > 3) ? 60 : 0, formatter: formatX } }),
        yAxis: bupo.axis("category", y, { data: ys, inverse: !upward, nameGap: 36 }),
        dataZoom: windowed ? [{ type: "slider", xAxisIndex: 0, bottom: 4, height: 16, startValue: view.from, endValue: view.to, textStyle: { color: bupo.css("--dim") }, brushSelect: false }] : [],
        visualMap: { min: low, max: high, calculable: true, orient: "vertical", right: 0, top: "middle", itemHeight: 130, itemWidth: 11, precision: places, text: [now(unit), ""], textGap: 6,
          textStyle: { color: bupo.css("--dim"), fontSize: 11 }, formatter: named, dimension: 2, inRange: { color: both ? bupo.SIGNED : bupo.AMOUNT } },
        tooltip: { trigger: "item", formatter: (p) => about(p.value[0], p.value[1], p.value[3]) },
        series: [{ type: "heatmap", data: points, emphasis: { itemStyle: { borderColor: bupo.css("--ink"), borderWidth: 1.5 } }, progressive: 0 }],
      };
    };
    const data = () => {
      const { xs, ys, values } = cells();
      return { columns: [`${y} \\ ${x}`, ...xs], rows: values.map((row, j) => [ys[j], ...row]) };
    };
    const card = bupo.chart({ title, note, option, data, controls: controlled, size, height, heavy: true, label });
    card.ready.push((picture) => picture.on("datazoom", (event) => {
      const told = event.batch?.[0] ?? event;
      const at = (percent) => Math.round((percent / 100) * (cells().xs.length - 1));
      view.from = told.startValue ?? at(told.start);
      view.to = told.endValue ?? at(told.end);
    }));
    card.reveal = (column) => {
      const last = cells().xs.length - 1, wide = view.to - view.from;
      if (!zoom || last < zoom || (column >= view.from && column <= view.to)) return;
      view.from = Math.max(0, Math.min(last - wide, column - Math.floor(wide / 2)));
      view.to = view.from + wide;
      card.picture?.dispatchAction({ type: "dataZoom", dataZoomIndex: 0, startValue: view.from, endValue: view.to });
    };
    /** Back to the first columns, for a map that takes this one's place. */
    card.rewind = () => { view.from = 0; view.to = zoom - 1; };
    return card;
  };
})();
