// The look inside while training (probe.jsonl): the same tokens, analysed every few steps.
"use strict";

(() => {
  const { el, show, get } = bupo;
  const WHAT = [["entropy.resid_post", "entropy of the layer's policy", "nats", false], ["entropy.attn", "entropy of attention's policy", "nats", false], ["entropy.ffn", "entropy of the FFN's policy", "nats", false],
    ["entropy_change.layer", "entropy change of the layer", "nats", true], ["entropy_change.attn", "entropy change of attention", "nats", true], ["entropy_change.ffn", "entropy change of the FFN", "nats", true],
    ["kl_to_final", "KL to the final policy", "nats", false], ["residual_norm", "residual norm", "L2", false], ["cosine", "cosine with the optimized layer", "cos", false]];

  /** Where the guard spoke: upright lines. */
  bupo.guardRules = (run) => {
    const told = (run.probe?.rows ?? []).find((p) => p.guard?.stop) ?? run.metrics.rows.find((m) => m.phase_end === "guard");
    return told ? [{ at: told.step, name: "guard: stop", colour: 1 }] : [];
  };

  /** The last probe that has a layer says which was optimized. */
  const optimized = (rows) => rows.findLast((p) => p.layer !== null && p.layer !== undefined)?.layer ?? null;

  const mapOf = (run, several) => {
    const rows = () => run.probe.rows;
    const state = { what: WHAT[0] };
    const there = WHAT.filter(([path]) => rows().some((p) => get(p, path)));
    const card = bupo.heat({
      title: several ? `Layers over training: ${run.label}` : "Layers over training", x: "step", y: "layer", size: "wide", height: 380, unit: () => state.what[2], signed: () => state.what[3],
      controls: [bupo.choose("show", there.map((w) => [w[0], w[1]]), state.what[0], (v) => { state.what = WHAT.find((w) => w[0] === v); card.redraw(); })],
      note: "The same tokens at every probe, each layer read as a policy.",
      cells: () => {
        const n = Math.max(...rows().map((p) => get(p, state.what[0])?.length ?? 0), 0);
        return { xs: rows().map((p) => p.step), ys: bupo.range(n).map((i) => i + 1), values: bupo.range(n).map((l) => rows().map((p) => get(p, state.what[0])?.[l] ?? null)) };
      },
      about: (x, y, v) => { const p = rows()[x]; return bupo.tip(`step ${p.step}, layer ${y + 1}`, [[null, state.what[1], `${show(v)} ${state.what[2]}`], [null, "optimized", p.policy ?? "–"]]); },
    });
    return card;
  };

  /** Some later layers, evenly chosen, so that lines stay apart. */
  const some = (from, to, most = 6) => {
    const all = bupo.range(Math.max(0, to - from + 1)).map((i) => from + i);
    return all.length <= most ? all : bupo.range(most).map((i) => all[Math.round((i * (all.length - 1)) / (most - 1))]);
  };

  const curves = (runs) => {
    const several = runs.length > 1;
    const label = (run, name) => (several ? `${run.label}, ${name}` : name);
    const marks = () => (several ? [] : bupo.phases(runs[0]));
    const rules = () => (several ? [] : bupo.guardRules(runs[0]));
    const over = (run, value) => ({ x: run.probe.rows.map((p) => p.step), y: run.probe.rows.map((p) => value(p) ?? null) });
    const one = (name, value) => () => runs.map((run, i) => ({ name: label(run, name(run)), ...over(run, value(run)), colour: run.colour ?? i, symbols: true }));
    const cards = [];
    // Where the last layer is optimized no layer is later, and there is nothing to draw.
    const add = (needs, chart) => { if (runs.some((r) => r.probe.rows.some(needs)) && chart.lines().length) cards.push(bupo.lines({ x: "step", marks, rules, size: "", ...chart })); };
    const later = (value) => () => runs.flatMap((run) => {
      const l = optimized(run.probe.rows);
      const layers = run.probe.rows[0]?.residual_norm?.length ?? run.probe.rows[0]?.kl_to_final?.length ?? 0;
      return l === null ? [] : some(l + 1, layers, several ? 3 : 6).map((m, j) => ({ name: label(run, `layer ${m}`), ...over(run, (p) => value(p, m)), colour: several ? run.colour : j, dashed: several ? j : 0, symbols: !several }));
    });
    const last = () => runs.flatMap((run, i) => {
      const l = optimized(run.probe.rows);
      return l === null || !run.probe.rows.some((p) => p.kl_to_final) ? [] : [{ name: label(run, "final"), ...over(run, (p) => p.kl_to_final?.[l - 1]), colour: several ? run.colour ?? i : 6, dashed: several ? 3 : 1, symbols: !several }];
    });
    const from = later((p, m) => p.kl?.from?.[m - 1]);
    add((p) => p.cosine, { title: "Cosine of the optimized layer with later layers", y: "cos(Hˡ, Hᵐ)", note: "Rises while later layers take over its features.", lines: later((p, m) => p.cosine?.[m - 1]) });
    add((p) => p.layer, { title: "Entropy change of the optimized layer", y: "ΔH (nats)", zero: true, lines: one((r) => `layer ${optimized(r.probe.rows)}`, (r) => (p) => p.entropy_change?.layer?.[optimized(r.probe.rows) - 1]) });
    add((p) => p.kl, { title: "KL between the optimized layer and later layers", y: "KL (nats)", note: "D(later ‖ optimized).", lines: later((p, m) => p.kl?.to?.[m - 1]) });
    add((p) => p.kl, { title: "KL of the optimized layer from later layers", y: "KL (nats)", note: "D(optimized ‖ later); final: from the model's own policy.", log: true, lines: () => [...from(), ...last()] });
    add((p) => typeof p.perplexity === "number", { title: "Perplexity of held-out references", y: "perplexity", note: "Of the final policy; rises when the internal phase is too long.", lines: one(() => "perplexity", () => (p) => p.perplexity) });
    add((p) => typeof p.final_entropy === "number", { title: "Entropy of the final policy on the probe's tokens", y: "nats", lines: one(() => "final", () => (p) => p.final_entropy) });
    return cards;
  };

  const guard = (run) => {
    const rows = run.probe.rows.filter((p) => p.guard);
    if (!rows.length) return null;
    return bupo.tableCard(`Guard of ${run.label}`, "What the guard looked at; it ends the internal phase where it says stop.",
      ["step", "quantity", "value", "baseline", "threshold", "decision"], rows.map((p) => [p.step, p.guard.quantity, p.guard.value, p.guard.baseline, p.guard.threshold,
        el("span", { class: `badge ${p.guard.stop ? "stop" : ""}` }, p.guard.stop ? `stop${p.guard.reason ? `: ${p.guard.reason}` : ""}` : "go on")]),
      { columns: ["step", "quantity", "value", "baseline", "threshold", "stop", "reason"], rows: rows.map((p) => [p.step, p.guard.quantity, p.guard.value, p.guard.baseline, p.guard.threshold, p.guard.stop, p.guard.reason]) }, [0, 2, 3, 4]);
  };

  bupo.probeSections = (items) => {
    const all = items.filter((i) => i.kind === "run");
    if (!all.length) return { sections: [], update: () => {} };
    const grid = el("div", { class: "grid" });
    const note = el("div");
    let count = -1;
    const update = () => {
      const runs = all.filter((r) => r.probe?.rows.length);
      const now = runs.reduce((n, r) => n + r.probe.rows.length, 0);
      if (now === count) return;
      // The first probes decide what there is to show; later ones only add points.
      const again = count > 2 * runs.length;
      count = now;
      note.replaceChildren(...(runs.length ? [] : [bupo.empty("This run has no probes: a recipe's section ", bupo.code("[probe]"), " looks inside every few steps.")]));
      if (again) { [...grid.children].forEach((card) => card.redraw?.()); return; }
      bupo.forgetCharts(grid);
      if (runs.length) grid.replaceChildren(...[...runs.map((r) => mapOf(r, runs.length > 1)), ...curves(runs), ...runs.map(guard)].filter(Boolean));
    };
    update();
    return { update, sections: [bupo.section("Inside, while training", null, note, grid)] };
  };
})();
