// Puts the page together: from the data in it, or from the server that sent it.
"use strict";

(() => {
  const { el } = bupo;

  const frame = (() => {
    const main = el("main", { id: "main", tabIndex: -1 });
    const sections = el("div", { class: "sections" });
    const side = el("nav", { class: "side", "aria-label": "contents" });
    const where = el("span", { class: "where" });
    const state = el("span", { class: "where", role: "status" });
    const theme = el("button", { type: "button", onclick: () => bupo.setTheme(bupo.dark() ? "light" : "dark", true) });
    const named = () => { theme.textContent = bupo.dark() ? "light" : "dark"; theme.setAttribute("aria-label", `switch to ${theme.textContent} colours`); };
    bupo.onTheme(named);
    named();
    document.body.append(el("a", { class: "skip", href: "#main" }, "to the content"), el("header", { class: "top" }, el("strong", {}, "bupo"), where, state, theme), el("div", { class: "layout" }, side, main));
    side.append(sections);
    return { main, side, sections, where, say: (text) => { state.textContent = text; } };
  })();

  /** Shows items; hands back `update`, which takes in rows that came since. */
  bupo.show_items = (to, items, source, before = []) => {
    bupo.forgetCharts(to.main);
    const sweeps = bupo.sweepSections(items);
    const training = bupo.trainingSections(items);
    const probe = bupo.probeSections(items);
    const analyses = items.flatMap((i) => (i.kind === "analysis" ? [i] : (i.analyses ?? [])));
    const inside = bupo.analysisSections(analyses, source);
    // A run's own story comes before the look inside the model.
    const sections = [...sweeps, ...training.sections, ...bupo.evaluationSections(items), ...bupo.comparisonSections(items), ...probe.sections, ...inside, ...bupo.ablationSections(items), ...bupo.diffSections(items), ...bupo.sampleSections(items), ...bupo.completionsSections(items, source)];
    const broken = items.flatMap((i) => [...(i.analyses ?? []), ...(i.ablations ?? []), ...(i.evaluations ?? [])]).filter((i) => i.error).map((i) => bupo.empty(`${i.path} cannot be read: ${i.error}`));
    to.main.replaceChildren(...before, ...broken, ...sections);
    if (!sections.length && !before.length) to.main.replaceChildren(bupo.empty("Nothing is chosen: pick something in the list."));
    const jump = (id) => (e) => { e.preventDefault(); const target = document.getElementById(id); target.scrollIntoView(); target.querySelector("h2").setAttribute("tabindex", "-1"); target.querySelector("h2").focus({ preventScroll: true }); };
    to.sections.replaceChildren(el("h2", {}, "Contents"), el("ul", {}, sections.map((s) => el("li", {}, el("a", { href: `#${s.id}`, onclick: jump(s.id) }, s.querySelector("h2").textContent)))));
    to.where.textContent = items.map((i) => i.name).join(" · ");
    return { update: () => { training.update(); probe.update(); } };
  };

  const embedded = document.getElementById("data");
  if (embedded) bupo.show_items(frame, JSON.parse(embedded.textContent).items, {});
  else bupo.follow(frame);
})();
