// Evaluations, comparisons of two models, and differences of two checkpoints.
"use strict";

(() => {
  const { el, show, percent } = bupo;
  const interval = (e) => (e?.interval ? `${percent(e.interval[0])} … ${percent(e.interval[1])}` : e?.standard_error ? `± ${percent(e.standard_error)}` : null);
  const estimate = (e) => (e ? el("span", {}, percent(e.mean), interval(e) ? el("small", {}, ` ${interval(e)}`) : null) : "–");

  bupo.evaluationSections = (items) => {
    const list = items.flatMap((i) => (i.kind === "evaluation" ? [i] : i.kind === "run" ? (i.evaluations ?? []) : [])).filter((i) => i.evaluation);
    const short = bupo.shorten(list.map((i) => i.path ?? i.name));
    list.forEach((item, i) => { item.name = short[i]; });
    if (!list.length) return [];
    const ks = [...new Set(list.flatMap((i) => i.evaluation.pass_at_k.map((p) => p.k)))].sort((a, b) => a - b);
    const few = ks.length > 5 ? [ks[0], ks[Math.floor(ks.length / 2)], ks.at(-1)] : ks;
    const pass = (e, k) => e.pass_at_k.find((p) => p.k === k);
    const table = bupo.tableCard("Evaluations", "Small: 95 % bootstrap interval over problems.", ["", "model", "set", "problems", "n", "Avg@n", ...few.map((k) => `Pass@${k}`), "truncated", "no answer", "reward"],
      list.map(({ name, evaluation: e }) => [el("b", {}, name), el("span", { title: e.model }, String(e.model).split("/").slice(-2).join("/")), e.name, e.problems, e.responses_per_problem, estimate(e.avg_at_n), ...few.map((k) => estimate(pass(e, k))), percent(e.truncated), percent(e.shares?.no_answer), e.reward ? show(e.reward.mean) : "–"]),
      { columns: ["name", "set", "model", "problems", "n", "avg_at_n", "standard_error", "low", "high", ...ks.flatMap((k) => [`pass_at_${k}`, `pass_at_${k}_low`, `pass_at_${k}_high`]), "truncated"],
        rows: list.map(({ name, evaluation: e }) => [name, e.name, e.model, e.problems, e.responses_per_problem, e.avg_at_n.mean, e.avg_at_n.standard_error, ...(e.avg_at_n.interval ?? ["", ""]), ...ks.flatMap((k) => { const p = pass(e, k); return [p?.mean, ...(p?.interval ?? ["", ""])]; }), e.truncated]) },
      [3, 4, 5, ...few.map((_, i) => 6 + i), 6 + few.length, 7 + few.length, 8 + few.length]);
    const curve = ks.length > 1 ? bupo.lines({ title: "Pass@K", x: "K", y: "share of problems", size: "wide", height: 320, doubling: () => ks, note: "Chance that K responses to a problem hold a correct one; bands: 95 % intervals.",
      lines: () => list.map(({ name, evaluation: e }, i) => ({ name: list.every((o) => o.evaluation.name === e.name) || name.endsWith(e.name) ? name : `${name}, ${e.name}`, x: e.pass_at_k.map((p) => p.k), y: e.pass_at_k.map((p) => p.mean), colour: i, symbols: true,
        ...(e.pass_at_k.every((p) => p.interval) ? { low: e.pass_at_k.map((p) => p.interval[0]), high: e.pass_at_k.map((p) => p.interval[1]) } : {}) })) }) : null;
    return [bupo.section("Evaluations", null, el("div", { class: "grid" }, table, curve))];
  };

  bupo.comparisonSections = (items) => {
    const list = items.filter((i) => i.kind === "comparison").flatMap((i) => [i.comparison].flat().filter(Boolean).map((c) => ({ ...c, item: i.name })));
    if (!list.length) return [];
    const side = (s) => `${s.evaluations.join(", ")}: ${percent(s.avg_at_n.mean)}${s.avg_at_n.std === null ? "" : ` ± ${percent(s.avg_at_n.std)} over ${s.avg_at_n.runs} seeds`}`;
    const cards = list.map((c) => bupo.tableCard(`${c.name}: second minus first`, `First: ${side(c.first)}. Second: ${side(c.second)}. ${c.problems} problems${c.left_out ? `, ${c.left_out} left out` : ""}.`,
      ["", "first", "second", "difference", "95 % interval", "p", "better", "worse", "same"],
      c.scores.map((s) => [el("b", {}, s.score), percent(s.first), percent(s.second), `${s.mean >= 0 ? "+" : ""}${percent(s.mean)}`, interval(s) ?? "–", show(s.p_value, 2), s.better, s.worse, s.same]),
      { columns: ["set", "score", "first", "second", "difference", "low", "high", "p_value", "better", "worse", "same"], rows: c.scores.map((s) => [c.name, s.score, s.first, s.second, s.mean, ...(s.interval ?? ["", ""]), s.p_value, s.better, s.worse, s.same]) },
      [1, 2, 3, 4, 5, 6, 7, 8]));
    return [bupo.section("Comparisons", "The same problems, paired; p by random sign flips.", el("div", { class: "grid" }, cards))];
  };

  bupo.diffSections = (items) => {
    const list = items.filter((i) => i.kind === "diff" && i.diff);
    if (!list.length) return [];
    const WHAT = { relative: ["‖b − a‖ / ‖a‖", "relative change"], rms: ["RMS of b − a", "RMS"], cosine: ["cos(a, b)", "cosine"], changed: ["share of elements that differ", "share"] };
    return list.map((item) => {
      const d = item.diff;
      const state = { what: "relative" };
      const layers = d.per_layer.map((l) => l.layer);
      const parts = [["attn", "attention"], ["ffn", "FFN"], ["all", "whole layer"]];
      const tensors = [...new Set(d.per_layer.flatMap((l) => Object.keys(l.tensors ?? {})))];
      const redraw = () => cards.forEach((c) => c.redraw());
      const pick = bupo.choose("show", Object.entries(WHAT).map(([k, [name]]) => [k, name]), state.what, (v) => { state.what = v; redraw(); });
      const cards = [
        bupo.lines({ title: list.length > 1 ? `Change of each layer: ${item.name}` : "Change of each layer", x: "layer", y: () => WHAT[state.what][1], controls: [pick], size: "wide",
          lines: () => parts.map(([key, name], i) => ({ name, x: layers, y: d.per_layer.map((l) => l[key]?.[state.what] ?? null), colour: i, symbols: true, dashed: key === "all" })) }),
        ...(tensors.length ? [bupo.heat({ title: list.length > 1 ? `Change of each tensor: ${item.name}` : "Change of each tensor", x: "layer", y: "", size: "wide", upward: false, left: 176, height: 100 + 26 * tensors.length, unit: () => "",
          cells: () => ({ xs: layers, ys: tensors, values: tensors.map((t) => d.per_layer.map((l) => l.tensors?.[t]?.[state.what] ?? null)) }),
          about: (x, y, v) => bupo.tip(`${tensors[y]}, layer ${layers[x]}`, [[null, WHAT[state.what][0], show(v)], [null, "parameters", show(d.per_layer[x].tensors[tensors[y]]?.parameters)]]) })] : []),
      ];
      const outside = [["embedding", d.embedding], ["unembedding", d.unembedding], ["final norm", d.final_norm]].filter(([, c]) => c);
      const columns = ["", "‖b − a‖ / ‖a‖", "RMS", "cosine", "changed", "parameters"];
      const table = bupo.tableCard(list.length > 1 ? `Outside the layers: ${item.name}` : "Outside the layers", d.unembedding ? null : "The unembedding is tied to the embedding.", columns,
        outside.map(([name, c]) => [el("b", {}, name), c.relative, c.rms, c.cosine, percent(c.changed), c.parameters]), { columns: ["tensor", "relative", "rms", "cosine", "changed", "parameters"], rows: outside.map(([name, c]) => [name, c.relative, c.rms, c.cosine, c.changed, c.parameters]) }, [1, 2, 3, 4, 5]);
      return bupo.section(list.length > 1 ? `Two checkpoints: ${item.name}` : "Two checkpoints", `From ${d.a} to ${d.b}.`, el("div", { class: "grid" }, cards, table));
    });
  };
})();
