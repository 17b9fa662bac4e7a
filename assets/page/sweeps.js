// Sweeps: variants of a recipe over seeds, as the table that the sweep ends with, and their runs' curves, a line a variant.
"use strict";

(() => {
  const { el, percent } = bupo;
  const spread = (s) => (s.std === null || s.std === undefined ? percent(s.mean) : `${(100 * s.mean).toFixed(1)} ± ${percent(s.std)}`);
  const signed = (x) => `${x >= 0 ? "+" : ""}${percent(x)}`;
  const finished = (v) => v.runs.filter((r) => r.status === "finished").length;

  /** The sweep's runs that are on the page. They know their variant from then on, so that every chart has one colour for it. */
  const runsOf = (item, items) => {
    const root = String(item.path ?? "").replace(/\/+$/, "");
    const by = new Map(items.filter((i) => i.kind === "run").map((run) => [run.path, run]));
    return item.sweep.variants.map((v, colour) => v.runs.map((r, nth) => {
      const run = by.get(root ? `${root}/${r.dir}` : r.dir);
      if (run) Object.assign(run, { variant: colour, nth });
      return run;
    }).filter(Boolean));
  };

  const tables = (item) => {
    const { sweep: s } = item;
    const first = s.variants[0]?.name;
    return s.sets.map((set) => {
      const rows = s.variants.map((v) => ({ v, score: v.scores.find((x) => x.set === set) }));
      const n = rows.find((r) => r.score)?.score.n;
      const ks = rows.find((r) => r.score)?.score.pass_at_k.map((p) => p.k) ?? [];
      const last = ks.at(-1);
      const pass = (score) => score?.pass_at_k.find((p) => p.k === last);
      const after = (score) => (score.best ? el("b", { "data-best": "" }, spread(score.after)) : spread(score.after));
      const interval = (d) => (d.interval ? ` ${percent(d.interval[0])} … ${percent(d.interval[1])}` : "");
      return bupo.tableCard(`${s.sweep.name}: ${set}`, `Avg@${n}, mean ± standard deviation over seeds; the best is bold. Differences to ${first} are paired by problem and seed; small: 95 % interval over problems.`,
        ["", "runs", "before", "after", `minus ${first}`, "p", ...(ks.length ? [`Pass@${last}`] : []), "changes"],
        rows.map(({ v, score }) => [el("b", {}, v.name), `${finished(v)}/${v.runs.length}`, score?.before ? spread(score.before) : "–", score ? after(score) : "–",
          score?.difference ? el("span", {}, signed(score.difference.mean), el("small", {}, interval(score.difference))) : "–", score?.difference ? bupo.show(score.difference.p_value, 2) : "–",
          ...(ks.length ? [pass(score) ? spread(pass(score)) : "–"] : []), v.set.length ? bupo.code(v.set.join(" ")) : "–"]),
        { columns: ["variant", "set", "n", "runs", "before_mean", "before_std", "after_mean", "after_std", "difference", "difference_low", "difference_high", "p_value", "best"],
          rows: rows.filter((r) => r.score).map(({ v, score: x }) => [v.name, set, x.n, x.after.runs, x.before?.mean, x.before?.std, x.after.mean, x.after.std, x.difference?.mean, ...(x.difference?.interval ?? ["", ""]), x.difference?.p_value, x.best]) },
        [1, 2, 3, 4, 5, ...(ks.length ? [6] : [])]);
    });
  };

  /** Runs of one variant as one line: the mean over those that have a step, from the smallest to the largest. */
  const together = (name, runs, key, colour) => {
    const at = new Map();
    for (const run of runs) for (const row of run.flat) if (Number.isFinite(row[key])) at.set(row.step, [...(at.get(row.step) ?? []), row[key]]);
    const x = [...at.keys()].sort((a, b) => a - b);
    const values = x.map((step) => at.get(step));
    const line = { name, colour, x, y: values.map((v) => v.reduce((a, b) => a + b, 0) / v.length) };
    return runs.length > 1 ? { ...line, low: values.map((v) => Math.min(...v)), high: values.map((v) => Math.max(...v)) } : line;
  };

  const curves = (item, groups) => {
    const rows = groups.flat().flatMap((run) => run.flat);
    const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))].filter((k) => k !== "step");
    if (!keys.length) return null;
    const likely = ["reward_mean", "entropy_final", "response_length.mean", "entropy_policy", "grad_norm"];
    keys.sort((a, b) => (likely.indexOf(a) + 1 || 99) - (likely.indexOf(b) + 1 || 99) || a.localeCompare(b));
    const state = { key: keys[0] };
    const card = bupo.lines({ title: `${item.sweep.sweep.name}: over the steps`, x: "step", y: () => state.key.replaceAll("_", " "), size: "wide", height: 340,
      note: "A line a variant: the mean over its seeds. Spread: from the smallest to the largest seed.",
      controls: [bupo.choose("", keys.map((k) => [k, k.replaceAll("_", " ")]), state.key, (k) => { state.key = k; card.redraw(); })],
      lines: () => groups.map((runs, i) => together(item.sweep.variants[i].name, runs, state.key, i)).filter((l) => l.x.length) });
    return card;
  };

  bupo.sweepSections = (items) => items.filter((i) => i.kind === "sweep" && i.sweep).map((item) => {
    const groups = runsOf(item, items);
    bupo.nameRuns(items);
    const failed = item.sweep.variants.flatMap((v) => v.runs.filter((r) => r.error).map((r) => bupo.empty(`${v.name}, seed ${r.seed}, failed: ${r.error}`)));
    const all = item.sweep.variants.flatMap((v) => v.runs);
    const done = all.filter((r) => r.status === "finished").length;
    const about = `${item.sweep.sweep.description ? `${item.sweep.sweep.description}. ` : ""}${done} of ${all.length} runs are finished; base recipe ${item.sweep.sweep.base}.`;
    return bupo.section(`Sweep ${item.sweep.sweep.name}`, about, failed, el("div", { class: "grid" }, tables(item), groups.some((g) => g.length) ? curves(item, groups) : null));
  });
})();
