// A model's inside: entropies, changes, cosines, norms, similarity, divergences and decision depth, layer by layer, of one
// analysis or of several over each other.
"use strict";

(() => {
  const { el, get, show } = bupo;
  const LENS = { raw: "raw", final_norm: "final norm" };

  /** Analyses with names that tell them apart. */
  bupo.nameAnalyses = (items) => {
    const used = new Map();
    const list = items.filter((item) => item.analysis);
    const short = bupo.shorten(list.map((item) => item.path ?? item.name));
    return list.map((item, i) => {
      const lens = item.analysis.lens && items.some((o) => o.analysis?.lens !== item.analysis.lens) ? ` (${LENS[item.analysis.lens] ?? item.analysis.lens})` : "";
      let name = short[i] + lens;
      const n = (used.get(name) ?? 0) + 1;
      used.set(name, n);
      if (n > 1) name += ` (${n})`;
      return { ...item, label: name, a: item.analysis, colour: i };
    });
  };

  const layers = (a) => a.per_layer.map((l) => l.layer);
  const column = (a, path) => a.per_layer.map((l) => get(l, path) ?? null);
  const several = (list) => list.length > 1;

  /** Spread over tokens as a band: percentiles, or one standard deviation around the mean. */
  const spread = { kind: "p10" };
  const bandOf = (a, path, mean) => {
    const at = column(a, `spread.${path}`);
    if (!at.some((s) => s)) return {};
    if (spread.kind === "std") return { low: at.map((s, i) => (s ? mean[i] - s.std : NaN)), high: at.map((s, i) => (s ? mean[i] + s.std : NaN)) };
    return { low: at.map((s) => s?.p10 ?? NaN), high: at.map((s) => s?.p90 ?? NaN) };
  };
  const lineOf = (item, path, more = {}) => {
    const y = column(item.a, path);
    return { name: item.label, x: layers(item.a), y, colour: item.colour, ...bandOf(item.a, path, y), ...more };
  };

  /** Stages shaded where all analyses have the same, or there is but one. */
  const stages = (list) => {
    const first = list[0].a.stages ?? [];
    if (list.some((i) => JSON.stringify(i.a.stages) !== JSON.stringify(first))) return [];
    const colours = { exploration: 2, integration: 6, convergence: 1 };
    return first.map((s) => ({ name: s.stage, from: (s.first_layer) - 0.5, to: (s.last_layer) + 0.5, colour: colours[s.stage] }));
  };
  /** What the shading says, in its colours: a narrow stage has no room for its name. */
  const stageKey = (list) => (stages(list).length ? () => ["Shaded: ", ...stages(list).map((s) => {
    const swatch = el("span", { class: "swatch" });
    swatch.style.background = `color-mix(in srgb, ${bupo.colour(s.colour)} 45%, transparent)`;
    return el("span", { class: "key" }, swatch, s.name, ` ${[...new Set([s.from + 0.5, s.to - 0.5])].join("–")}`);
  })] : null);
  const boundaries = (list) => list.filter((i) => i.a.boundary_layer).map((i) => ({
    at: i.a.boundary_layer, name: several(list) ? String(i.a.boundary_layer) : `boundary ${i.a.boundary_layer}`, colour: several(list) ? i.colour : undefined, low: true }));

  const PARTS = [["attn_in", 0.2], ["attn", 0.4], ["ffn_in", 0.6], ["ffn", 0.8], ["resid_post", 1]];
  const flow = (list) => {
    const states = (a) => [{ at: 0, name: "resid_pre, layer 1", y: get(a.per_layer[0], "entropy.resid_pre"), s: get(a.per_layer[0], "spread.entropy.resid_pre"), part: "resid_pre" },
      ...a.per_layer.flatMap((l) => PARTS.map(([part, shift]) => ({ at: l.layer - 1 + shift, name: `${part}, layer ${l.layer}`, part, y: l.entropy[part], s: get(l, `spread.entropy.${part}`) })))];
    const ends = (s) => (spread.kind === "std" ? [s.y - s.s.std, s.y + s.s.std] : [s.s.p10, s.s.p90]);
    const option = (width) => {
      const top = 16 + bupo.legendHeight(list.map((i) => i.label), width);
      const series = [];
      for (const item of list) {
        const all = states(item.a);
        const colour = bupo.colour(item.colour);
        if (state.bands && all.every((s) => s.s)) {
          series.push({ type: "custom", name: `${item.label} band`, silent: true, data: [[0, all[0].y]], clip: true, z: 1, renderItem: (_, api) => ({ type: "polygon",
            shape: { points: [...all.map((s) => api.coord([s.at, ends(s)[1]])), ...all.map((s) => api.coord([s.at, ends(s)[0]])).reverse()] }, style: { fill: colour, opacity: 0.14 } }) });
        }
        const signs = { resid_pre: "circle", resid_post: "circle", attn_in: "triangle", attn: "triangle", ffn_in: "rect", ffn: "rect" };
        // Hollow by the card's own colour: ECharts' empty symbols are white in the dark too.
        const hollow = { color: bupo.css("--card"), borderColor: colour, borderWidth: 1.6 };
        series.push({ type: "line", name: item.label, z: 3, symbol: "circle", symbolSize: 6, data: all.map((s) => ({ value: [s.at, s.y], symbol: signs[s.part], itemStyle: s.part.endsWith("_in") ? hollow : undefined, state: s })),
          lineStyle: { color: colour, width: 1.6 }, itemStyle: { color: colour }, emphasis: { disabled: true } });
        series.push({ type: "line", name: item.label, xAxisIndex: 1, yAxisIndex: 1, symbol: "circle", symbolSize: 4, data: item.a.per_layer.map((l) => [l.layer, l.residual_norm]),
          lineStyle: { color: colour, width: 1.6, type: [5, 4] }, itemStyle: { color: colour }, emphasis: { disabled: true } });
      }
      const most = Math.max(...list.map((i) => i.a.layers));
      const axis = { min: 0, max: most, minInterval: 1, scale: false };
      return {
        grid: [{ left: 60, right: 18, top, bottom: 170 }, { left: 60, right: 18, height: 76, bottom: 44 }],
        xAxis: [bupo.xAxis("", { ...axis, gridIndex: 0, splitLine: { show: true, lineStyle: { color: bupo.css("--line"), opacity: 0.5 } } }), bupo.xAxis("layer", { ...axis, gridIndex: 1 })],
        yAxis: [bupo.axis("value", "entropy (nats)", { gridIndex: 0, scale: false }), bupo.axis("value", "‖H‖ (L2)", { gridIndex: 1, scale: false, splitNumber: 2 })],
        legend: { show: several(list), data: list.map((i) => i.label) }, series,
        tooltip: { trigger: "item", formatter: (p) => {
          const s = p.data.state;
          if (!s) return bupo.tip(`${p.seriesName}, layer ${p.value[0]}`, [[null, "residual norm", show(p.value[1])]]);
          return bupo.tip(s.name, [[bupo.colour(list.find((i) => i.label === p.seriesName).colour), "entropy", `${show(s.y)} nats`], ...(s.s ? [[null, "p10 … p90", `${show(s.s.p10)} … ${show(s.s.p90)}`], [null, "std", show(s.s.std)]] : [])]);
        } },
      };
    };
    const data = () => ({ columns: ["analysis", "layer", "state", "entropy", "std", "p10", "p90", "residual_norm"], rows: list.flatMap((i) => [
      ...states(i.a).map((s) => [i.label, s.name.split("layer ")[1], s.part, s.y, s.s?.std, s.s?.p10, s.s?.p90, s.part === "resid_post" ? i.a.per_layer[Math.round(s.at) - 1].residual_norm : ""])]) });
    const state = { bands: list.length < 3 };
    const controls = list.some((i) => i.a.per_layer[0].spread) ? [bupo.toggle("spread", state.bands, (on) => { state.bands = on; card.redraw(); })] : [];
    const card = bupo.chart({ title: "Entropy flow", size: "wide", height: 460, option, data, controls,
      note: "Every state of the residual stream in order, read as a policy: ● layer output, △ attention's input, ▲ attention, □ FFN's input, ■ FFN. Below, the residual norm (dashed): a longer stream reads as a colder distribution." });
    return card;
  };

  const changes = (list) => [["attn", "attention"], ["ffn", "FFN"], ["layer", "layer"]].map(([key, name]) => bupo.lines({
    title: `Entropy change: ${name}`, x: "layer", y: "ΔH (nats)", size: "third", zero: true, note: stageKey(list), lines: () => list.map((i) => lineOf(i, `entropy_change.${key}`)),
    marks: () => (key === "ffn" ? stages(list) : stages(list).map((s) => ({ ...s, name: "" }))), rules: () => boundaries(list) }));

  const cosines = (list) => [["attn", "Attention's write"], ["ffn", "FFN's write"]].map(([key, name]) => bupo.lines({
    title: `${name}: cosine with the stream`, x: "layer", y: "cosine", zero: true, lines: () => list.map((i) => lineOf(i, `residual_cosine.${key}`)),
    note: "Near 0: new, orthogonal features; below: suppression; above: amplification." }));

  const layerEntropy = (list) => bupo.lines({
    title: "Entropy of each layer's policy, and the residual norm", x: "layer", y: "entropy (nats)", right: "‖H‖ (L2)", size: "wide", rules: () => boundaries(list),
    lines: () => list.flatMap((i) => [lineOf(i, "entropy.resid_post", { name: several(list) ? i.label : "entropy", symbols: true }),
      { name: several(list) ? `${i.label}, norm` : "residual norm", x: layers(i.a), y: column(i.a, "residual_norm"), axis: 1, dashed: true, colour: i.colour }]) });

  const similarity = (list) => list.filter((i) => i.a.similarity?.length).map((item) => {
    const l = layers(item.a);
    const low = Math.min(...item.a.similarity.flat());
    return bupo.heat({ title: several(list) ? `Similarity of layers: ${item.label}` : "Similarity of layers", x: "layer", y: "layer", unit: "cos", height: 400, size: "",
      note: "Mean over tokens of cos(Hⁱ, Hʲ), raw states.", cells: () => ({ xs: l, ys: l, values: item.a.similarity }), signed: () => low < -0.05,
      about: (x, y, v) => bupo.tip(`layers ${l[x]} and ${l[y]}`, [[null, "cosine", show(v)]]) });
  });

  const divergences = (list) => {
    const has = list.filter((i) => i.a.per_layer.some((l) => l.final));
    if (!has.length) return [];
    const one = (key, title, note, y, more = {}) => bupo.lines({ title, note, x: "layer", y, lines: () => has.map((i) => ({ name: i.label, x: layers(i.a), y: column(i.a, key), colour: i.colour, symbols: true })), ...more });
    const cards = [
      one("final.kl_to", "Divergence from the final policy", "D(layer ‖ final)", "KL (nats)", { log: true }),
      one("final.kl_from", "Divergence of the final policy", "D(final ‖ layer)", "KL (nats)", { log: true }),
      one("final.top1_agreement", "Agreement with the final policy", "Share of tokens with the same likeliest token.", "share", { min: 0, max: 1 }),
      bupo.lines({ title: "Decision depth", x: "layer", y: "share of tokens", min: 0, max: 1, note: "Share of tokens decided at this layer or below: from there on every layer's likeliest token is the final policy's. Dashed: at just this layer.",
        lines: () => has.flatMap((i) => {
          let sum = 0;
          const at = column(i.a, "final.decided");
          return [{ name: i.label, x: layers(i.a), y: at.map((v) => (sum += v ?? 0)), colour: i.colour, symbols: true }, { name: `${i.label}, here`, x: layers(i.a), y: at, colour: i.colour, dashed: true }];
        }) }),
      one("final.log_prob", "Log-prob of the token that came", "Mean over response tokens, under each layer's policy.", "log-prob (nats)"),
    ];
    const chosen = list.filter((i) => i.a.per_layer.some((l) => l.chosen));
    if (chosen.length) {
      cards.push(bupo.lines({ title: "Divergence from the chosen layer's policy", x: "layer", y: "KL (nats)", note: chosen.map((i) => `${i.label}: layer ${i.a.chosen_layer}`).join("; ") + ". Solid: D(layer ‖ chosen), dashed: D(chosen ‖ layer).",
        lines: () => chosen.flatMap((i) => [{ name: i.label, x: layers(i.a), y: column(i.a, "chosen.kl_to"), colour: i.colour, symbols: true }, { name: `${i.label}, reverse`, x: layers(i.a), y: column(i.a, "chosen.kl_from"), colour: i.colour, dashed: true }]) }));
    }
    return cards;
  };

  const facts = (list) => bupo.tableCard("Analyses", null,
    ["", "model", "lens", "layers", "samples", "tokens", "final entropy (nats)", "boundary layer", "mean decision layer", "never decided", "stages"],
    list.map((i) => {
      const s = i.a.final_spread;
      return [el("b", {}, i.label), el("span", { title: i.a.model }, i.a.model ? String(i.a.model).split("/").slice(-2).join("/") : "–"), LENS[i.a.lens] ?? i.a.lens ?? "raw", i.a.layers, i.a.samples, i.a.tokens,
        el("span", {}, show(i.a.final_entropy), s ? el("small", {}, ` p10 ${show(s.p10, 3)}, p90 ${show(s.p90, 3)}`) : null),
        i.a.boundary_layer ?? "none", i.a.decision?.mean_layer ?? "–", i.a.decision ? bupo.percent(i.a.decision.never) : "–",
        el("span", { class: "nowrap" }, (i.a.stages ?? []).map((st) => `${st.stage} ${st.first_layer}–${st.last_layer}`).join(", "))];
    }),
    { columns: ["name", "model", "lens", "layers", "samples", "tokens", "final_entropy", "boundary_layer", "decision_mean_layer", "decision_never"],
      rows: list.map((i) => [i.label, i.a.model, i.a.lens ?? "raw", i.a.layers, i.a.samples, i.a.tokens, i.a.final_entropy, i.a.boundary_layer, i.a.decision?.mean_layer, i.a.decision?.never]) },
    [3, 4, 5, 6, 7, 8, 9]);

  /** Sections of analyses; `source` fetches token maps where they are not in the page. */
  bupo.analysisSections = (items, source) => {
    const list = bupo.nameAnalyses(items);
    const sections = [];
    if (list.length) {
      const cards = el("div", { class: "grid" });
      const fill = () => {
        bupo.forgetCharts(cards);
        cards.replaceChildren(flow(list), layerEntropy(list), ...changes(list), ...cosines(list));
      };
      const old = list.some((i) => !i.a.per_layer[0].spread);
      const pick = old && list.every((i) => !i.a.per_layer[0].spread) ? null
        : bupo.choose("bands show", [["p10", "10th to 90th percentile of tokens"], ["std", "mean ± standard deviation"]], spread.kind, (v) => { spread.kind = v; fill(); });
      fill();
      sections.push(bupo.section("Inside the model", "Means over response tokens; a state times the unembedding is a policy, and its entropy says how far it is decided. Layers count from 1.",
        el("div", { class: "tools" }, pick), el("div", { class: "grid" }, facts(list)), el("p"), cards));
      const more = [...divergences(list), ...similarity(list)];
      sections.push(bupo.section("Where the answer forms", "How each layer's policy agrees with the model's own.",
        more.length ? el("div", { class: "grid" }, more)
          : bupo.empty("This analysis has no divergences, similarities or decision depth: run ", bupo.code("bupo analyze"), " of this version again.")));
    }
    const maps = bupo.tokenMaps(items, source);
    if (maps) sections.push(bupo.section("Token by token", "What every layer would have said at each token of a response. Hover for the likeliest tokens; click or press Enter to pin; arrow keys move.", maps));
    return sections;
  };
})();
