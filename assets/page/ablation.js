// What each module of a model is worth: the model without it beside the whole one, layer by layer and head by head, of one study or of
// several over each other.
"use strict";

(() => {
  const { el, show } = bupo;
  const MODULES = [["attn", "attention"], ["ffn", "FFN"], ["both", "attention and FFN"]];
  const REPLACED = { zero: "zeros", mean: "its mean" };
  const WHAT = {
    kl: { short: "KL", name: "divergence from the whole model's policy", y: "KL (nats)", unit: "nats", note: "D(whole ‖ without): how much of the model's policy is lost." },
    log_prob_change: { short: "log-prob", name: "change of the log-prob", y: "Δ log-prob (nats)", unit: "nats", note: "Of the tokens that came; below 0 they became less likely." },
    entropy_change: { short: "entropy", name: "change of the entropy", y: "ΔH (nats)", unit: "nats", note: "Of the final policy; above 0 it is less sure without." },
    top1_agreement: { short: "agreement", name: "same likeliest token", y: "share of tokens", unit: "", note: "Share of tokens whose likeliest token stays." },
  };

  const named = (items) => {
    const list = items.flatMap((i) => [i, ...(i.analyses ?? []), ...(i.ablations ?? [])]).filter((i) => i.ablation);
    const short = bupo.shorten(list.map((i) => i.path ?? i.name));
    return list.map((item, i) => ({ a: item.ablation, label: short[i], colour: i }));
  };
  const layers = (a) => a.per_layer.map((l) => l.layer);

  const curves = (list, what) => MODULES.map(([key, name]) => bupo.lines({
    title: `Without ${name}: ${WHAT[what].short}`, x: "layer", y: WHAT[what].y, size: "third", note: WHAT[what].note, log: what === "kl", bands: false, zero: what.endsWith("change"),
    ...(what === "top1_agreement" ? { min: 0, max: 1 } : {}),
    lines: () => list.map((i) => ({ name: i.label, x: layers(i.a), y: i.a.per_layer.map((l) => l[key][what]), colour: i.colour, symbols: true })) }));

  const heads = (list, what) => list.filter((i) => i.a.per_layer.some((l) => l.heads.length)).map((i) => {
    const xs = layers(i.a), ys = bupo.range(Math.max(...i.a.per_layer.map((l) => l.heads.length))).map((h) => h + 1);
    const effect = (x, y) => i.a.per_layer[x].heads[y];
    return bupo.heat({ title: `Without one head: ${WHAT[what].short}${list.length > 1 ? `, ${i.label}` : ""}`, x: "layer", y: "head", size: "wide", height: Math.min(620, 130 + 24 * ys.length),
      unit: WHAT[what].unit, log: what === "kl", note: WHAT[what].note, signed: () => what.endsWith("change"), cells: () => ({ xs, ys, values: ys.map((_, y) => xs.map((_, x) => effect(x, y)?.[what] ?? null)) }),
      about: (x, y) => bupo.tip(`head ${ys[y]} of layer ${xs[x]}`, Object.keys(WHAT).map((key) => [null, WHAT[key].name, `${show(effect(x, y)[key])} ${WHAT[key].unit}`])) });
  });

  /** Names as `bupo ... --ablate` takes them, with their effects. */
  const modules = (a) => a.per_layer.flatMap((l) => [["attn", l.attn], ["ffn", l.ffn], ["layer", l.both]].map(([kind, e]) => [`${kind}:${l.layer}`, e])
    .concat(l.heads.map((e, h) => [`head:${l.layer}.${h + 1}`, e])));
  const EFFECT = ["kl", "kl_std", "log_prob_change", "entropy_change", "top1_agreement"];

  const facts = (list) => bupo.tableCard("Studies", null,
    ["", "replaced by", "missed most (KL)", "missed least (KL)", "tokens", "samples", "entropy (nats)", "log-prob (nats)", "layers", "model"],
    list.map((i) => {
      const sorted = modules(i.a).filter(([name]) => /^(attn|ffn):/.test(name)).sort(([, a], [, b]) => b.kl - a.kl);
      const said = (some) => some.map(([name, e]) => `${name} (${show(e.kl, 3)})`).join(", ");
      // Of few modules each is in one of the two.
      const shown = Math.min(3, Math.ceil(sorted.length / 2)), least = Math.min(3, sorted.length - shown);
      return [el("b", {}, i.label), REPLACED[i.a.replace] ?? i.a.replace, said(sorted.slice(0, shown)), said(sorted.slice(sorted.length - least)), i.a.tokens, i.a.samples, i.a.entropy, i.a.log_prob, i.a.layers,
        el("span", { title: i.a.model }, String(i.a.model).split("/").slice(-2).join("/"))];
    }),
    { columns: ["name", "model", "replace", "module", ...EFFECT], rows: list.flatMap((i) => modules(i.a).map(([name, e]) => [i.label, i.a.model, i.a.replace, name, ...EFFECT.map((key) => e[key])])) },
    [4, 5, 6, 7, 8]);

  bupo.ablationSections = (items) => {
    const list = named(items);
    if (!list.length) return [];
    const cards = el("div", { class: "grid" });
    const fill = (what) => {
      bupo.forgetCharts(cards);
      cards.replaceChildren(...curves(list, what), ...heads(list, what));
    };
    fill("kl");
    const pick = bupo.choose("charts show", Object.entries(WHAT).map(([key, { name }]) => [key, name]), "kl", fill);
    return [bupo.section("What each module is worth", "The final policy with one module left out at a time, beside the whole model's, over the same response tokens.",
      el("div", { class: "grid" }, facts(list)), el("p"), el("div", { class: "tools" }, pick), cards)];
  };
})();
