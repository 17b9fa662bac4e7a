// A server's data, and the page that follows it.
"use strict";

(() => {
  const { el } = bupo;
  const EVERY = 2000;

  const get = async (path, query) => {
    const asked = new URLSearchParams(Object.entries(query ?? {}).filter(([, v]) => v !== "" && v !== null && v !== undefined));
    const response = await fetch(`${path}?${asked}`);
    const body = await response.json().catch(() => ({}));
    if (!response.ok) throw new Error(body.error ?? `the server says ${response.status}`);
    return body;
  };
  const source = { completions: (path, q) => get("/api/completions", { path, ...q }), tokens: (path, sample) => get("/api/tokens", { path, sample }) };

  const ago = (s) => (s === null || s === undefined ? "" : s < 90 ? `${s} s ago` : s < 5400 ? `${Math.round(s / 60)} min ago` : s < 172800 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} days ago`);
  const stateOf = (line) => (line.kind !== "run" ? line.kind : line.finished ? "finished" : line.running ? "running" : "not finished");
  const chosen = () => new URLSearchParams(location.hash.slice(1)).getAll("show");

  /** Rows that a run has grown by. False where the file was cut back, as a resumed run's is: everything is read again. */
  const grow = (part, grown) => {
    if (grown.total < part.total) return false;
    const last = part.rows.at(-1)?.step ?? -1;
    if (grown.rows.length && grown.rows[0].step <= last) return false;
    part.rows.push(...grown.rows);
    part.total = grown.total;
    part.bad += grown.bad;
    return true;
  };

  bupo.follow = (frame) => {
    const list = el("div", { class: "items" });
    frame.side.append(list);
    let items = [];
    let parts = null;
    let lines = [];

    const sidebar = () => {
      const on = chosen();
      const group = (title, of) => (of.length ? [el("h2", {}, title), ...of.map((line) => el("label", { class: "item" },
        el("input", { type: "checkbox", checked: on.includes(line.path), onchange: (e) => {
          const next = e.target.checked ? [...on, line.path] : on.filter((p) => p !== line.path);
          location.hash = next.map((p) => `show=${encodeURIComponent(p)}`).join("&");
        } }), el("span", {}, line.name, el("small", {}, line.kind === "run" ? `${stateOf(line)}${line.age !== null ? `, ${ago(line.age)}` : ""}` : "")))) ] : []);
      list.replaceChildren(...group("Running", lines.filter((l) => stateOf(l) === "running")), ...group("Runs", lines.filter((l) => l.kind === "run" && stateOf(l) !== "running")), ...group("Others", lines.filter((l) => l.kind !== "run")));
      if (!lines.length) list.replaceChildren(bupo.empty("Nothing here yet: ", bupo.code("bupo train"), " writes runs, ", bupo.code("bupo analyze"), " analyses."));
    };

    const open = async () => {
      const paths = chosen();
      const got = await Promise.allSettled(paths.map((path) => get("/api/item", { path })));
      items = got.filter((g) => g.status === "fulfilled").map((g) => g.value);
      items.forEach((item) => { item.name = item.path || item.name; });
      const failed = got.flatMap((g, i) => (g.status === "rejected" ? [bupo.empty(`${paths[i]} cannot be shown: ${g.reason.message}`)] : []));
      parts = bupo.show_items(frame, items, source, failed);
      sidebar();
    };

    /** What changed since: new rows of runs, new analyses and evaluations in them. */
    const poll = async () => {
      lines = (await get("/api/items")).items;
      const seen = chosen();
      if (!seen.length && lines.length) {
        const first = lines.find((l) => stateOf(l) === "running") ?? lines.filter((l) => l.kind === "run").sort((a, b) => (a.age ?? 1e9) - (b.age ?? 1e9))[0] ?? lines[0];
        location.replace(`#show=${encodeURIComponent(first.path)}`);
        return;
      }
      sidebar();
      let again = false, grew = false;
      for (const run of items.filter((i) => i.kind === "run" && !(i.manifest?.finished && i.settled))) {
        const now = await get("/api/item", { path: run.path, metrics: run.metrics.total, probe: run.probe.total, grown: true });
        const inside = (i) => [i.analyses.length, i.ablations.length, i.evaluations.length].join();
        again ||= inside(now) !== inside(run) || !grow(run.metrics, now.metrics) || !grow(run.probe, now.probe);
        grew ||= now.metrics.rows.length > 0 || now.probe.rows.length > 0 || now.manifest?.finished !== run.manifest?.finished;
        Object.assign(run, { manifest: now.manifest, age: now.age, running: now.running });
        run.settled = Boolean(now.manifest?.finished) && now.metrics.rows.length === 0;
      }
      if (again) await open();
      else if (grew) parts.update();
    };

    let asking = false;
    const tick = async () => {
      if (!asking && !document.hidden) {
        asking = true;
        try { await poll(); frame.say(""); } catch (error) { frame.say(`not connected: ${error.message}`); }
        asking = false;
      }
    };
    addEventListener("hashchange", () => open().catch((e) => frame.say(e.message)));
    document.addEventListener("visibilitychange", tick);
    open().then(tick).catch((e) => frame.say(e.message));
    setInterval(tick, EVERY);
  };
})();
