// Token maps: token x layer heat maps of single responses, with the likeliest tokens of every cell.
"use strict";

(() => {
  const { el, show } = bupo;
  const QUANTITIES = { entropy: ["entropy", "nats"], kl_to_final: ["KL to the final policy", "nats"], log_prob: ["log-prob of the token that came", "nats"], rank: ["rank of the token that came", "log₁₀"] };
  const STATES = { layer: "layer output", attn: "attention", ffn: "FFN" };

  /** Maps lie in a page as gzip in base64. */
  const unpack = async (sample) => {
    if (!sample.gzip) return sample;
    const bytes = Uint8Array.from(atob(sample.gzip), (c) => c.charCodeAt(0));
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).json();
  };

  /** A sample's numbers at a cell, and its likeliest tokens. */
  bupo.cellOf = (map, state, layer, position) => {
    const block = map.states[state];
    const i = block.layers.indexOf(layer) * map.positions.length + position;
    const top = bupo.range(map.k).map((j) => [block.top[i * map.k + j], block.top_probs[i * map.k + j]]).filter(([at]) => at !== null && at !== undefined)
      .map(([at, p]) => ({ id: map.ids[at], token: map.vocabulary[at], p }));
    return { entropy: block.entropy[i], kl_to_final: block.kl_to_final[i], log_prob: block.log_prob[i], rank: block.rank[i], top };
  };

  bupo.tokenMaps = (items, source) => {
    const maps = bupo.nameAnalyses(items.map((i) => ({ ...i, analysis: i.analysis ?? null }))).filter((i) => i.tokens?.all?.length);
    const bare = items.filter((i) => !i.analysis && i.tokens?.all?.length).map((i) => ({ ...i, label: i.name }));
    const list = [...maps, ...bare];
    if (!list.length) {
      return items.length ? bupo.empty("This analysis has no token maps: run ", bupo.code("bupo analyze MODEL --data FILE --out DIR --tokens 4"), ".") : null;
    }
    const holder = el("div", { class: "grid" });
    list.forEach((item) => holder.append(mapCard(item, source, list.length > 1)));
    return holder;
  };

  const mapCard = (item, source, named) => {
    const state = { map: null, quantity: "entropy", state: "layer", pinned: null };
    const inPage = new Map(item.tokens.samples.map((s) => [s.sample, s]));
    const shown = source.tokens ? item.tokens.all : [...inPage.keys()];
    const pin = el("div", { class: "pin", "aria-live": "polite" });
    const words = el("div", { class: "words", "aria-label": "the response, token by token" });
    const caption = el("p", { class: "note" });
    const note = el("p", { class: "note" });
    const block = () => state.map.states[state.state];
    const value = (v) => (state.quantity === "rank" && v !== null ? Math.log10(v) : v);
    const cells = () => {
      if (!state.map) return { xs: [], ys: [], values: [] };
      const n = state.map.positions.length;
      const b = block();
      return { xs: bupo.range(n), ys: b.layers, values: b.layers.map((_, j) => bupo.range(n).map((i) => value(b[state.quantity][j * n + i]))) };
    };
    const topTable = (cell) => el("table", {}, cell.top.map((t) => {
      const bar = el("span", { class: "bar" });
      bar.style.width = `${Math.max(1, 70 * t.p)}px`;
      return el("tr", { "data-top": t.token }, el("td", { class: "mono" }, bupo.token(t.token)), el("td", { class: "number" }, show(t.p)), el("td", {}, bar));
    }));
    const facts = (cell) => [[null, "entropy", `${show(cell.entropy)} nats`], [null, "KL to final", `${show(cell.kl_to_final)} nats`], [null, "log-prob", show(cell.log_prob)], [null, "rank", show(cell.rank)]];
    const title = (x, y) => `${STATES[state.state] ?? state.state} ${block().layers[y]}, before “${bupo.token(state.map.tokens[x])}” (position ${state.map.positions[x]})`;
    const about = (x, y) => {
      const cell = bupo.cellOf(state.map, state.state, block().layers[y], x);
      return bupo.tip(title(x, y), facts(cell), topTable(cell));
    };
    const mark = () => {
      if (!state.map || !state.pinned) return;
      const [x, y] = state.pinned;
      card.picture?.dispatchAction({ type: "downplay", seriesIndex: 0 });
      card.picture?.dispatchAction({ type: "highlight", seriesIndex: 0, dataIndex: y * state.map.positions.length + x });
    };
    const showPin = () => {
      paintWords();
      if (!state.map || !state.pinned) {
        pin.replaceChildren(el("h4", {}, "No cell pinned"), el("p", { class: "note" }, "Click a cell, or focus the map and use the arrow keys."));
        return;
      }
      const [x, y] = state.pinned;
      const cell = bupo.cellOf(state.map, state.state, block().layers[y], x);
      const last = state.map.states.final ? bupo.cellOf(state.map, "final", state.map.states.final.layers[0], x) : null;
      pin.replaceChildren(el("h4", {}, title(x, y)), bupo.table(["", ""], facts(cell).map(([, k, v]) => [k, v]), [1]).querySelector("table"),
        el("h4", {}, "Likeliest here"), topTable(cell), ...(last ? [el("h4", {}, "Final policy"), topTable(last)] : []));
      mark();
    };
    const pinAt = (x, y) => { state.pinned = [x, y]; card.reveal(x); showPin(); };
    const layerShown = () => state.pinned?.[1] ?? block().layers.length - 1;
    const move = (dx, dy) => {
      if (!state.map) return;
      const [x, y] = state.pinned ?? [0, layerShown()];
      pinAt(Math.min(state.map.positions.length - 1, Math.max(0, x + dx)), Math.min(block().layers.length - 1, Math.max(0, y + dy)));
    };
    const setWords = () => words.replaceChildren(...state.map.tokens.slice(0, state.map.positions.length).map((token, i) =>
      el("button", { type: "button", onclick: () => pinAt(i, layerShown()) }, bupo.token(token))));
    // The same buttons in new colours: one that is pressed keeps the keyboard.
    const paintWords = () => {
      if (!state.map) return;
      const n = state.map.positions.length;
      const [name, unit] = QUANTITIES[state.quantity];
      const values = bupo.range(n).map((i) => value(block()[state.quantity][layerShown() * n + i]));
      const most = Math.max(...values.map(Math.abs).filter(Number.isFinite), 1e-9);
      [...words.children].forEach((word, i) => {
        word.title = `${name}: ${show(values[i])} ${unit}`;
        word.setAttribute("aria-pressed", String(i === state.pinned?.[0]));
        word.style.background = `color-mix(in srgb, ${bupo.colour(4)} ${Math.round(55 * Math.abs(values[i] ?? 0) / most)}%, transparent)`;
      });
      caption.textContent = `Words: ${name}, ${state.state === "layer" ? "" : `${STATES[state.state]}, `}layer ${block().layers[layerShown()]}. The stronger the colour, the further from 0.`;
    };
    const again = () => { card.redraw(); showPin(); };
    const load = async (number) => {
      const map = await (source.tokens ? source.tokens(item.path, number) : unpack(inPage.get(number)));
      state.map = map;
      if (!map.states[state.state]) state.state = Object.keys(map.states)[0];
      state.pinned = null;
      card.rewind();
      setWords();
      const out = [];
      if (map.left_out) out.push(`${map.left_out} later positions are not shown.`);
      if (shown.length < item.tokens.all.length) out.push(`${item.tokens.all.length - shown.length} of ${item.tokens.all.length} samples are not in this page, to keep it small: bupo serve shows all.`);
      note.textContent = out.join(" ");
      again();
    };
    const card = bupo.heat({
      title: named ? `Token map: ${item.label}` : "Token map", x: "token that came", y: "layer", size: "wide", height: 430, cells, about: (x, y) => about(x, y), zoom: innerWidth < 700 ? 16 : 48,
      unit: () => QUANTITIES[state.quantity][1], formatX: (i) => { const t = bupo.token(state.map?.tokens[i] ?? ""); return t.length > 10 ? `${t.slice(0, 9)}…` : t; },
      controls: [bupo.choose("sample", shown.map((s) => [s, s]), shown[0], (s) => load(Number(s))),
        bupo.choose("show", Object.entries(QUANTITIES).map(([k, [name]]) => [k, name]), state.quantity, (q) => { state.quantity = q; again(); }),
        bupo.choose("of", Object.entries(STATES), state.state, (s) => { if (state.map?.states[s]) state.state = s; again(); })],
    });
    const data = card.csv;
    // Every cell with all its numbers says more than the picture's grid.
    card.csv = () => {
      if (!state.map) return data();
      const m = state.map;
      return bupo.csv(["sample", "position", "token_id", "token", "state", "layer", "entropy", "kl_to_final", "log_prob", "rank", ...bupo.range(m.k).flatMap((j) => [`top_${j + 1}`, `prob_${j + 1}`])],
        Object.entries(m.states).flatMap(([name, b]) => b.layers.flatMap((layer) => m.positions.map((p, i) => {
          const c = bupo.cellOf(m, name, layer, i);
          return [m.sample, p, m.token_ids[i], m.tokens[i], name, layer, c.entropy, c.kl_to_final, c.log_prob, c.rank, ...c.top.flatMap((t) => [t.token, t.p])];
        }))));
    };
    const box = card.box;
    box.tabIndex = 0;
    box.addEventListener("keydown", (e) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1], Enter: [0, 0] }[e.key];
      if (by) { e.preventDefault(); move(...by); }
    });
    // A window that moves draws its cells anew, without the mark.
    card.ready.push((picture) => { picture.on("click", (p) => { if (p.value) pinAt(p.value[0], p.value[1]); }); picture.on("datazoom", mark); mark(); });
    const frame = el("div", { class: "map" });
    box.replaceWith(frame);
    frame.append(box, pin);
    card.append(caption, words, note);
    card.tokens = state;
    showPin();
    load(shown[0]).catch((e) => { note.textContent = `The map cannot be shown: ${e.message}`; });
    bupo.onTheme(() => { if (card.isConnected) showPin(); });
    return card;
  };
})();
