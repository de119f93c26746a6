"use strict";
// The gallery: filters, pages, a before/after slider, and a review that is kept in the browser until it is exported.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  // Okabe and Ito's colours, told apart by the colour-blind.
  const COLOURS = ["#e69f00", "#56b4e9", "#f0e442", "#cc79a7", "#009e73", "#d55e00", "#7fb2ff"];
  const PAGE = 60;

  byId("theme").addEventListener("click", () => {
    const root = document.documentElement;
    const dark = getComputedStyle(root).colorScheme === "dark"
      || (root.dataset.theme === undefined && matchMedia("(prefers-color-scheme: dark)").matches);
    root.dataset.theme = dark ? "light" : "dark";
  });
  if (!data.items.length) return;

  const made = (item) => item.boxes.filter((box) => !box.kept);
  const least = (values) => (values.length ? Math.min(...values) : null);
  const longest = (box) => Math.max(box.xyxy[2] - box.xyxy[0], box.xyxy[3] - box.xyxy[1]);
  const thirds = (() => {
    const sizes = data.items.flatMap((item) => made(item).map(longest)).sort((a, b) => a - b);
    return [sizes[Math.floor(sizes.length / 3)], sizes[Math.floor((2 * sizes.length) / 3)]];
  })();
  const sizeOf = (box) => thirds.filter((edge) => longest(box) >= edge).length;
  for (const item of data.items) {
    item.score = least(made(item).map((box) => box.score).filter((score) => score !== null));
    item.ratio = least(made(item).map((box) => box.ratio).filter((ratio) => ratio !== null));
  }

  // The review, by image. A page opened from disk may be denied storage: then it lasts as long as the page.
  const key = `defectgen ${data.recipe_sha256} ${data.generator_fingerprint}`;
  let review = {}, kept = true;
  const read = () => { try { review = JSON.parse(localStorage.getItem(key)) || {}; } catch { /* see above */ } };
  read();
  const decide = (item, state) => {
    if (kept) read(); // Another window may show the same report.
    if (state === "undecided") delete review[item.index]; else review[item.index] = state;
    try { localStorage.setItem(key, JSON.stringify(review)); } catch { kept = false; }
    byId("unkept").hidden = kept;
    draw();
  };
  addEventListener("storage", (event) => { if (event.key === key) { read(); draw(); } });
  const stateOf = (item) => review[item.index] || "undecided";

  const form = byId("filters");
  let shown = [], page = 0, current = null;

  function select() {
    const { class: name, size, score, review: state, order } = form.elements;
    const fits = (box) => (name.value === "" || box.class_id === Number(name.value))
      && (size.value === "" || sizeOf(box) === Number(size.value))
      && (score.value === "1" || (box.score !== null && box.score <= Number(score.value)));
    shown = data.items.filter((item) => made(item).some(fits) && (state.value === "" || stateOf(item) === state.value));
    const by = { least: "score", copied: "ratio" }[order.value];
    if (by) shown.sort((a, b) => (a[by] ?? 9) - (b[by] ?? 9));
    score.nextElementSibling.value = Number(score.value).toFixed(2);
  }

  function boxes(item, into) {
    const [width, height] = item.size_wh;
    for (const box of item.boxes) {
      const [x1, y1, x2, y2] = box.xyxy;
      const mark = document.createElement("div");
      mark.className = "box" + (y1 < 0.08 * height ? " low" : "") + (x1 > 0.75 * width ? " right" : "");
      mark.style.cssText = `left:${100 * x1 / width}%;top:${100 * y1 / height}%;width:${100 * (x2 - x1) / width}%;`
        + `height:${100 * (y2 - y1) / height}%;--colour:${COLOURS[box.class_id % COLOURS.length]}`;
      const name = document.createElement("span");
      name.textContent = data.classes[box.class_id] + (box.score === null ? "" : ` ${box.score.toFixed(2)}`);
      mark.append(name);
      into.append(mark);
    }
  }

  function tile(item) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "tile";
    button.dataset.index = item.index;
    button.dataset.review = stateOf(item);
    const view = document.createElement("span");
    view.className = "view";
    const image = new Image();
    image.src = item.small;
    image.alt = `composite ${item.index}`;
    view.append(image);
    boxes(item, view);
    const caption = document.createElement("span");
    caption.className = "caption";
    const left = document.createElement("span"), right = document.createElement("span");
    left.textContent = item.index;
    right.textContent = { accepted: "✓", rejected: "✗" }[stateOf(item)] || (item.score === null ? "" : item.score.toFixed(2));
    caption.append(left, right);
    button.append(view, caption);
    button.addEventListener("click", () => open(item));
    return button;
  }

  function draw() {
    select();
    const pages = Math.max(Math.ceil(shown.length / PAGE), 1);
    page = Math.min(page, pages - 1);
    const focused = document.activeElement?.dataset?.index;
    byId("grid").replaceChildren(...shown.slice(page * PAGE, (page + 1) * PAGE).map(tile));
    byId("grid").classList.toggle("unlabelled", !form.elements.labels.checked);
    if (focused) byId("grid").querySelector(`[data-index="${focused}"]`)?.focus({ preventScroll: true });
    byId("count").textContent = `${shown.length} of ${data.items.length} images with synthetic defects`
      + (shown.length ? "" : ": none fits these filters");
    byId("page").textContent = `page ${page + 1} of ${pages}`;
    byId("back").disabled = page === 0;
    byId("forth").disabled = page === pages - 1;
    const states = Object.values(review);
    const count = (state) => states.filter((other) => other === state).length;
    byId("reviewed").textContent = `${count("accepted")} accepted, ${count("rejected")} rejected`;
    byId("export").disabled = !states.length;
    if (current) show(current);
  }

  // One composite, with the clean image under the slider's left.
  const viewer = byId("viewer"), slider = byId("slider");

  function show(item) {
    const changed = current !== item;
    current = item;
    byId("name").textContent = item.file;
    byId("state").textContent = { accepted: "✓ accepted", rejected: "✗ rejected" }[stateOf(item)] || "undecided";
    viewer.dataset.review = stateOf(item);
    if (changed || !byId("pair").firstChild) {
      const [width, height] = item.size_wh;
      const pair = byId("pair");
      pair.style.cssText = `aspect-ratio:${width}/${height};width:min(100%, calc(62vh * ${width / height}))`;
      const after = new Image();
      after.className = "whole";
      after.src = item.large || item.small;
      after.alt = `composite ${item.index}`;
      const before = document.createElement("div"), labels = document.createElement("div"), edge = document.createElement("div");
      before.className = "before";
      for (const [x, y, w, h, uri] of item.before) {
        const window = new Image();
        window.src = uri;
        window.alt = "";
        window.style.cssText = `left:${100 * x / width}%;top:${100 * y / height}%;width:${100 * w / width}%;height:${100 * h / height}%`;
        before.append(window);
      }
      labels.className = "after";
      boxes(item, labels);
      edge.className = "edge";
      pair.replaceChildren(after, before, labels, edge);
      const notes = made(item).map((box) => `${data.classes[box.class_id]} ${Math.round(longest(box))} px`
        + (box.score === null ? "" : `, ${box.score.toFixed(2)} sure`)
        + (box.ratio === null ? "" : `, distance to the nearest real one ${box.ratio.toFixed(2)}`));
      byId("about").textContent = notes.join("; ")
        + (item.large ? "" : ". Shown small and without its clean image: the page has no room for all.");
      slider.disabled = !item.large;
    }
    byId("pair").classList.toggle("unlabelled", !form.elements.labels.checked);
    cut(item.large ? slider.value : 0);
  }

  const cut = (share) => byId("pair").style.setProperty("--cut", `${share}%`);
  slider.addEventListener("input", () => cut(slider.value));
  byId("pair").addEventListener("pointerdown", (event) => byId("pair").setPointerCapture(event.pointerId));
  byId("pair").addEventListener("pointermove", (event) => {
    if (!event.buttons || slider.disabled) return;
    const frame = byId("pair").getBoundingClientRect();
    slider.value = 100 * Math.min(Math.max((event.clientX - frame.left) / frame.width, 0), 1);
    cut(slider.value);
  });

  function open(item) {
    show(item);
    if (!viewer.open) viewer.showModal();
  }

  function move(by) {
    // What was reviewed away by the filters keeps its place in the order.
    const place = shown.indexOf(current);
    const next = shown[place < 0 ? Math.min(last, shown.length - 1) : place + by];
    if (!next) return;
    last = shown.indexOf(next);
    page = Math.floor(last / PAGE);
    open(next);
    draw();
  }
  let last = 0;

  const actions = {
    close: () => viewer.close(),
    previous: () => move(-1),
    next: () => move(1),
    labels: () => { form.elements.labels.checked = !form.elements.labels.checked; draw(); },
    accept: () => judge("accepted"),
    reject: () => judge("rejected"),
    undecided: () => judge("undecided"),
  };
  function judge(state) {
    last = Math.max(shown.indexOf(current), 0);
    const stays = current;
    decide(current, state);
    if (state !== "undecided") move(shown.includes(stays) ? 1 : 0);
  }
  viewer.addEventListener("click", (event) => actions[event.target.closest("[data-do]")?.dataset.do]?.());
  viewer.addEventListener("close", () => {
    // The tile that was left is another element by now.
    byId("grid").querySelector(`[data-index="${current?.index}"]`)?.focus();
    current = null;
  });
  // Of the document: what had the focus may be disabled by then, and keys go to nobody in the viewer.
  document.addEventListener("keydown", (event) => {
    if (!viewer.open || event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = { a: "accept", r: "reject", u: "undecided", l: "labels", ArrowLeft: "previous", ArrowRight: "next" };
    const name = keys[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!name || (event.target === slider && event.key.startsWith("Arrow"))) return;
    event.preventDefault();
    actions[name]();
  });

  form.addEventListener("input", () => { page = 0; draw(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  byId("back").addEventListener("click", () => { page -= 1; draw(); });
  byId("forth").addEventListener("click", () => { page += 1; draw(); });
  byId("export").addEventListener("click", () => {
    const of = (state) => Object.keys(review).filter((index) => review[index] === state).map(Number).sort((a, b) => a - b);
    const content = {
      kind: "defectgen review",
      recipe_sha256: data.recipe_sha256,
      generator_fingerprint: data.generator_fingerprint,
      accepted: of("accepted"),
      rejected: of("rejected"),
    };
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(content, null, 1) + "\n"], { type: "application/json" }));
    link.download = "review.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
  draw();
})();
