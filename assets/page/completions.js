// The table of completions: what was asked and answered, the verdict and the advantage; filtered, searched and paged where
// the rows are (a server) or in the page.
"use strict";

(() => {
  const { el, show } = bupo;
  const PAGE = 25;

  /** Rows that are in the page, asked as a server is asked. */
  bupo.localCompletions = (all) => async ({ step, status, search, from = 0, limit = PAGE }) => {
    const needle = (search ?? "").toLowerCase();
    const fits = (row) => (!step || row.step === Number(step)) && (!status || row.status === status)
      && (!needle || ["prompt", "response", "gold"].some((k) => String(row[k] ?? "").toLowerCase().includes(needle)));
    const rows = [];
    let at = from;
    while (at < all.length && rows.length < limit) { if (fits(all[at])) rows.push(all[at]); at += 1; }
    return { rows, next: at, more: all.slice(at).some(fits), bad: 0 };
  };

  // Only the page knows what its width cuts. In the next frame: a button that widens its column is no loop then.
  const cut = new ResizeObserver((entries) => requestAnimationFrame(() => {
    for (const { target } of entries) {
      const cell = target.closest("[data-clipped]");
      if (!cell.classList.contains("open")) cell.querySelector("button").hidden = target.scrollHeight <= target.clientHeight + 1;
    }
  }));
  const clipped = (text) => {
    const clip = el("div", { class: "clip" }, text ?? "–");
    const cell = el("div", { "data-clipped": "" }, el("div", { class: "text" }, clip), el("button", { type: "button", class: "quiet", hidden: true, "aria-expanded": "false", onclick: (e) => {
      const open = cell.classList.toggle("open");
      e.target.textContent = open ? "less" : "more";
      e.target.setAttribute("aria-expanded", String(open));
    } }, "more"));
    cut.observe(clip);
    return cell;
  };

  bupo.completionsSection = (run, ask, note) => {
    const query = { step: "", status: "", search: "" };
    let trail = [0];
    let last = null;
    const body = el("div", { "aria-live": "polite" });
    const status = el("span", { class: "field" });
    const page = async () => {
      body.setAttribute("aria-busy", "true");
      try {
        const rows = [];
        let found = { next: trail.at(-1), more: true };
        // A page may come short where matches are rare: ask on, but let the reader see how far it is.
        for (let tries = 0; rows.length < PAGE && found.more && tries < 8; tries += 1) {
          found = await ask({ ...query, from: found.next, limit: PAGE - rows.length });
          rows.push(...found.rows);
        }
        last = { ...found, rows };
      } catch (error) {
        body.replaceChildren(bupo.empty(`The completions cannot be read: ${error.message}`));
        return;
      }
      body.removeAttribute("aria-busy");
      const columns = ["step", "prompt", "response", "gold", "verdict", "reward", "advantage", "tokens"];
      body.replaceChildren(last.rows.length ? bupo.table(columns, last.rows.map((r) => [r.step, clipped(r.prompt), clipped(r.response), r.gold ?? "–",
        el("span", {}, el("span", { class: `badge ${r.status ?? ""}` }, r.status ?? "–"), r.answer !== undefined && r.answer !== null ? el("small", {}, ` ${r.answer}`) : null, r.failure ? el("small", {}, ` ${r.failure}`) : null),
        r.reward, r.advantage, `${r.tokens}${r.finish === "length" ? " (cut)" : ""}`]), [5, 6, 7]) : bupo.empty("No completion fits."));
      back.disabled = trail.length === 1;
      next.disabled = !last.more;
      status.textContent = `page ${trail.length}${last.bad ? `, ${last.bad} unreadable lines left out` : ""}${last.more && last.rows.length < PAGE ? `, searched up to step ${last.reached ?? "?"}` : ""}`;
    };
    const restart = () => { trail = [0]; return page(); };
    const back = el("button", { type: "button", disabled: true, onclick: () => { trail.pop(); page(); } }, "← back");
    const next = el("button", { type: "button", disabled: true, onclick: () => { trail.push(last.next); page(); } }, "next →");
    let soon = 0;
    const later = (set) => (e) => { set(e.target.value); clearTimeout(soon); soon = setTimeout(restart, 250); };
    const verdicts = ["", "correct", "wrong", "no_answer", "unparsable", "timeout", "failed"];
    const tools = el("div", { class: "tools" },
      el("label", { class: "field" }, "step", el("input", { type: "number", min: 1, name: "step", placeholder: "all", oninput: later((v) => { query.step = v; }) })),
      bupo.choose("verdict", verdicts.map((v) => [v, v || "all"]), "", (v) => { query.status = v; restart(); }),
      el("label", { class: "field" }, "search", el("input", { type: "search", name: "search", placeholder: "prompt, response or gold", oninput: later((v) => { query.search = v; }) })),
      back, next, status,
      el("button", { type: "button", class: "quiet", title: "Save this page of the table as CSV", onclick: () => {
        const columns = ["step", "problem", "sample", "prompt", "response", "gold", "status", "answer", "reward", "advantage", "tokens", "finish"];
        bupo.save("completions.csv", "text/csv", bupo.csv(columns, last.rows.map((r) => columns.map((c) => r[c]))));
      } }, "CSV"));
    page();
    const section = el("div", { class: "card wide", "data-completions": run.path }, el("header", {}, el("h3", {}, run.label ?? run.name), tools), note ? el("p", { class: "note" }, note) : null, body);
    section.page = page;
    return section;
  };

  bupo.completionsSections = (items, source) => {
    const runs = items.filter((i) => i.kind === "run");
    if (!runs.length) return [];
    const cards = runs.map((run) => {
      if (source.completions) return bupo.completionsSection(run, (q) => source.completions(run.path, q));
      const c = run.completions ?? { rows: [], all: true };
      const note = c.all ? null : `${c.rows.length} completions are in this page: the first of ${c.steps ? `steps ${c.steps.join(", ")}` : "the run"}. bupo serve shows all, and bupo report --completions N takes more.`;
      return c.rows.length ? bupo.completionsSection(run, bupo.localCompletions(c.rows), note) : bupo.empty(`${run.label ?? run.name} has no completions yet.`);
    });
    return [bupo.section("Completions", "Every response with its verdict and its advantage.", el("div", { class: "grid" }, cards))];
  };

  /** Samples of `bupo generate`: policies beside each other, one row a prompt and sample. */
  bupo.sampleSections = (items) => {
    const files = items.filter((i) => i.kind === "samples");
    if (!files.length) return [];
    const cards = files.map((file) => {
      const policyOf = (r) => (r.ablate ? `${r.policy} without ${r.ablate.join(", ")}` : r.policy);
      const policies = [...new Set(file.rows.map(policyOf))];
      const keys = [...new Set(file.rows.map((r) => `${r.prompt}/${r.sample}`))];
      const at = new Map(file.rows.map((r) => [`${r.prompt}/${r.sample}/${policyOf(r)}`, r]));
      const cell = (r) => (r ? el("div", {}, clipped(r.text ?? r.response), el("small", {}, [`${r.tokens} tokens`, r.mean_log_prob !== null ? `mean log-prob ${show(r.mean_log_prob, 3)}` : null, r.finish === "length" ? "cut" : null].filter(Boolean).join(", "))) : "–");
      const rows = keys.map((k) => [k.replace("/", ", sample "), ...policies.map((p) => cell(at.get(`${k}/${p}`)))]);
      const columns = ["prompt", "sample", "policy", "text", "tokens", "mean_log_prob", "finish"];
      return bupo.tableCard(`Samples: ${file.name}`, file.rows.length < file.total ? `The first ${file.rows.length} of ${file.total} samples.` : null, ["prompt", ...policies], rows, { columns, rows: file.rows.map((r) => columns.map((c) => (c === "policy" ? policyOf(r) : r[c]))) });
    });
    return [bupo.section("Samples", "What the policies say to the same prompts, with the same seeds.", el("div", { class: "grid" }, cards))];
  };
})();
