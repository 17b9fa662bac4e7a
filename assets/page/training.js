// A run's curves over its steps: what is watched while training, of one run or several, and every other number there is.
"use strict";

(() => {
  const { el, show } = bupo;

  /** Charts in the order that a person asks; each key belongs to the first that names it. [title, y, keys, options]. */
  const CHARTS = [
    ["Reward", "reward", ["reward_mean"]],
    ["Entropy", "nats", ["entropy_final", "entropy_policy"], { note: "Of the final policy while sampling, and of the policy that the step optimized (dashed)." }],
    ["Response length", "tokens", ["response_length.mean", "response_length.min", "response_length.max"]],
    ["Verdicts", "responses", ["verdicts.correct", "verdicts.wrong", "verdicts.no_answer", "verdicts.unparsable", "verdicts.timeout", "verdicts.failed"]],
    ["Reward within groups", "reward", ["reward_std"]],
    ["Groups: equal, all and no rewards above 0", "share", ["frac_reward_zero_std", "frac_all_rewarded", "frac_none_rewarded"]],
    ["Parts of the reward", "reward", [/^reward_parts\./]],
    ["Clipped tokens", "share", ["clip_fraction_low", "clip_fraction_high", "dual_clip_fraction"]],
    ["Gradient norm", "L2", ["grad_norm"]],
    ["Importance ratio", "ratio", ["ratio_mean", "ratio_max"]],
    ["KL between updates", "nats", ["approx_kl_k1", "approx_kl_k3"]],
    ["KL to the start", "nats", ["reference_kl"]],
    ["Loss", "", ["loss"]],
    ["Learning rate", "", ["lr"]],
    ["Truncated responses", "share", ["truncated"]],
    ["Sampling against training", "nats", ["rollout_log_prob_difference.mean", "rollout_log_prob_difference.max"]],
    ["Seconds of a step", "s", ["seconds.rollout", "seconds.old_log_probs", "seconds.update", "seconds.total"]],
    ["Speed", "tokens/s", ["rollout_tokens_per_second", "update_tokens_per_second"]],
  ];
  /** Constant all along, or counted elsewhere. */
  const QUIET = new Set(["step", "phase_number"]);

  /** Every number of a row, by its path. */
  bupo.flatten = (row, prefix = "", out = {}) => {
    for (const [key, value] of Object.entries(row)) {
      if (typeof value === "number") out[prefix + key] = value;
      else if (value && typeof value === "object" && !Array.isArray(value)) bupo.flatten(value, `${prefix}${key}.`, out);
    }
    return out;
  };

  /** Phases as shaded spans: from half a step before the first to half a step after the last. */
  bupo.phases = (run) => {
    const spans = [];
    const colours = { internal: 3, joint: 4 };
    for (const row of run.metrics.rows) {
      const last = spans.at(-1);
      if (last && last.name === row.policy && last.number === row.phase_number) last.to = row.step + 0.5;
      else if (row.policy) spans.push({ name: row.policy, number: row.phase_number, from: row.step - 0.5, to: row.step + 0.5, colour: colours[row.phase] ?? 6 });
    }
    return spans.length > 1 || spans[0]?.name !== "final" ? spans : [];
  };

  const marksOf = (runs) => () => (runs.length === 1 ? bupo.phases(runs[0]) : []);
  const rulesOf = (runs) => () => (runs.length === 1 ? bupo.guardRules(runs[0]) : runs.flatMap((r, i) => {
    const spans = bupo.phases(r);
    return spans.length > 1 ? [{ at: spans[0].to, name: "", colour: r.colour ?? i }] : [];
  }));

  /** A key without what all of a chart's keys begin with. */
  const said = (key, keys) => {
    const parts = key.split(/[._]/);
    if (keys.length < 2) return key.replaceAll("_", " ");
    let n = 0;
    while (n < parts.length - 1 && keys.every((k) => k.split(/[._]/)[n] === parts[n])) n += 1;
    return parts.slice(n).join(" ");
  };
  // What is measured only every few steps is a line of its own steps, each marked: between gaps no line would show.
  const linesOf = (runs, keys) => () => runs.flatMap((run) => keys.filter((k) => run.flat.some((row) => k in row)).map((key, j) => {
    const rows = run.flat.filter((row) => key in row);
    return { name: runs.length > 1 ? (keys.length > 1 ? `${run.label}, ${said(key, keys)}` : run.label) : said(key, keys), x: rows.map((r) => r.step), y: rows.map((r) => r[key]),
      colour: runs.length > 1 ? run.colour : j, dashed: runs.length > 1 ? j + (run.nth ?? 0) : key === "entropy_policy", symbols: 2 * rows.length <= run.flat.length };
  }));

  /** Names for several runs, and their rows flattened. */
  bupo.nameRuns = (items) => {
    const runs = items.filter((i) => i.kind === "run");
    const short = bupo.shorten(runs.map((run) => run.path ?? run.name));
    runs.forEach((run, i) => {
      run.label = short[i];
      run.colour = run.variant ?? i;
      run.flat = run.metrics.rows.map((row) => bupo.flatten(row));
    });
    return runs;
  };

  const tiles = (run) => {
    const rows = run.metrics.rows;
    const last = rows.at(-1);
    const first = rows[0];
    const m = run.manifest ?? {};
    const state = m.finished ? "finished" : run.running ? "running" : "not finished";
    return bupo.tiles([
      ["state", el("span", { class: `badge ${state === "running" ? "running" : ""}`, "data-state": "" }, state)],
      ["step", el("span", { "data-step": "" }, last ? String(last.step) : "–")],
      ["reward", last ? show(last.reward_mean, 3) : null, first && last !== first ? `from ${show(first.reward_mean, 3)}` : null],
      ["final entropy", last ? show(last.entropy_final, 3) : null, "nats"],
      ["response length", last?.response_length ? show(last.response_length.mean, 3) : null, "tokens"],
      ["policy", last?.policy ?? null], ["seed", m.seed ?? null], ["started", m.started?.replace("T", " ").replace("Z", "") ?? null],
    ]);
  };

  /** Sections of runs. They keep up: `update()` of what is handed back takes in rows that came. */
  bupo.trainingSections = (items) => {
    const runs = bupo.nameRuns(items);
    if (!runs.length) return { sections: [], update: () => {} };
    const head = el("div");
    const charts = el("div", { class: "grid" });
    const more = el("div", { class: "grid" });
    const moreBox = el("details", {}, el("summary", {}, "Everything else that was measured"), more);
    let shown = "";
    // The states of many runs would push their curves off the page.
    const folded = (parts) => (runs.length > 4 ? [el("details", {}, el("summary", {}, `How ${runs.length} runs stand`), parts)] : parts);
    const heads = () => head.replaceChildren(...folded(runs.flatMap((run) => [runs.length > 1 ? el("h3", {}, run.label) : null, tiles(run),
      run.metrics.bad + (run.probe?.bad ?? 0) ? bupo.empty(`${run.metrics.bad + (run.probe?.bad ?? 0)} lines of this run's files cannot be read and are left out.`) : null,
      run.metrics.rows.length < run.metrics.total - run.metrics.bad ? el("p", { class: "note" }, `${run.metrics.rows.length} of ${run.metrics.total} steps are shown, evenly spread.`) : null,
      run.metrics.rows.length ? null : bupo.empty("No step is finished yet.")].filter(Boolean))));
    const layout = () => {
      const keys = [...new Set(runs.flatMap((r) => r.flat.flatMap((row) => Object.keys(row))))];
      if (keys.join() === shown) return false;
      shown = keys.join();
      const rest = new Set(keys.filter((k) => !QUIET.has(k)));
      const make = (title, y, wanted, options = {}) => {
        const own = [...rest].filter((k) => wanted.some((w) => (w instanceof RegExp ? w.test(k) : w === k)));
        own.forEach((k) => rest.delete(k));
        own.sort((a, b) => wanted.indexOf(a) - wanted.indexOf(b));
        if (!own.length) return null;
        // Many numbers are shown one at a time, and those of which nobody has said that they have one scale.
        let chosen = own.length > 8 || (own.length > 1 && !y) || (runs.length > 1 && own.length > 2) ? [own[0]] : own;
        const controls = chosen === own ? [] : [bupo.choose("", own.map((k) => [k, said(k, own)]), own[0], (k) => { chosen = [k]; card.redraw(); })];
        const card = bupo.lines({ title, x: "step", y, size: "third", lines: () => linesOf(runs, chosen)(), marks: marksOf(runs), rules: rulesOf(runs), controls, ...options });
        return card;
      };
      bupo.forgetCharts(charts);
      bupo.forgetCharts(more);
      charts.replaceChildren(...CHARTS.map((c) => make(...c)).filter(Boolean));
      // One chart for every object of numbers, one for every number that stands alone, and for the tokens that an object counts.
      const groups = [...new Set([...rest].map((k) => (k.includes(".") ? k.split(".")[0] : k)))];
      more.replaceChildren(...groups.flatMap((g) => [make(`${g}: tokens`.replaceAll("_", " "), "tokens", [`${g}.tokens`]),
        make(g.replaceAll("_", " "), "", [g, new RegExp(`^${g.replace(/[^a-z0-9_]/gi, ".")}\\.`)])]).filter(Boolean));
      return true;
    };
    layout();
    heads();
    const update = () => {
      bupo.nameRuns(runs);
      heads();
      if (!layout()) [...charts.children, ...more.children].forEach((card) => card.redraw?.());
    };
    const files = runs.map((run) => (run.recipe ? el("details", {}, el("summary", {}, `Recipe of ${run.label}, as resolved`), el("pre", {}, run.recipe)) : null));
    return { update, sections: [bupo.section("Training", "One point a rollout step. Shaded: the phase, by the policy that is optimized.", head, charts, moreBox, files)] };
  };
})();
